"""The accuracy report as sections of text, tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.render import percent
from planner.reporting import PageTable
from planner.validation.accuracy.figures import MIN_PLANS, Figures, scale_order
from planner.validation.accuracy.reasons import Reasoned
from planner.validation.accuracy.report import NO_SKILL, AccuracyReport

if TYPE_CHECKING:
    from planner.validation.scoring import SummaryRow

__all__ = [
    "Plot",
    "Section",
    "bias_text",
    "error_table",
    "memory_table",
    "ranking_table",
    "sections",
    "tau_text",
    "with_no_skill",
    "worst_table",
]

_NAMES = {
    "source": "source",
    "gpu": "GPU",
    "family": "model family",
    "strategy": "kind of parallelism",
    "scale": "GPU count",
    "task": "task",
}
Plot = Callable[[], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, what to say under it, tables, and plots (PNG bytes, drawn when asked for)."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    plots: Sequence[tuple[str, Plot]] = ()
    brief: bool = False
    """Whether a terminal shows it too."""


def sections(report: AccuracyReport) -> list[Section]:
    """The whole report, what users come for first: choosing among plans."""
    found = [_ranking(report), *(_errors(report, label) for label in _NAMES if report.by(label))]
    found.append(
        Section(
            title="The worst ten",
            text=[
                "Furthest off as a factor, too long or too short alike; reasons are derived from the rows."
            ],
            tables=[worst_table(report.worst, "worst rows")],
            brief=True,
        )
    )
    if len(report.by("source")) > 1:
        found.append(
            Section(
                title="The worst row of each source",
                tables=[worst_table(report.worst_of_sources, "worst of each source")],
            )
        )
    return [*found, *_certainty(report), *_memory(report), *_left_out(report), _results(report)]


def with_no_skill(
    figures: Figures, value: Callable[[SummaryRow], float | None], text: Callable[[float | None], str]
) -> str:
    """A figure and, in brackets, the no-skill forecast's: '9.9 % (61.2 %)'."""
    other = value(figures.no_skill) if figures.no_skill is not None else None
    return text(value(figures.ours)) + (f" ({text(other)})" if other is not None else "")


def bias_text(figures: Figures) -> str:
    """The bias, signed, and the no-skill forecast's."""
    return with_no_skill(figures, lambda s: s.bias, _signed)


def tau_text(figures: Figures) -> str:
    """Kendall's tau, and the no-skill forecast's."""
    return with_no_skill(figures, lambda s: s.kendall_tau, lambda v: "-" if v is None else f"{v:.2f}")


def _signed(value: float | None) -> str:
    return percent(value, sign=True)


def ranking_table(figures: Sequence[Figures], name: str, title: str = "") -> PageTable:
    """Best picked, mean regret and tau of those with groups to rank."""
    return PageTable(
        title=title,
        headers=[name, "groups", "best picked", "mean regret", "tau"],
        rows=[
            [
                "all" if f.ours.by == "overall" else f.ours.key,
                str(f.ours.n_groups),
                with_no_skill(f, lambda s: s.best_picked_fraction, percent),
                with_no_skill(f, lambda s: s.top1_regret, percent),
                tau_text(f),
            ]
            for f in figures
            if f.ours.n_groups
        ],
    )


def error_table(figures: Sequence[Figures], name: str, title: str = "") -> PageTable:
    """Errors, ranking and coverage of each."""
    return PageTable(
        title=title,
        headers=[
            *(name, "rows", "left out", "mean error", "median", "bias", "tau", "regret", "best picked"),
            *("groups", "in interval"),
        ],
        rows=[
            [
                "all" if f.ours.by == "overall" else f.ours.key,
                str(f.ours.n),
                str(f.ours.n_skipped),
                with_no_skill(f, lambda s: s.mape, percent),
                with_no_skill(f, lambda s: s.median_ape, percent),
                bias_text(f),
                tau_text(f),
                with_no_skill(f, lambda s: s.top1_regret, percent),
                with_no_skill(f, lambda s: s.best_picked_fraction, percent),
                str(f.ours.n_groups),
                percent(f.ours.interval_coverage),
            ]
            for f in figures
        ],
    )


def worst_table(worst: Sequence[Reasoned], title: str) -> PageTable:
    """Rows and why they are off."""
    return PageTable(
        title=title,
        headers=["row", "what", "measured", "forecast", "error", "reason"],
        rows=[
            [
                r.row.id,
                ", ".join(filter(None, (r.row.label("model"), _gpus(r), r.row.label("plan")))) or r.row.group,
                f"{r.row.measured:.4g} {r.row.metric}",
                f"{r.row.predicted:.4g}",
                _signed(r.row.error),
                r.reason,
            ]
            for r in worst
        ],
    )


def _gpus(reasoned: Reasoned) -> str:
    gpu, count = reasoned.row.label("gpu"), reasoned.row.label("n_gpus")
    return f"{count} x {gpu}" if gpu and count else gpu


def _ranking(report: AccuracyReport) -> Section:
    from planner.accuracy_plots import ranking_bars

    figures = [f for f in (report.overall, *report.by("source")) if f.ours.n_groups]
    anything = [f for f in report.any_choice if f.ours.n_groups]
    note = (
        f"Groups of one model, GPU count and batch with at least {MIN_PLANS} plans of one problem (GPU, type "
        "and framework as well). Best picked: how often the forecast's best plan was measured best; regret: "
        "how much longer its pick took than the best; tau: Kendall's, of the whole order. In brackets: "
        f"{NO_SKILL}; of plans that a forecast cannot tell apart it picks any."
    )
    if not figures:
        return Section(
            title="Choosing a plan", text=[note, "No group of these results has so many plans."], brief=True
        )
    tables = [ranking_table(figures, "source", "choosing a plan")]
    if anything:
        title = "the same in groups where GPU, type or framework may differ too"
        tables.append(ranking_table(anything, "source", title))
    plots = [("best picked, regret and tau by source", lambda: ranking_bars(figures))]
    return Section(title="Choosing a plan", text=[note], tables=tables, plots=plots, brief=True)


def _errors(report: AccuracyReport, label: str) -> Section:
    from planner.accuracy_plots import error_boxes, error_curve

    figures = report.by(label)
    if label == "scale":
        figures.sort(key=lambda f: scale_order(f.ours.key))
    keys = [f.ours.key for f in figures]
    name = _NAMES[label]
    first = label == "source"
    plots: list[tuple[str, Plot]] = [
        (f"errors by {name}", lambda: error_boxes(report.times, label, keys)),
    ]
    if first:
        plots.insert(0, ("share of rows within an error", lambda: error_curve(report.times)))
    return Section(
        title=f"Errors by {name}",
        tables=[error_table([report.overall, *figures] if first else figures, name, f"by {name}")],
        plots=plots,
        brief=label in ("source", "strategy", "scale"),
    )


def _certainty(report: AccuracyReport) -> list[Section]:
    from planner.accuracy_plots import reliability_curve

    table = report.reliability()
    if table is None:
        return []
    bins = [b for b in table["bins"] if b["n"]]
    return [
        Section(
            title="How sure",
            text=[
                f"P(plan A is faster than plan B) of {table['n_pairs']} pairs of plans of one problem, "
                "and how often it was; each pair counts both ways."
            ],
            tables=[
                PageTable(
                    title="pairs by P",
                    headers=["P(A faster)", "pairs", "mean P", "A was faster"],
                    rows=[
                        [
                            f"{percent(b['low'])} .. {percent(b['high'])}",
                            str(b["n"]),
                            percent(b["mean_probability"]),
                            percent(b["share_shorter"]),
                        ]
                        for b in bins
                    ],
                )
            ],
            plots=[("how often the plan given P was the faster one", lambda: reliability_curve(bins))],
        )
    ]


def _memory(report: AccuracyReport) -> list[Section]:
    if not report.of_memory:
        return []
    return [
        Section(
            title="Peak memory",
            text=["As the source read it (allocator or device); the no-skill forecast has no memory."],
            tables=[memory_table(report.of_memory)],
        )
    ]


def memory_table(figures: Sequence[Figures], title: str = "peak memory by source") -> PageTable:
    """Errors of peak memory."""
    return PageTable(
        title=title,
        headers=["peak memory of", "rows", "mean error", "median", "bias", "in interval"],
        rows=[
            [
                "all" if f.ours.by == "overall" else f.ours.key,
                str(f.ours.n),
                percent(f.ours.mape),
                percent(f.ours.median_ape),
                _signed(f.ours.bias),
                percent(f.ours.interval_coverage),
            ]
            for f in figures
        ],
    )


def _left_out(report: AccuracyReport) -> list[Section]:
    reasons = report.skipped_reasons()
    if not reasons:
        return []
    table = PageTable(
        title="rows without a forecast",
        headers=["because", "rows"],
        rows=[[reason, str(n)] for reason, n in reasons.items()],
    )
    return [Section(title="Left out", tables=[table])]


def _results(report: AccuracyReport) -> Section:
    rows = []
    for result in report.results:
        for environment in result.environments or ({},):
            versions = environment.get("versions") or {}
            machine = (environment.get(k) for k in ("gpu", "processor", "system", "python"))
            rows.append(
                [
                    result.file,
                    result.kind,
                    str(len(result.rows)),
                    result.written or "not said",
                    ", ".join(str(part) for part in machine if part) or "not said",
                    ", ".join(f"{name} {version}" for name, version in versions.items()) or "not said",
                    ", ".join(
                        f"{k} {environment[k]}"
                        for k in ("cores", "threads_per_rank", "pinned", "device", "cuda", "nccl")
                        if k in environment
                    ),
                ]
            )
    headers = ["file", "kind", "rows", "taken (UTC)", "machine", "software", "further"]
    return Section(
        title="Results and machines", tables=[PageTable(title="results", headers=headers, rows=rows)]
    )
