"""A row's peak memory beside its forecast: what the source read, on which rank, in which unit."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel
from costmodel.estimate import Z90
from costmodel.predict import Prediction
from planner.validation.published.rows import PublishedRow
from planner.validation.scoring import ScoredRow

__all__ = ["METRIC", "memory_row"]

METRIC = "peak_mem_gb"
_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "conventions.json"


@lru_cache(maxsize=1)
def _readings() -> list[dict[str, Any]]:
    readings: list[dict[str, Any]] = json.loads(_DATA.read_text())["memory"]
    return readings


def memory_row(row: PublishedRow, prediction: Prediction, score: ScoredRow) -> ScoredRow | None:
    """The row's score of peak memory, labelled as `score`; None where the source gives no memory."""
    measured = row.number(METRIC)
    if measured is None or measured <= 0:
        return None
    reading = next(r for r in _readings() if re.search(r["match"], row.text("notes"), re.IGNORECASE))
    stages = prediction.memory[-1:] if reading["rank"] == "last" else prediction.memory
    peaks = [m.peak_memory_bytes - (0 if reading["device"] else m.framework) for m in stages]
    predicted = max(peaks) / reading["unit_bytes"]
    spread = math.exp(Z90 * reading["log_sigma"])
    return ScoredRow(
        id=score.id,
        source=score.source,
        group=score.group,
        metric=METRIC,
        measured=measured,
        predicted=predicted,
        low=predicted / spread,
        high=predicted * spread,
        labels=score.labels,
    )
