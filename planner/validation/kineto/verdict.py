"""Where a forecast is off: the step's error taken apart, and what weighs most in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planner.validation.kineto.activity import PARTS
from planner.validation.kineto.forecast import Expected
from planner.validation.scoring import ScoredRow

__all__ = ["verdict"]

_MOST = 5


def verdict(
    step_s: float,
    expected: Expected,
    parts_s: Mapping[str, float],
    predicted_s: Mapping[str, float],
    rows: Sequence[ScoredRow],
) -> dict[str, Any]:
    """The parts' differences (predicted - measured), which add up to the step's, with their shares of the sum
    of absolute differences; the kinds and modules that differ most, likewise; `largest`: the part that is
    furthest off."""
    parts = _differences({part: (parts_s[part], predicted_s[part]) for part in PARTS})
    return {
        "step_error": expected.time_s / step_s - 1.0 if step_s else None,
        "within_interval": expected.low_s <= step_s <= expected.high_s,
        "largest": parts[0]["name"],
        "parts": parts,
        "kinds": _differences(_table(rows, "kind"))[:_MOST],
        "modules": _differences(_table(rows, "module"))[:_MOST],
    }


def _table(rows: Sequence[ScoredRow], table: str) -> dict[str, tuple[float, float]]:
    return {
        row.id.removeprefix(f"{table}: "): (row.measured or 0.0, row.predicted or 0.0)
        for row in rows
        if row.label("table") == table
    }


def _differences(table: Mapping[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Largest absolute difference first."""
    total = sum(abs(predicted - measured) for measured, predicted in table.values())
    return [
        {
            "name": name,
            "measured_s": measured,
            "predicted_s": predicted,
            "difference_s": predicted - measured,
            "ratio": predicted / measured if measured else None,
            "share": abs(predicted - measured) / total if total else 0.0,
        }
        for name, (measured, predicted) in sorted(
            table.items(), key=lambda item: -abs(item[1][1] - item[1][0])
        )
    ]
