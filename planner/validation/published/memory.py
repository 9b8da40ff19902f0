"""A row's peak memory beside its forecast: what the source read, on which rank, in which unit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel
from costmodel.estimate import Z90
from costmodel.predict import Prediction
from costmodel.predict.prediction import StageMemory
from planner.validation.published.rows import PublishedRow, says

__all__ = ["METRIC", "MemoryReading", "memory_row"]

METRIC = "peak_mem_gb"
_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "conventions.json"


@lru_cache(maxsize=1)
def _readings() -> list[dict[str, Any]]:
    readings: list[dict[str, Any]] = json.loads(_DATA.read_text())["memory"]
    return readings


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """A peak memory and its forecast with the 90 % interval, in the source's unit."""

    measured: float
    predicted: float
    low: float
    high: float


def memory_row(row: PublishedRow, prediction: Prediction) -> MemoryReading | None:
    """The row's peak memory beside its forecast; None where the source gives none."""
    measured = row.number(METRIC)
    if measured is None or measured <= 0:
        return None
    reading = next(r for r in _readings() if says(row, {"notes": r.get("match", ""), **r.get("where", {})}))
    stages = prediction.memory[-1:] if reading["rank"] == "last" else prediction.memory
    size_bytes = prediction.device_memory_bytes
    of_stage: dict[str, Callable[[StageMemory], int]] = {
        "allocated": lambda m: m.allocated_bytes,
        "reserved": lambda m: m.reserved_bytes,
        "device": lambda m: m.device_bytes(size_bytes),
    }
    predicted = max(map(of_stage[reading["reads"]], stages)) / reading["unit_bytes"]
    spread = math.exp(Z90 * reading["log_sigma"])
    return MemoryReading(
        measured=measured, predicted=predicted, low=predicted / spread, high=predicted * spread
    )
