"""The README's commands work as written; every sub-command is in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from calibrate.importing.collective_tables import REQUIRED as COLLECTIVE_COLUMNS
from planner.cli import app, main
from planner.validation.published.rows import METRICS, OF_RUNS
from planner.validation.serving.score import COLUMNS as SERVER_COLUMNS
from planner.validation.serving.score import METRICS as SERVER_METRICS

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [
    line[2:] for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()
]
STARTS_RANKS = {
    "make demo",
    "make test",
    "foreshard calibrate --out this-machine.json",
    "foreshard validate run --hardware this-machine.json",
}
"""Run by CI's other tests and by `make`, not here."""


def test_what_is_not_run_is_known() -> None:
    assert set(COMMANDS) >= STARTS_RANKS
    assert all(c.startswith("foreshard ") for c in set(COMMANDS) - STARTS_RANKS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - STARTS_RANKS))
def test_command(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what it writes is not there when the tests run again
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command)[1:])
    assert not stop.value.code, capsys.readouterr().err
    assert capsys.readouterr().out


def test_every_sub_command_is_in_the_readme() -> None:
    names = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    missing = [name for name in names if name and f"`{name}" not in README]
    assert not missing


def test_the_columns_that_tables_need_are_in_the_readme() -> None:
    tables = README.split("### Tables of measurements")[1].split("###")[0]
    for column in {*OF_RUNS, *METRICS, *SERVER_COLUMNS, *SERVER_METRICS, *COLLECTIVE_COLUMNS}:
        assert f"`{column}`" in tables, column
