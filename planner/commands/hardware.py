"""`foreshard hardware list / show / import`: shipped and own profiles (`learn`: learning.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Json

if TYPE_CHECKING:
    from costmodel.hardware.network_schema import NetworkModel
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["app", "import_", "list_", "show", "show_profile"]

_MOST_PROBLEMS = 20
"""Lines of a table that are named when they are left out."""

app = typer.Typer(help="List, show, import and correct hardware profiles.", no_args_is_help=True)


@app.command("list")
def list_(json: Json = False) -> None:
    """List the shipped profiles: device, memory, what was fitted and from what."""
    from costmodel.hardware.store import list_profiles, load_profile
    from planner.render import bytes_text, print_json, print_table

    profiles = [load_profile(name) for name in list_profiles()]
    if json:
        print_json(
            [
                {
                    "name": p.name,
                    "aliases": list(p.aliases),
                    "created": str(p.created),
                    "source": p.source,
                    "memory_bytes": p.device.memory_bytes,
                    "n_fits": len(p.operators),
                }
                for p in profiles
            ]
        )
        return
    print_table(
        ["name", "architecture", "memory", "operator fits", "samples", "created"],
        [
            [
                p.name,
                p.device.architecture,
                bytes_text(p.device.memory_bytes),
                str(len(p.operators)),
                str(sum(f.n_samples for f in p.operators)),
                str(p.created),
            ]
            for p in profiles
        ],
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A shipped name or a profile file.")],
    plots: Annotated[
        Path | None, typer.Option("--plots", help="Folder for roofline, GEMM and busbw plots.")
    ] = None,
    json: Json = False,
) -> None:
    """Show one profile: datasheet, fits with their error, host costs, network."""
    from costmodel.hardware.store import load_profile
    from planner.render import print_json, progress

    profile = load_profile(name)
    if plots is not None:
        from planner.plots import write_profile_plots

        for path in write_profile_plots(profile, plots):
            progress(f"wrote {path}")
    if json:
        print_json(profile.model_dump(mode="json"))
    else:
        show_profile(profile)


@app.command("import")
def import_(
    operators: Annotated[
        list[Path] | None, typer.Option("--operators", help="Operator tables (CSV).")
    ] = None,
    collectives: Annotated[
        list[Path] | None, typer.Option("--collectives", help="Collective tables or nccl-tests logs.")
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", help="Only these GPUs.")] = None,
    transfer: Annotated[
        bool,
        typer.Option(
            "--transfer",
            help="Also GPUs that the tables lack: from their datasheet and the nearest measured GPU.",
        ),
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder for the profiles.")] = Path("profiles"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite profiles that are there.")] = False,
    json: Json = False,
) -> None:
    """Fit profiles from measured tables, one per GPU in them."""
    from planner import api
    from planner.render import print_json, progress

    left_out: list[str] = []
    written = api.import_hardware(
        operators=operators or [],
        collectives=collectives or [],
        gpus=gpu,
        out=out,
        force=force,
        transfer=transfer,
        on_problem=left_out.append,
    )
    if json:
        print_json({"written": [str(path) for path in written], "left_out": left_out})
    else:
        for problem in left_out[:_MOST_PROBLEMS]:
            progress(f"left out: {problem}")
        if len(left_out) > _MOST_PROBLEMS:
            progress(f"left out: {len(left_out) - _MOST_PROBLEMS} more lines; --json names all")
        for path in written:
            progress(f"wrote {path}")


def show_profile(profile: HardwareProfile, *, samples: Path | None = None) -> None:
    """Print a profile as tables; with `samples`, also measured against fitted collectives."""
    from planner.render import bytes_text, duration, percent, print_table, rate_text

    d = profile.device
    print(
        f"{profile.name} ({profile.source}, {profile.created}): {d.architecture} {d.kind}, "
        f"{bytes_text(d.memory_bytes)} at {rate_text(d.memory_bytes_per_s)}"
    )
    print_table(
        ["kind", "variant", "dtype", "timing", "samples", "residual", "from"],
        [
            [
                f.kind,
                f.variant,
                f.dtype,
                f.timing,
                str(f.n_samples),
                percent(f.residual.mape),
                f.transferred_from or "measured",
            ]
            for f in profile.operators
        ],
        title="operator fits (residual: cross-validated mean absolute error)",
    )
    if profile.host:
        print_table(
            ["host cost", "time", "spread"],
            [[k, duration(v.value_s), percent(v.spread)] for k, v in profile.host.items()],
        )
    if profile.network is not None:
        _show_network(profile.network)
    if profile.learnt is not None:
        from planner.commands.learning import show_learnt

        show_learnt(profile.learnt)
    if samples is not None:
        from calibrate.table import collective_table

        table = collective_table(samples)
        print_table(
            ["collective", "ranks", "size", "time", "algbw", "busbw", "fit", "error"],
            [
                [
                    r.op,
                    str(r.n_ranks),
                    bytes_text(r.size_bytes),
                    duration(r.time_s),
                    rate_text(r.algbw_bytes_per_s),
                    rate_text(r.busbw_bytes_per_s),
                    duration(r.fit_s),
                    percent(r.error_fraction, sign=True),
                ]
                for r in table.rows
            ],
            title="collectives (busbw as nccl-tests defines it)",
        )
        print(table.verdict)


def _show_network(network: NetworkModel) -> None:
    """Its links, the default first on either side, and which collectives were measured over each."""
    from planner.render import duration, print_table, rate_text

    measured: dict[str, set[str]] = {}
    for fit in network.fits:
        measured.setdefault(fit.link, set()).add(fit.op)
    print_table(
        ["link", "joins", "bandwidth", "interfaces", "latency", "collectives fitted"],
        [
            [
                link.name,
                "ranks of a node" if link in network.intra else "nodes",
                rate_text(link.bytes_per_s),
                str(link.nics_per_node) if link in network.inter else "",
                duration(link.latency_s),
                ", ".join(sorted(measured.get(link.name, ()))) or "none",
            ]
            for link in (*network.intra, *network.inter)
        ],
        title=f"network: {network.ranks_per_node} ranks a node; nominal bandwidth of a rank or interface",
    )
