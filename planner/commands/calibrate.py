"""`foreshard calibrate`: measure this machine and fit its profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import HostsFile, Json

if TYPE_CHECKING:
    from planner.deciding import DecidedPlan

__all__ = ["command"]


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Profile to write.")] = Path("this-machine.json"),
    budget: Annotated[
        str, typer.Option("--budget", help="Time for all measurements, e.g. 60s or 2m.")
    ] = "60s",
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Processes to start in a plain call.")] = 2,
    backend: Annotated[
        str | None, typer.Option("--backend", help="gloo or nccl; default: the device's.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Measure these kinds only.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Use samples already taken here.")] = True,
    for_: Annotated[
        Path | None,
        typer.Option("--for", help="Output of `plan --json`: measure just what decides among its plans."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="With --for: profile to start from; default: the plans' own."),
    ] = None,
    hosts: HostsFile = None,
    json: Json = False,
) -> None:
    """Measure operators, host costs and collectives of this machine and write its profile.

    Started plainly it starts the ranks itself; with RANK and WORLD_SIZE set (torchrun, Slurm) it joins.
    """
    from costmodel.errors import UsageError
    from planner import api
    from planner.commands.hardware import show_profile
    from planner.render import print_json, progress

    if for_ is not None:
        if only:
            raise UsageError("--only and --for exclude each other: --for measures what the plans differ in")
        if hosts is not None:
            raise UsageError("--hosts and --for exclude each other: --for measures this machine alone")
        from planner.deciding import decide

        decided = decide(
            for_,
            out=out,
            base=base,
            budget_s=_seconds(budget),
            world_size=ranks,
            resume=resume,
            backend=backend,
            progress=progress,
        )
        if decided is None:
            return
        if json:
            print_json(decided.to_dict())
        else:
            _show_decision(decided, out)
        progress(f"wrote {out}")
        return
    if base is not None:
        raise UsageError(f"--base {base}: needs --for PLAN.json; a full calibration starts from nothing")
    result = api.calibrate(
        out=out,
        budget_s=_seconds(budget),
        world_size=ranks,
        backend=backend,
        only=only,
        resume=resume,
        hosts=hosts,
    )
    if result is None:  # a rank that joined and is not rank 0
        return
    if json:
        print_json(result.model_dump(mode="json"))
    else:
        show_profile(result, samples=out)


def _show_decision(decided: DecidedPlan, out: Path) -> None:
    from calibrate.deciding import BUDGET_ENDED, NOTHING_LEFT
    from planner.render import duration, percent, print_table

    winner, outcome = decided.winner, decided.outcome
    print_table(
        ["plan", "step before", "step after", "P(fastest) before", "P(fastest) after"],
        [
            [
                c.plan + (f" and {len(c.alike)} alike" if c.alike else ""),
                duration(c.before_s),
                duration(c.after_s),
                percent(c.probability_before),
                percent(c.probability_after),
            ]
            for c in decided.contenders
        ],
        title=f"{winner.plan} is the fastest of {len(decided.contenders)} contenders with a probability of "
        f"{percent(winner.probability_after)}; {outcome.reason}",
    )
    print("before, after: as forecast without and with what was measured here")
    print("P(fastest): probability that no other contender is faster")
    for c in decided.contenders:
        if c.alike:
            print(f"forecast alike with {c.plan}: {', '.join(c.alike)}")
    unmeasurable = f" ({outcome.n_unmeasurable} cannot be measured here)" if outcome.n_unmeasurable else ""
    measurements = "measurement" if outcome.n_visits == 1 else "measurements"
    print(f"{outcome.n_visits} {measurements} of {outcome.n_items} deciding sizes and costs{unmeasurable}")
    if decided.others:
        print(
            f"{len(decided.others)} more of the list may be faster by the new profile, the likeliest "
            f"{decided.others[0]}: to decide among them too, run it again with --base {out}"
        )
    if outcome.reason == BUDGET_ENDED:
        print("To be surer run it again, or with a larger --budget: it goes on from the samples taken.")
    elif outcome.reason == NOTHING_LEFT:
        print("To be surer run the contenders for a few steps: what is unknown still is in no single part.")


def _seconds(text: str) -> float:
    from costmodel.errors import UsageError

    units = {"s": 1.0, "m": 60.0}
    try:
        value = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise UsageError(f"--budget {text!r}: must be a time above zero, for example 60s or 2m")
    return value
