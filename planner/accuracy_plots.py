"""Plots of an accuracy report as PNG bytes: ours in colour, the no-skill forecast in grey."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from planner.validation.accuracy.figures import Figures
    from planner.validation.scoring import ScoredRow, SummaryRow

__all__ = ["error_boxes", "error_curve", "ranking_bars", "reliability_curve"]

_OURS, _NO_SKILL = "#4c78a8", "#9d9d9d"
_CLIP = 1.5
"""Errors beyond +150 % are drawn there."""


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=columns > 1)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # without the date, the same figures give the same bytes
    figure.savefig(buffer, dpi=110, format="png", metadata={"Software": None})
    return buffer.getvalue()


def ranking_bars(figures: Sequence[Figures]) -> bytes:
    """Best picked, mean regret and tau, one pair of bars each."""
    panels: list[tuple[str, Callable[[SummaryRow], float | None], float]] = [
        ("best picked, %", lambda s: s.best_picked_fraction, 100.0),
        ("mean regret, %", lambda s: s.top1_regret, 100.0),
        ("Kendall's tau", lambda s: s.kendall_tau, 1.0),
    ]
    figure, all_axes = _figure(9.0, 1.2 + 0.38 * len(figures), len(panels))
    places = np.arange(len(figures))[::-1]
    for axes, (title, value, scale) in zip(all_axes, panels, strict=True):
        ours = [value(f.ours) for f in figures]
        other = [value(f.no_skill) if f.no_skill is not None else None for f in figures]
        for values, shift, colour, label in (
            (ours, 0.2, _OURS, "ours"),
            (other, -0.2, _NO_SKILL, "no skill"),
        ):
            widths = [np.nan if v is None else scale * v for v in values]
            axes.barh(places + shift, widths, height=0.36, color=colour, label=label)
        axes.set_title(title, fontsize=9)
        axes.axvline(0.0, color="black", linewidth=0.6)
    all_axes[0].set_yticks(places, ["all" if f.ours.by == "overall" else f.ours.key for f in figures])
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=7)
    return _png(figure)


def error_boxes(rows: Sequence[ScoredRow], by: str, keys: Sequence[str]) -> bytes:
    """Signed errors by a label: quartiles, the middle 90 %, the median of the no-skill forecast's."""
    members: dict[str, list[ScoredRow]] = {key: [] for key in keys}
    for row in rows:
        if row.skipped is None and row.label(by) in members:
            members[row.label(by)].append(row)
    shown = {key: found for key, found in members.items() if found}
    figure, axes = _figure(8.0, 1.0 + 0.26 * max(2, len(shown)))
    places = np.arange(len(shown))[::-1]
    for place, found in zip(places, shown.values(), strict=True):
        errors = np.clip([100 * r.error for r in found], -100, 100 * _CLIP)
        low, left, middle, right, high = np.quantile(errors, [0.05, 0.25, 0.5, 0.75, 0.95])
        axes.plot([low, high], [place, place], color=_OURS, linewidth=1)
        axes.barh(place, right - left, left=left, height=0.6, color=_OURS, alpha=0.6)
        axes.plot([middle, middle], [place - 0.3, place + 0.3], color="black", linewidth=1)
        others = [r.baseline_value / r.measured - 1 for r in found if r.baseline_value and r.measured]
        if others:
            of_others = float(np.clip(100 * np.median(others), -100, 100 * _CLIP))
            axes.plot(of_others, place, "D", color=_NO_SKILL, markersize=5)
    axes.axvline(0.0, color="black", linewidth=0.6)
    axes.set_yticks(
        places, [f"{key or 'not said'} ({len(found)})" for key, found in shown.items()], fontsize=7
    )
    axes.set_xlabel("error, % (box: quartiles; line: middle 90 %; diamond: median of no skill)")
    axes.set_xlim(-105, 100 * _CLIP + 5)
    return _png(figure)


def error_curve(rows: Sequence[ScoredRow]) -> bytes:
    """Share of the rows whose error is at most so large, both forecasts over the rows that have both."""
    figure, axes = _figure(6.4, 3.6)
    both = [r for r in rows if r.skipped is None and r.measured and r.baseline_value is not None]
    mine = both or [r for r in rows if r.skipped is None]
    curves = [(np.abs([r.error for r in mine]), _OURS, "ours")]
    if both:
        others = [r.baseline_value / r.measured - 1 for r in both if r.baseline_value and r.measured]
        curves.append((np.abs(others), _NO_SKILL, "no skill"))
    for errors, colour, label in curves:
        if len(errors):
            axes.plot(
                100 * np.sort(errors),
                100 * np.arange(1, len(errors) + 1) / len(errors),
                color=colour,
                label=label,
            )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_xlabel("error at most, %")
    axes.set_ylabel("rows, %")
    axes.legend()
    return _png(figure)


def reliability_curve(bins: Sequence[Mapping[str, Any]]) -> bytes:
    """How often the first of a pair was faster, over the probability it was given."""
    figure, axes = _figure(4.4, 4.0)
    axes.plot([0, 100], [0, 100], ":", color="grey")
    axes.plot(
        [100 * b["mean_probability"] for b in bins],
        [100 * b["share_shorter"] for b in bins],
        "o-",
        color=_OURS,
    )
    axes.set_xlabel("P(A is faster), %")
    axes.set_ylabel("A was faster, % of pairs")
    return _png(figure)
