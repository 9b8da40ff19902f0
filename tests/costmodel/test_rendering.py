"""Sizes as text, made in one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from costmodel.rendering import bytes_text

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (3 << 29, "1.50 GiB"),
        (-(2**20), "-1.00 MiB"),
        (2**41, "2.00 TiB"),
    ],
)
def test_sizes_take_the_largest_unit_that_they_fill(size: int | None, text: str) -> None:
    assert bytes_text(size) == text


def test_no_other_module_converts_sizes_to_text() -> None:
    converted = re.compile(r"\{[^{}]*/ ?(2 ?\*\* ?[1-4]0|1 ?<< ?[1-4]0|1024[^{}]*):")
    files = [p for package in ("calibrate", "costmodel", "planner") for p in (ROOT / package).rglob("*.py")]
    found = [p.name for p in files if converted.search(p.read_text())]
    assert found == []
