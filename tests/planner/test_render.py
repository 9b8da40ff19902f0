"""Numbers as texts, and tables that show texts as they are."""

from __future__ import annotations

import json
import math

import pytest

from planner.render import (
    bytes_text,
    count_text,
    duration,
    energy_text,
    money,
    per_second,
    percent,
    print_json,
    print_table,
    rate_text,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0.0, "0 s"),
        (1.5e-9, "1.5 ns"),
        (2.34e-5, "23.4 us"),
        (0.0123, "12.3 ms"),
        (999.0, "999 s"),
        (1200.0, "20 min"),
        (4 * 3600.0, "4 h"),
        (3 * 86400.0, "3 d"),
        (1234.5 * 86400.0, "1,234 d"),
        (-0.5, "-500 ms"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(0.08167, "0.08167"), (12.344, "12.34"), (176787.4, "176,787")])
def test_rates_have_no_exponent(rate: float, text: str) -> None:
    assert per_second(rate) == text


def test_units() -> None:
    assert (bytes_text(None), bytes_text(1023), bytes_text(3 << 29)) == ("-", "1023 B", "1.50 GiB")
    assert (count_text(None), count_text(12), count_text(1.23e9)) == ("-", "12", "1.23 G")
    assert (rate_text(3.35e12), rate_text(25e9)) == ("3,350 GB/s", "25 GB/s")
    assert (percent(None), percent(0.123), percent(0.123, sign=True)) == ("-", "12.3 %", "+12.3 %")
    assert (money(math.inf), money(12.5), money(2.5e6)) == ("-", "12.5 USD", "2.5 M USD")
    assert (energy_text(None), energy_text(7.2e9)) == ("-", "2 MWh")


def test_what_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [math.inf, 1.0]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.0]}


@pytest.mark.parametrize("text", ["no file [/models/x]", "module [bold] left out", "a100:ib:"])
def test_a_table_shows_texts_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table([text], [[text]], title=text, caption=text)
    assert capsys.readouterr().out.count(text) == 4
