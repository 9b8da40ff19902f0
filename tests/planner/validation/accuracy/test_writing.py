"""The report as HTML, markdown and the README's part; the command that writes them."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from costmodel.errors import InputFileError
from planner.cli import main
from planner.validation.accuracy.document import sections
from planner.validation.accuracy.report import AccuracyReport, accuracy_report
from planner.validation.accuracy.sources import named_sources
from planner.validation.accuracy.writing import BEGIN, END, to_html, to_markdown, update_readme
from tests.planner.validation.accuracy.made import four_plans, row, run_result, written

RELIABILITY = {
    "overall": {
        "n_pairs": 3,
        "bins": [
            {"low": 0.0, "high": 0.5, "n": 3, "mean_probability": 0.2, "share_shorter": 0.3},
            {"low": 0.5, "high": 1.0, "n": 3, "mean_probability": 0.8, "share_shorter": 0.7},
        ],
    }
}


@pytest.fixture
def result(tmp_path: Path) -> Path:
    rows = [
        *four_plans("sc21"),
        *four_plans("mine", shift=3.0),
        row("lost", 1.0, None, source="mine"),
        row("m", 10.0, 12.0, source="sc21", metric="peak_mem_gb"),
    ]
    details = {"table": {"name": "runs.csv", "rows": 9}, "reliability": RELIABILITY}
    return written(tmp_path / "r.json", rows, environment={"time": "2026-05-06T07:08:09Z"}, **details)


@pytest.fixture
def report(result: Path) -> AccuracyReport:
    return accuracy_report([result], now=datetime(2026, 5, 7, tzinfo=UTC))


def test_choosing_a_plan_comes_first(report: AccuracyReport) -> None:
    found = sections(report)
    assert found[0].title == "Choosing a plan"
    overall = found[0].tables[0].rows[0]
    assert overall == ["all", "2", "0.0 % (25.0 %)", "5.0 % (101.2 %)", "0.67 (0.00)"]
    titles = [section.title for section in found]
    for name in ("source", "GPU", "model family", "GPU count"):
        assert f"Errors by {name}" in titles
    assert titles[-4:] == ["How sure", "Peak memory", "Left out", "Results and machines"]


def test_html_is_one_file_with_its_plots(report: AccuracyReport) -> None:
    html = to_html(report)
    images = re.findall(r'src="(.*?)"', html)
    n_plots = sum(len(section.plots) for section in sections(report))
    assert len(images) == n_plots >= 6
    for image in images:
        kind, _, data = image.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "http" not in html
    assert "2026-05-06" in html  # the day of the forecasts
    assert "2026-05-07 00:00 UTC" in html  # the day of the report


def test_names_in_tables_are_escaped(tmp_path: Path) -> None:
    rows = [row("<b>", 1.0, 1.5, source="a|b", gpu="<script>")]
    report = accuracy_report([written(tmp_path / "r.json", rows)])
    assert "<script>" not in to_html(report)
    assert "a\\|b" in to_markdown(report)


def test_markdown_has_every_table(report: AccuracyReport) -> None:
    text = to_markdown(report)
    tables = [t for section in sections(report) for t in section.tables]
    assert text.count("\n|---") == len(tables)
    for line in text.splitlines():
        if line.startswith("| all | 8 |"):
            assert line.split(" | ")[3] == "3.7 % (55.0 %)"
            break
    else:
        pytest.fail("no row of all errors")


def test_readme_changes_between_its_markers_only(report: AccuracyReport, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Mine\n\nby hand\n\n{BEGIN}\nold\n{END}\n\nby hand too\n")
    update_readme(report, readme)
    once = readme.read_text()
    assert once.startswith(
        f"# Mine\n\nby hand\n\n{BEGIN}\n\n9 rows of runs.csv, taken 2026-05-06: 8 forecast"
    )
    assert once.endswith(f"{END}\n\nby hand too\n")
    assert "old" not in once
    assert "| Megatron-LM SC21, table 1 | 4 |" in once  # named
    assert "| mine | 4 |" in once  # not named: as it is
    update_readme(report, readme)
    assert readme.read_text() == once


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}"])
def test_a_readme_without_its_markers_is_left_alone(
    report: AccuracyReport, tmp_path: Path, text: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(InputFileError, match="it needs one line"):
        update_readme(report, readme)
    assert readme.read_text() == text


def test_the_shipped_readme_has_the_markers() -> None:
    text = (Path(__file__).parents[4] / "README.md").read_text()
    assert (text.count(BEGIN), text.count(END)) == (1, 1)
    assert text.index(BEGIN) < text.index(END)


def test_sources_are_named_once() -> None:
    prefixes = [prefix for source in named_sources() for prefix in source.prefixes]
    assert len(prefixes) == len(set(prefixes))


def test_the_command_merges_machines(
    result: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = run_result(tmp_path / "runs.json", "left", 1.0)
    html, markdown = tmp_path / "a.html", tmp_path / "a.md"
    arguments = [
        "validate",
        "report",
        str(result),
        str(runs),
        "--html",
        str(html),
        "--markdown",
        str(markdown),
    ]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    assert not stop.value.code
    data = json.loads(capsys.readouterr().out)
    assert {"rows", "summary", "figures", "worst", "results"} <= set(data)
    assert [r["environments"] for r in data["results"]][1][0]["processor"] == "left"
    overall = data["figures"][0]
    assert (overall["n"], overall["n_skipped"], overall["no_skill"]["n"]) == (9, 1, 9)
    assert html.stat().st_size > 10_000
    assert "runs: left, 2 cores" in markdown.read_text()
    with pytest.raises(SystemExit):
        main(arguments[:4])
    assert "choosing a plan" in capsys.readouterr().out


def test_the_same_file_twice_exits_with_one(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["validate", "report", str(result), str(result)])
    assert stop.value.code == 1
    assert "a measurement counts once" in capsys.readouterr().err
