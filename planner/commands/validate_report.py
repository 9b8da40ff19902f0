"""`foreshard validate report`: results of validation, of one or several machines, as one accuracy report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Json

if TYPE_CHECKING:
    from planner.validation.accuracy.report import AccuracyReport

__all__ = ["command"]


def command(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="Files of `validate published --json`, `validate run --json` or `validate report --json`."
        ),
    ],
    html: Annotated[Path | None, typer.Option("--html", help="Write one HTML file with plots.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write the tables as markdown.")] = None,
    readme: Annotated[
        Path | None,
        typer.Option("--readme", help="Rewrite the figures between the accuracy markers of this file."),
    ] = None,
    json: Json = False,
) -> None:
    """Error and ranking figures by source, GPU, family, kind of parallelism and GPU count, each beside a
    forecast without skill; the worst rows with their reasons. Results of several machines are merged."""
    from costmodel.files import write_whole
    from planner.render import progress
    from planner.validation.accuracy.report import accuracy_report
    from planner.validation.accuracy.writing import to_markdown, update_readme, write_html

    report = accuracy_report(results)
    if html is not None:
        progress(f"wrote {write_html(report, html)}")
    if markdown is not None:
        write_whole(markdown, to_markdown(report))
        progress(f"wrote {markdown}")
    if readme is not None:
        update_readme(report, readme)
        progress(f"wrote the accuracy part of {readme}")
    if json:
        print(report.to_report().to_json())
    else:
        _show(report)


def _show(report: AccuracyReport) -> None:
    from planner.render import print_table
    from planner.validation.accuracy.document import sections
    from planner.validation.accuracy.writing import headline

    for line in headline(report):
        print(line)
    for section in sections(report):
        for table in section.tables if section.brief else ():
            print_table(table.headers, table.rows, title=table.title)
