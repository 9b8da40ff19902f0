"""One-file HTML reports: tables and embedded plots, no outside resources."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from planner.render import bytes_text, duration, legend, percent

if TYPE_CHECKING:
    from costmodel.predict import Prediction
    from planner.search import SearchResult
    from planner.validation.scoring import Report

__all__ = [
    "Page",
    "PageTable",
    "prediction_tables",
    "report_tables",
    "search_table",
    "write_page",
    "write_prediction_html",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table of texts."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What one report shows."""

    title: str
    lead: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    images: Sequence[Path] = field(default_factory=tuple)


def write_page(page: Page, path: Path) -> Path:
    """Render the page into one HTML file (atomically) and return its path."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    from costmodel.files import write_whole

    environment = Environment(
        loader=PackageLoader("planner", "templates"), autoescape=select_autoescape(default=True)
    )
    html = environment.get_template("report.html.jinja").render(
        title=page.title,
        lead=page.lead,
        tables=page.tables,
        images=[
            {"title": p.stem, "data": base64.b64encode(p.read_bytes()).decode("ascii")} for p in page.images
        ],
        legend=legend(),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return write_whole(path, html)


def prediction_tables(p: Prediction) -> list[PageTable]:
    """Breakdown and memory of one prediction."""
    return [
        PageTable(
            title=f"{p.model} as {p.plan}: where a step of {duration(p.step_time_s)} goes",
            headers=["part", "time", "share"],
            rows=[
                [part, duration(s), percent(s / p.step_time_s)] for part, s in p.breakdown_s.items() if s > 0
            ],
        ),
        PageTable(
            title="peak memory per stage",
            headers=["stage", "peak", "parameters", "gradients", "optimizer", "activations"],
            rows=[
                [
                    str(m.stage),
                    bytes_text(m.peak_memory_bytes),
                    bytes_text(m.parameters),
                    bytes_text(m.gradients),
                    bytes_text(m.optimizer),
                    bytes_text(m.activations),
                ]
                for m in p.memory
            ],
        ),
    ]


def search_table(result: SearchResult, *, top: int = 15) -> PageTable:
    """The ranked plans of a search."""
    return PageTable(
        title=f"{len(result.ranked)} feasible plans of {result.n_considered} considered",
        headers=["plan", "step", "90 % interval", "memory", "why it loses"],
        rows=[
            [
                str(r.prediction.plan),
                duration(r.prediction.step_time_s),
                f"{duration(r.prediction.step_time_low_s)} .. {duration(r.prediction.step_time_high_s)}",
                bytes_text(r.prediction.peak_memory_bytes),
                r.why,
            ]
            for r in result.ranked[:top]
        ],
    )


def report_tables(report: Report) -> list[PageTable]:
    """Summary and rows of a validation report."""
    return [
        PageTable(
            title="summary",
            headers=["by", "key", "n", "MAPE", "bias", "tau", "regret"],
            rows=[
                [
                    s.by,
                    s.key,
                    str(s.n),
                    percent(s.mape),
                    percent(s.bias, sign=True),
                    "-" if s.kendall_tau is None else f"{s.kendall_tau:.2f}",
                    percent(s.top1_regret),
                ]
                for s in report.summary
            ],
        ),
        PageTable(
            title="rows",
            headers=["row", "group", "measured", "predicted", "error"],
            rows=[
                [r.id, r.group, f"{r.measured:.4g}", f"{r.predicted:.4g}", percent(r.error, sign=True)]
                for r in report.rows
                if r.skipped is None
            ],
        ),
    ]


def write_prediction_html(prediction: Prediction, path: Path) -> Path:
    """One prediction as an HTML file."""
    return write_page(
        Page(
            title=f"{prediction.model} on {prediction.hardware.n_devices} x {prediction.hardware.name}",
            lead=[
                f"Plan {prediction.plan}: {duration(prediction.step_time_s)} a step, 90 % interval "
                f"{duration(prediction.step_time_low_s)} to {duration(prediction.step_time_high_s)}.",
                *prediction.warnings,
            ],
            tables=prediction_tables(prediction),
        ),
        path,
    )
