"""Every system of the table can be named: plans parse, commands and frameworks are there."""

from __future__ import annotations

import re

import pytest

from costmodel.framework import framework_names
from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from costmodel.strategies import STRATEGIES
from costmodel.systems import System, systems
from planner.cli import app
from planner.export import EXPORTERS

WORDS = r"(?<![\w.-])((?:dp|pp|tp)\d+(?:\.[a-z0-9-]+)*)"


def test_all_26_are_there_and_none_is_missing() -> None:
    rows = systems()
    assert [row.number for row in rows] == list(range(1, 27))
    for row in rows:
        assert "not yet" not in row.how
        assert "none yet" not in row.check


@pytest.mark.parametrize("row", systems(), ids=lambda row: str(row.number))
def test_what_to_type_is_understood(row: System) -> None:
    plans = re.findall(WORDS, row.how)
    for text in plans:
        assert Plan.parse(text).world_size >= 1
    commands = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for command in re.findall(r"\b(share|infer|export|validate)\b", row.how):
        assert command in commands
    for name in re.findall(r"--framework (\S+)", row.how):
        assert name in framework_names()
    for names in re.findall(r"--devices (\S+)", row.how):
        for name in names.strip(";").split(","):
            assert load_profile(name.partition("*")[0].strip(")"))
    for targets in re.findall(r"--to (\S+)", row.how):
        assert set(targets.split("|")) == {str(name) for name in EXPORTERS}
    assert plans or re.search(r"--(devices|executor|plan|to)", row.how)


def test_every_strategy_is_named_by_a_system() -> None:
    text = " ".join(row.how for row in systems())
    missing = [str(name) for name in STRATEGIES if str(name) not in text]
    assert not missing
