"""calibrate(): measure this machine and fit its profile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from calibrate.deciding import Outcome
    from calibrate.decision import Restated
    from calibrate.hosts import Hosts
    from calibrate.wanted import Wanted
    from calibrate.worker import Settings
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["calibrate", "calibrate_for", "fit_profile"]

_START_S = 6.0
"""Set aside for starting the ranks and importing torch in them."""
_FIT_FRACTION = 0.15
"""Share of the budget set aside for fitting."""
_UPDATE_S = 1.0
"""The same for updating a profile."""
_LEAVE_S = 1.0
"""The same for ranks to end."""
_LEAST_S = 1.0
_GRACE_S = 90.0
"""Beyond the budget, before ranks count as hung."""


def calibrate(
    *,
    out: Path,
    world_size: int = 2,
    budget_s: float = 60.0,
    resume: bool = True,
    backend: str | None = None,
    only: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    hosts: Hosts | None = None,
) -> HardwareProfile | None:
    """Measure with `world_size` ranks for about `budget_s` seconds, fit, and write the profile to `out`.

    Samples go to `<out>.samples.jsonl` while they are taken; with `resume`, those of an earlier run on the
    same machine are kept. `hosts`: where the ranks run, if not here.

    Where RANK and WORLD_SIZE are set this process joins as that rank, and every
    rank but 0 returns None. `only`: names of benchmarks (gemm, conv, collectives, host, ...).

    Raises UsageError on bad arguments, MeasurementError where the samples there are of another machine,
    WorkerError where a rank died or hung.
    """
    from calibrate.journal import samples_path
    from calibrate.ranks import joined_by_launcher
    from calibrate.runner import chosen_benchmarks
    from calibrate.worker import Settings, measure

    if hosts is not None:
        hosts.require(world_size)
    _require_bounds(world_size, budget_s)
    chosen_benchmarks(only)
    out = Path(out)
    settings = Settings(
        samples=samples_path(out).absolute(),
        seconds=max(_LEAST_S, (1.0 - _FIT_FRACTION) * budget_s - _START_S),
        budget_s=budget_s,
        resume=resume,
        backend=backend,
        only=tuple(only or ()),
    )
    if joined_by_launcher():
        if not measure(settings):
            return None
    else:
        _launch(settings, world_size, budget_s, progress, hosts)
    return fit_profile(out, progress=progress)


def calibrate_for(
    wanted: Wanted,
    *,
    base: HardwareProfile,
    out: Path,
    restated: Callable[[HardwareProfile], Restated],
    earlier: Path | None = None,
    world_size: int = 2,
    budget_s: float = 20.0,
    resume: bool = True,
    backend: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> tuple[HardwareProfile, Outcome] | None:
    """Measure what a decision hangs on and write `base` brought up to date to `out`.

    `restated`: forecast of the contenders on a profile; what it says of the one that is written ends
    measuring. Ends when the winner is sure by it (at once, where it is by what is known already) or after
    about `budget_s` seconds. With `resume` samples beside `out` are kept, and where there are
    none those of `earlier` (of this machine, which `base` was made from) are taken over. None on a joined
    rank other than 0. Raises as `calibrate` does.
    """
    from calibrate.deciding import SURE_BEFORE, Outcome, read_outcome
    from calibrate.decision import Decision
    from calibrate.environment import Machine
    from calibrate.journal import samples_path, taken_on
    from calibrate.ranks import joined_by_launcher
    from calibrate.wanted import SURE
    from calibrate.worker import Settings, measure
    from costmodel.hardware.store import save_profile

    _require_bounds(world_size, budget_s)
    end = time.monotonic() + budget_s
    out = Path(out)
    samples, listed = samples_path(out).absolute(), out.with_suffix(".wanted.json").absolute()
    first = int(os.environ.get("RANK", "0")) == 0
    n_ranks = int(os.environ["WORLD_SIZE"]) if joined_by_launcher() else world_size
    resumed = resume and samples.exists()
    n_known = _known_visits(samples if resumed else earlier, earlier) if resume else 0
    here = Machine.here(world_size=n_ranks, backend=backend or "")
    known = resumed and taken_on(here, samples)
    start = (
        _updated(wanted, base, out, n_known)
        if known
        else base.model_copy(update={"name": out.stem, "aliases": ()})
    )
    decision = Decision(wanted)
    decision.restate(restated(start))
    standing = decision.standing()
    if standing.probability >= SURE and known == resumed:  # ranks refuse samples of another machine
        if not first:
            return None
        save_profile(start, out)
        return start, Outcome(standing=standing, n_items=len(wanted.items), reason=SURE_BEFORE)
    if first:
        out.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text(wanted.to_json() + "\n")
        if resume and earlier is not None and not samples.exists():
            shutil.copyfile(earlier, samples)
    settings = Settings(
        samples=samples,
        seconds=max(_LEAST_S, budget_s - _START_S - _UPDATE_S),
        budget_s=budget_s,
        resume=resume,
        backend=backend,
        wanted=listed,
        known=n_known,
        until=end - _LEAVE_S - _UPDATE_S,
    )

    def again() -> Restated:
        return restated(_updated(wanted, base, out, n_known))

    if joined_by_launcher():
        if not measure(settings, again):
            return None
    else:
        _launch_answered(settings, world_size, budget_s, progress, again)
    outcome = read_outcome(listed)
    profile = _updated(wanted, base, out, n_known)
    save_profile(profile, out)
    decision.restate(restated(profile))
    return profile, outcome.settled(decision.standing())


def _launch_answered(
    settings: Settings,
    world_size: int,
    budget_s: float,
    progress: Callable[[str], None] | None,
    again: Callable[[], Restated],
) -> None:
    """Start the ranks here; what they ask meanwhile is answered by `again`."""
    from calibrate.asking import Answers

    assert settings.wanted is not None
    answers = Answers(settings.wanted, again)
    try:
        _launch(settings, world_size, budget_s, progress, None, answers.look)
    finally:
        answers.close()


def _known_visits(samples: Path | None, earlier: Path | None) -> int:
    """How many of the first visits in `samples` are those in `earlier`, which the base holds."""
    from calibrate.journal import read_journal

    if samples is None or earlier is None:
        return 0
    both = zip(read_journal(samples)[1], read_journal(earlier)[1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0].to_line() == pair[1].to_line(), both))


def _updated(wanted: Wanted, base: HardwareProfile, out: Path, n_known: int) -> HardwareProfile:
    """`base` brought up to date by the samples beside `out`, the first `n_known` of which it holds."""
    from calibrate.drift import fitted_samples
    from calibrate.journal import read_journal, samples_path
    from calibrate.refit import updated_profile
    from calibrate.wanted import item_name

    machine, visits = read_journal(samples_path(out))
    deciding = {item.name for item in wanted.items}
    taken, new = (fitted_samples(machine, visits, since=since) for since in (0, n_known))
    keys = frozenset(s.key for s in taken if item_name(s) in deciding)
    return updated_profile(base, out.stem, machine, taken, keys, shared=wanted.shared, new=new)


def _require_bounds(world_size: int, budget_s: float) -> None:
    if world_size < 1:
        raise UsageError(f"world_size({world_size}) must be at least 1")
    if not 0 < budget_s < 86400:
        raise UsageError(f"budget_s({budget_s:g}) must be above zero and below a day")


def fit_profile(out: Path, *, progress: Callable[[str], None] | None = None) -> HardwareProfile:
    """Fit the samples beside `out` and write the profile, whole or not at all.

    Raises InputFileError where there are none, MeasurementError where there are too few.
    """
    from calibrate.assemble import assemble_profile
    from calibrate.drift import fitted_samples
    from calibrate.journal import read_journal, samples_path
    from costmodel.hardware.store import save_profile

    machine, visits = read_journal(samples_path(out))
    samples = fitted_samples(machine, visits)
    if not samples:
        raise MeasurementError(
            f"{samples_path(out)} holds no usable sample; run `foreshard calibrate` again with a larger "
            "--budget"
        )
    profile = assemble_profile(out.stem, machine, samples, progress=progress)
    save_profile(profile, out)
    return profile


def _launch(
    settings: object,
    world_size: int,
    budget_s: float,
    progress: Callable[[str], None] | None,
    hosts: Hosts | None,
    look: Callable[[], None] | None = None,
) -> None:
    """Run the ranks and wait; `look` is called meanwhile."""
    from calibrate.launch import run_ranks
    from calibrate.worker import Settings

    assert isinstance(settings, Settings)
    start = time.monotonic()
    last = [0]

    def tick() -> None:
        if look is not None:
            look()
        seconds = int(time.monotonic() - start)
        if progress is not None and seconds >= last[0] + 5:
            last[0] = seconds
            progress(f"measuring, {seconds} s of about {budget_s:g} s")

    run_ranks(
        "calibrate.worker",
        settings.to_arguments(),
        world_size=world_size,
        timeout_s=float(os.environ.get("FORESHARD_CALIBRATE_TIMEOUT_S", budget_s + _GRACE_S)),
        signs=settings.samples,
        progress=tick,
        hosts=hosts,
    )
