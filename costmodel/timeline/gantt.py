"""A Gantt plot of a step: one row per rank and stream, fixed colours. matplotlib is imported on use."""

from __future__ import annotations

from pathlib import Path

from costmodel.engine import Run
from costmodel.files import write_figure

__all__ = ["COLOURS", "write_gantt"]

COLOURS = {
    "F": "#4c78a8",
    "B": "#f58518",
    "I": "#e8a33d",
    "W": "#b279a2",
    "optimizer": "#54a24b",
    "transfer": "#9d9d9d",
    "reduce": "#e45756",
    "gather": "#72b7b2",
}
"""Kind of action -> colour."""


def write_gantt(timeline: Run, path: Path) -> Path:
    """Write the timeline as a PNG and return its path."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = sorted({(a.rank, a.stream != "compute", a.stream) for a in timeline.actions})
    place = {(rank, stream): i for i, (rank, _, stream) in enumerate(rows)}
    figure = Figure(figsize=(10, 0.6 + 0.45 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for i, action in enumerate(timeline.actions):
        width_ms = 1e3 * (timeline.end_s[i] - timeline.start_s[i])
        if width_ms > 0:
            axes.barh(
                place[action.rank, action.stream],
                width_ms,
                left=1e3 * timeline.start_s[i],
                color=COLOURS.get(action.kind, "#cccccc"),
                edgecolor="white",
                linewidth=0.3,
            )
    axes.set_yticks(range(len(rows)), [f"rank {rank} {stream}" for rank, _, stream in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    seen = {a.kind for a in timeline.actions}
    axes.legend(
        handles=[Patch(color=c, label=k) for k, c in COLOURS.items() if k in seen],
        fontsize=7,
        ncols=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.25),
    )
    return write_figure(path, figure)
