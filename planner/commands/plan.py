"""`foreshard plan`: every feasible plan, ranked, and why the losers lost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import (
    Framework,
    Hardware,
    Json,
    Model,
    Optimizer,
    Overrides,
    Seq,
    TrustRemoteCode,
    split_numbers,
    split_words,
)

if TYPE_CHECKING:
    from planner.search import SearchResult

__all__ = ["command"]


def command(
    model: Model,
    hardware: Hardware,
    gpus: Annotated[int, typer.Option("--gpus", "-n", min=1, help="Devices to use.")],
    global_batch: Annotated[int, typer.Option("--global-batch", "-B", min=1, help="Samples per step.")],
    seq: Seq = None,
    framework: Framework = "pytorch",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Plans to show.")] = 12,
    explain: Annotated[
        tuple[str, str] | None, typer.Option("--explain", help="Two plans: why A beats B.")
    ] = None,
    schedules: Annotated[
        str, typer.Option("--schedules", help="Pipeline schedules to try, e.g. gpipe,1f1b,zb-h1.")
    ] = "gpipe,1f1b",
    zero: Annotated[str, typer.Option("--zero", help="ZeRO stages to try.")] = "0,1,2,3",
    recompute: Annotated[
        str, typer.Option("--recompute", help="Recomputation policies to try.")
    ] = "none,selective,full",
    vpp: Annotated[str, typer.Option("--vpp", help="Chunks per pipeline rank to try.")] = "1,2,3,4,6,8",
    tp: Annotated[str | None, typer.Option("--tp", help="Tensor-parallel degrees to try.")] = None,
    cp: Annotated[str | None, typer.Option("--cp", help="Context-parallel degrees to try.")] = None,
    ep: Annotated[str | None, typer.Option("--ep", help="Expert-parallel degrees to try.")] = None,
    offload: Annotated[
        str, typer.Option("--offload", help="What the host may take over where a plan does not fit without.")
    ] = "none,zero-offload,zero-infinity",
    max_micro_batch: Annotated[
        int, typer.Option("--max-micro-batch", min=1, help="Largest micro-batch to try.")
    ] = 64,
    rank_of: Annotated[
        str | None, typer.Option("--rank-of", help="A plan: how it stands among all feasible ones.")
    ] = None,
    pareto: Annotated[
        str, typer.Option("--pareto", help="Objectives of the front: step_time, memory, cost, energy, ...")
    ] = "step_time,memory",
    price: Annotated[
        list[str] | None, typer.Option("--price", help="Own price of a device-hour: NAME=USD (repeatable).")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Rank the feasible plans for N devices; say what excluded the others and why the losers lose.

    All plans of the space are priced in closed forms, the promising ones by the event engine.
    """
    from costmodel.graph.elsewhere import Tracer

    # first of all: it imports torch while this process imports the rest
    with Tracer(wanted="torch" not in sys.modules) as tracer:
        from planner.planning import plan
        from planner.prices import parse_prices
        from planner.search import SearchOptions

        options = SearchOptions(
            schedules=split_words("--schedules", schedules),
            zero_stages=split_numbers("--zero", zero),
            recompute=split_words("--recompute", recompute),
            vpp=split_numbers("--vpp", vpp),
            tp=split_numbers("--tp", tp) if tp else None,
            cp=split_numbers("--cp", cp) if cp else None,
            ep=split_numbers("--ep", ep) if ep else None,
            offload=split_words("--offload", offload),
            max_micro_batch_size=max_micro_batch,
        )

        search = plan(
            model,
            hardware=hardware,
            n_devices=gpus,
            global_batch_size=global_batch,
            seq_len=seq,
            framework=framework,
            optimizer=optimizer,
            overrides=set_,
            trust_remote_code=trust_remote_code,
            options=options,
            top=top,
            rank_of=rank_of,
            explain=explain,
            objectives=split_words("--pareto", pareto),
            prices=parse_prices(price),
            processes=2,
            tracer=tracer,
        )
    if json:
        from planner.render import print_json

        print_json(search.to_dict(top=None))
        return
    _show(search, top)


def _show(search: SearchResult, top: int) -> None:
    """The first plans, what would tell them apart, and what was asked of the search."""
    from planner.render import bytes_text, duration, percent, print_table, print_warnings

    print_table(
        ["plan", "step", "90 % interval", "memory", "bubble", "P(faster)", "why it loses"],
        [
            [
                str(r.prediction.plan),
                duration(r.prediction.step_time_s),
                f"{duration(r.prediction.step_time_low_s)} .. {duration(r.prediction.step_time_high_s)}",
                bytes_text(r.prediction.peak_memory_bytes),
                percent(r.prediction.bubble_fraction),
                percent(r.probability_best) if r.why else "",
                r.why,
            ]
            for r in search.ranked[:top]
        ],
        title=f"{search.n_feasible} feasible plans of {search.n_considered} considered "
        f"in {duration(search.search_time_s)}; the event engine priced {len(search.ranked)}"
        + ("" if search.proven else ", the others may hold a faster one"),
    )
    print("P(faster): probability that a plan is faster than the first")
    if search.ties:
        print(f"{len(search.ties)} of these cannot be told from the first.")
        for decides in search.deciding:
            print(f"To decide: {decides.measure} ({percent(decides.variance_share)} of the uncertainty)")
    if search.standing is not None:
        print(search.standing.text(search.ranked[0].prediction))
    if search.n_excluded:
        print_table(
            ["excluded because", "plans"], [[reason, str(n)] for reason, n in search.n_excluded.items()]
        )
    if search.explanation is not None:
        print(search.explanation.text())
    print_warnings(search.ranked[0].prediction.warnings)
