"""An accuracy report as one HTML file, as markdown, and as the README's part between its markers."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from costmodel.errors import InputFileError
from costmodel.files import write_whole
from planner.render import legend, percent
from planner.reporting import PageTable
from planner.validation.accuracy.document import (
    Section,
    bias_text,
    memory_table,
    ranking_table,
    sections,
    tau_text,
    with_no_skill,
    worst_table,
)
from planner.validation.accuracy.figures import MIN_PLANS, Figures, scale_order
from planner.validation.accuracy.report import NO_SKILL, AccuracyReport
from planner.validation.accuracy.sources import named_sources

__all__ = ["BEGIN", "END", "headline", "readme_part", "to_html", "to_markdown", "update_readme", "write_html"]

BEGIN = (
    "<!-- accuracy of published runs: written by `foreshard validate report RESULTS --readme README.md` -->"
)
END = "<!-- accuracy of published runs: end -->"
_FEW = 20
"""Kinds of parallelism, families and GPUs with fewer rows are left to the whole report."""
_KINDS = {"scale": "GPUs", "strategy": "parallelism", "family": "family", "gpu": "GPU"}


def headline(report: AccuracyReport) -> list[str]:
    """The report in a few sentences."""
    figures = report.overall
    ours = figures.ours
    files = ", ".join(dict.fromkeys(_name(result.details) or result.file for result in report.results))
    lines = [
        f"{ours.n + ours.n_skipped:,} rows of {files}, taken {report.measured_on}: {ours.n:,} forecast, "
        f"each other one with its reason; median error {_pair(figures, 'median_ape')}, mean "
        f"{_pair(figures, 'mape')}, bias {bias_text(figures)}, "
        f"{percent(ours.interval_coverage)} inside the 90 % interval."
    ]
    if ours.n_groups:
        lines.append(
            f"Choosing among at least {MIN_PLANS} plans ({ours.n_groups} groups): the best one is picked in "
            f"{_pair(figures, 'best_picked_fraction')}, mean regret {_pair(figures, 'top1_regret')}, "
            f"Kendall's tau {tau_text(figures)}."
        )
    if figures.no_skill is not None:
        lines.append(f"In brackets: {NO_SKILL}.")
    return lines


def _name(details: object) -> str:
    table = details.get("table") if isinstance(details, dict) else None
    return str(table["name"]) if isinstance(table, dict) and "name" in table else ""


def _pair(figures: Figures, name: str) -> str:
    return with_no_skill(figures, lambda s: getattr(s, name), percent)


def to_markdown(report: AccuracyReport) -> str:
    """All sections but their plots."""
    lines = [
        "# Accuracy",
        "",
        *_paragraphs(headline(report)),
        f"Written {report.written:%Y-%m-%d %H:%M} UTC.",
        "",
    ]
    for section in sections(report):
        lines += [f"## {section.title}", "", *_paragraphs(section.text)]
        for table in section.tables:
            lines += [*_paragraphs([f"*{table.title}*"] if table.title else []), *_markdown_table(table)]
    return "\n".join(lines).rstrip() + "\n"


def _paragraphs(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in (text, "")]


def _markdown_table(table: PageTable) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_cell(cell) for cell in cells) + " |"

    return [line(table.headers), "|---" * len(table.headers) + "|", *(line(row) for row in table.rows), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def to_html(report: AccuracyReport) -> str:
    """The whole report with its plots, in one document that loads nothing."""
    from jinja2 import Environment, PackageLoader, select_autoescape

    environment = Environment(
        loader=PackageLoader("planner", "templates"), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("accuracy.html.jinja").render(
        title=f"Accuracy, {report.measured_on}",
        lead=headline(report),
        sections=[_drawn(section) for section in sections(report)],
        legend=legend(),
        written=f"{report.written:%Y-%m-%d %H:%M} UTC",
    )


def _drawn(section: Section) -> dict[str, object]:
    images = [
        {"title": title, "data": base64.b64encode(plot()).decode("ascii")} for title, plot in section.plots
    ]
    return {"title": section.title, "text": section.text, "tables": section.tables, "images": images}


def write_html(report: AccuracyReport, path: Path) -> Path:
    """Write the HTML file atomically."""
    write_whole(path, to_html(report))
    return path


def readme_part(report: AccuracyReport) -> str:
    """What stands between the markers: headline, choice of plans, sources, kinds, memory, the worst ten."""
    known = [source.title for source in named_sources()]
    titles = {f.ours.key: f for f in report.by("title")}
    fitted = {source.title: source.fitted for source in named_sources()}
    named = [titles[title] for title in known if title in titles]
    covered = {prefix for source in named_sources() for prefix in source.prefixes}
    others = [f for f in report.by("source") if f.ours.key not in covered]
    lines = _paragraphs(headline(report))
    if report.overall.ours.n_groups:
        lines += _markdown_table(ranking_table([report.overall, *named, *others], "choosing a plan"))
    lines += _markdown_table(_short_table([*named, *others], fitted))
    lines += _markdown_table(_kinds_table(report))
    if report.of_memory:
        lines += _markdown_table(memory_table(report.of_memory))
    worst = _markdown_table(worst_table(report.worst, "worst"))
    lines += ["<details><summary>The worst ten, and why</summary>", "", *worst, "</details>"]
    return "\n".join(lines)


def _short_table(figures: Sequence[Figures], fitted: dict[str, str]) -> PageTable:
    return PageTable(
        title="",
        headers=["source", "rows", "mean error", "median", "bias", "in interval", "fitted on it"],
        rows=[
            [
                f.ours.key,
                str(f.ours.n),
                _pair(f, "mape"),
                _pair(f, "median_ape"),
                percent(f.ours.bias, sign=True),
                percent(f.ours.interval_coverage),
                fitted.get(f.ours.key, "none"),
            ]
            for f in figures
            if f.ours.n
        ],
    )


def _kinds_table(report: AccuracyReport) -> PageTable:
    """Errors by GPU count, kind of parallelism, family and GPU, where there are enough rows."""
    rows = []
    for label, name in _KINDS.items():
        figures = [f for f in report.by(label) if f.ours.n >= _FEW]
        if label == "scale":
            figures.sort(key=lambda f: scale_order(f.ours.key))
        for f in figures:
            cells = [_pair(f, "mape"), _pair(f, "median_ape"), percent(f.ours.bias, sign=True)]
            rows.append([f"{name}: {f.ours.key}", str(f.ours.n), *cells])
    return PageTable(
        title="", headers=[f"kind (at least {_FEW} rows)", "rows", "mean error", "median", "bias"], rows=rows
    )


def update_readme(report: AccuracyReport, path: Path) -> None:
    """Put `readme_part` between the markers of the file; all else stays as it is.

    Raises InputFileError where the file cannot be read or does not hold each marker once, in order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: {error}; give a markdown file that is there") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or text.count(BEGIN) > 1 or text.count(END) > 1:
        raise InputFileError(
            f"{path}: holds the markers {text.count(BEGIN)} and {text.count(END)} times, or in the wrong "
            f"order; it needs one line {BEGIN!r} and below it one line {END!r}"
        )
    write_whole(path, f"{before}{BEGIN}\n\n{readme_part(report)}\n\n{END}{after}")
