"""`foreshard trace`: the graph of a model and what it costs, without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.commands.options import Json, Model, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from costmodel.graph.model_graph import ModelGraph

__all__ = ["command"]


def command(
    model: Model,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            "--micro-batch", min=1, help="Samples per call; default: 1, or what module:callable returns."
        ),
    ] = None,
    seq: Seq = None,
    set_: Overrides = None,
    inference: Annotated[bool, typer.Option("--inference", help="Forward only.")] = False,
    attention: Annotated[
        str, typer.Option("--attention", help="as_run (as torch dispatches here), flash, unfused or eager.")
    ] = "as_run",
    hardware: Annotated[
        str | None, typer.Option("--hardware", "-H", help="Show intensity against this device's ridge.")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the graph to this JSON file.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Trace a model with torch.fx on fake tensors: operators, FLOP, bytes, parameters, activations."""
    from planner import api
    from planner.render import print_json, progress

    graph = api.trace(
        model,
        micro_batch_size=micro_batch,
        seq_len=seq,
        overrides=set_,
        training=not inference,
        attention=attention,
        trust_remote_code=trust_remote_code,
    )
    summary = api.graph_summary(graph)
    if save is not None:
        from costmodel.graph import save_graph

        save_graph(graph, save)
        progress(f"graph written to {save}")
    if json:
        print_json(summary)
        return
    _show(graph, summary, model=model, hardware=hardware)


def _show(graph: ModelGraph, summary: Mapping[str, Any], *, model: str, hardware: str | None) -> None:
    from planner import api
    from planner.render import bytes_text, count_text, duration, legend, print_table

    print_table(
        ["module", "count", "operators", "parameters", "forward FLOP", "backward FLOP", "saved"],
        [
            [
                m["name"],
                str(m["count"]),
                str(m["n_operators"]),
                count_text(m["parameters"]),
                count_text(m["flop_forward"]),
                count_text(m["flop_backward"]),
                bytes_text(m["saved_activation_bytes"]),
            ]
            for m in summary["modules"]
        ],
        title=f"{model}: {graph.micro_batch_size} x {graph.seq_len or 'sample'}; one instance a row",
    )
    print_table(
        ["kind", "calls", "FLOP", "bytes", "FLOP/byte"],
        [
            [
                k["kind"],
                str(k["calls"]),
                count_text(k["flop"]),
                bytes_text(k["bytes"]),
                f"{k['intensity']:.3g}",
            ]
            for k in api.operator_histogram(graph)
        ],
        title="operators by kind (forward + backward, all instances)",
        caption=legend(),
    )
    if summary["memory_timeline"]:
        highest = max(level["level_bytes"] for level in summary["memory_timeline"])
        print_table(
            ["module", "phase", "level", "held", "gradients", "temporary", ""],
            [
                [
                    level["module"],
                    level["phase"],
                    bytes_text(level["level_bytes"]),
                    bytes_text(level["activations_bytes"]),
                    bytes_text(level["gradients_bytes"]),
                    bytes_text(level["temporary_bytes"]),
                    "#" * round(30 * level["level_bytes"] / max(1, highest)),
                ]
                for level in summary["memory_timeline"]
            ],
            title="memory above model state over one step, nothing recomputed; highest instance of each row",
        )
    if hardware is not None:
        for dtype, ridge in api.ridges(hardware).items():
            print(f"ridge of {hardware}, {dtype}: {ridge:.3g} FLOP/byte")
    print(
        f"parameters {summary['parameters']:,}; forward {count_text(summary['flop_forward'])}FLOP, backward "
        f"{count_text(summary['flop_backward'])}FLOP; saved {bytes_text(summary['saved_activation_bytes'])}; "
        f"unmodelled {summary['unmodelled_fraction']:.2%} of bytes; {summary['n_operators']} operators; "
        f"traced by {graph.traced_by} in {duration(summary['trace_time_s'])}"
    )
    if unmodelled := summary["unmodelled_operators"]:
        names = ", ".join(f"{one['operator']} ({one['calls']} calls)" for one in unmodelled)
        share = summary["unmodelled_fraction"]
        print(f"warning: no cost rule, priced by the bytes they move: {names}; {share:.2%} of all bytes")
    for note in graph.notes:
        print(f"note: {note}")
