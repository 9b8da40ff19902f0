"""Plots: predicted against measured, scaling curves, a profile's fits. matplotlib is imported on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.files import write_figure

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from planner.validation.scoring import Report
    from planner.whatif import Curve, ScalingPoint

__all__ = ["scaling_curves", "scatter", "study_curves", "write_profile_plots"]


def _figure(width: float = 6.4, height: float = 4.8) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def scatter(report: Report, path: Path) -> Path:
    """Predicted against measured on log axes, coloured by source, with the diagonal and +-20 % lines."""
    figure, axes = _figure()
    rows = [r for r in report.rows if r.skipped is None]
    for source in sorted({r.source for r in rows}):
        mine = [r for r in rows if r.source == source]
        axes.plot(
            [r.measured for r in mine], [r.predicted for r in mine], ".", markersize=4, label=source[:40]
        )
    values = [v for r in rows for v in (r.measured, r.predicted) if v]
    if values:
        ends = np.array([min(values), max(values)])
        for factor, style in ((1.0, "-"), (1.2, ":"), (1 / 1.2, ":")):
            axes.plot(ends, ends * factor, style, color="grey", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
    axes.set_xlabel("measured")
    axes.set_ylabel("predicted (dotted: +-20 %)")
    if len({r.source for r in rows}) <= 12:
        axes.legend(fontsize=6)
    return write_figure(path, figure)


def scaling_curves(points: Sequence[ScalingPoint], path: Path) -> Path:
    """Throughput of the best plan over device count, one curve per hardware, with 90 % intervals."""
    figure, axes = _figure()
    for name in sorted({p.hardware for p in points}):
        mine = [(p.n_devices, p.prediction) for p in points if p.hardware == name and p.prediction]
        counts = [n for n, _ in mine]
        middle = np.array([p.samples_per_s for _, p in mine])
        low = np.array([p.plan.global_batch_size / p.step_time_high_s for _, p in mine])
        high = np.array([p.plan.global_batch_size / p.step_time_low_s for _, p in mine])
        axes.errorbar(counts, middle, yerr=[middle - low, high - middle], marker="o", capsize=3, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("devices")
    axes.set_ylabel("samples/s of the best plan (bars: 90 %)")
    axes.legend()
    return write_figure(path, figure)


_TERM_COLOURS = {
    "compute": "#4c78a8",
    "communication": "#e45756",
    "bubble": "#9d9d9d",
    "host": "#f58518",
    "offload": "#b279a2",
}
"""Term of a step -> colour, as in the timeline's plots."""


def study_curves(points: Sequence[ScalingPoint], curves: Sequence[Curve], path: Path) -> Path:
    """One row per curve of a study: throughput with its 90 % interval, and what the step is spent on.

    Points that form no curve are drawn over the device count.
    """
    from matplotlib.figure import Figure

    from planner.whatif.terms import terms_s

    if not curves:
        return scaling_curves(points, path)
    figure = Figure(figsize=(10, 3.2 * len(curves)), layout="constrained")
    rows = figure.subplots(len(curves), 2, squeeze=False)
    for (rate, share), curve in zip(rows, curves, strict=True):
        xs = [x for x, _ in curve.points]
        predictions = [p.prediction for _, p in curve.points if p.prediction is not None]
        middle = np.array([p.samples_per_s for p in predictions])
        low = np.array([p.plan.global_batch_size / p.step_time_high_s for p in predictions])
        high = np.array([p.plan.global_batch_size / p.step_time_low_s for p in predictions])
        rate.fill_between(xs, low, high, color=_TERM_COLOURS["compute"], alpha=0.2, linewidth=0)
        rate.plot(xs, middle, "o-", color=_TERM_COLOURS["compute"])
        rate.set_yscale("log")
        rate.set_ylabel("samples/s (band: 90 %)")
        terms = [terms_s(p.breakdown_s) for p in predictions]
        names = [name for name in _TERM_COLOURS if any(t[name] > 0 for t in terms)]
        parts = [
            [100 * t[name] / p.step_time_s for t, p in zip(terms, predictions, strict=True)] for name in names
        ]
        share.stackplot(xs, parts, labels=names, colors=[_TERM_COLOURS[name] for name in names])
        share.set_ylabel("% of the step")
        share.set_ylim(0, 100)
        share.legend(fontsize=7, loc="lower left")
        for axes in (rate, share):
            axes.set_xscale("log", base=2)
            axes.set_xlabel(curve.axis)
        rate.set_title(", ".join(f"{name} {value}" for name, value in curve.held), fontsize=8, loc="left")
    return write_figure(path, figure)


def write_profile_plots(profile: HardwareProfile, folder: Path) -> list[Path]:
    """Roofline with GEMM attainable rates, GEMM efficiency over size, and bus bandwidth over size."""
    paths = [_roofline(profile, folder / f"{profile.name}-roofline.png")]
    if profile.network is not None:
        paths.append(_busbw(profile, folder / f"{profile.name}-busbw.png"))
    return paths


def _roofline(profile: HardwareProfile, path: Path) -> Path:
    from costmodel.hardware.pricing import operator_times

    figure, axes = _figure()
    intensity = np.logspace(-1, 4, 100)
    device = profile.device
    sizes = np.unique(np.round(np.logspace(1, 4, 40)))
    for dtype, peak in sorted(device.peak_flop_per_s.items()):
        axes.plot(
            intensity, np.minimum(peak, intensity * device.memory_bytes_per_s), label=f"{dtype} datasheet"
        )
    for dtype in sorted({f.dtype for f in profile.operators if f.kind == "gemm"}):
        time_s = operator_times(profile, "gemm", "nt", dtype, {"m": sizes, "n": sizes, "k": sizes}).median_s
        flop = 2 * sizes**3
        width = 2.0 if dtype in ("fp16", "bf16") else 1.0 if "8" in dtype else 4.0
        axes.plot(flop / (3 * width * sizes**2), flop / time_s, ".-", label=f"{dtype} square GEMM, fitted")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP/byte")
    axes.set_ylabel("FLOP/s")
    axes.set_title(profile.name)
    axes.legend(fontsize=7)
    return write_figure(path, figure)


def _busbw(profile: HardwareProfile, path: Path) -> Path:
    from costmodel.hardware.collectives import busbw_bytes_per_s, collective_times
    from costmodel.hardware.kinds import CollectiveGroup

    assert profile.network is not None
    figure, axes = _figure()
    size = np.logspace(10, 30, 61, base=2)
    n = max(2, profile.network.ranks_per_node)
    for op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        time_s = collective_times(profile.network, op, size, CollectiveGroup(n_ranks=n)).median_s
        axes.plot(size, busbw_bytes_per_s(op, size, time_s, n) / 1e9, label=f"{op}, {n} ranks")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("bytes")
    axes.set_ylabel("bus bandwidth, GB/s per rank")
    axes.set_title(profile.name)
    axes.legend(fontsize=7)
    return write_figure(path, figure)
