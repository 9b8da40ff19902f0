"""Rows of a published-runs table (plain or gzipped CSV)."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from costmodel.errors import InputFileError

__all__ = ["METRICS", "OF_RUNS", "PublishedRow", "read_rows", "says"]

METRICS = (
    "iter_time_s",
    "tokens_per_s_per_gpu",
    "samples_per_s",
    "tflops_per_gpu_reported",
    "mfu_reported",
)
"""A row's metric is the first of these that it gives."""
OF_RUNS = frozenset({"gpu", "task", "model_family"})
"""What a table of runs has at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One measured run; `cells` are the table's non-empty columns as text."""

    id: str
    cells: Mapping[str, str]

    def text(self, column: str, default: str = "") -> str:
        """The cell, or `default` where the source does not say."""
        return self.cells.get(column, default)

    def number(self, column: str) -> float | None:
        """The cell as a number; None where the source does not say or says no number."""
        try:
            return float(self.cells[column])
        except (KeyError, ValueError):
            return None

    def integer(self, column: str, default: int = 0) -> int:
        """The cell as a whole number, or `default`."""
        value = self.number(column)
        return default if value is None else round(value)

    def flag(self, column: str) -> bool | None:
        """The cell as true/false; None where the source does not say."""
        value = self.cells.get(column, "").lower()
        return {"true": True, "1": True, "false": False, "0": False}.get(value)

    @property
    def metric(self) -> tuple[str, float] | None:
        """The metric's column and value. In a `derived` row columns follow from each other by the source's
        own formula, so the first one given says as much as the printed one."""
        for column in METRICS:
            value = self.number(column)
            if value is not None and value > 0:
                return column, value
        return None


def says(row: PublishedRow, where: Mapping[str, str]) -> bool:
    """Whether each named column of the row holds its pattern (regular expression, case ignored)."""
    return all(re.search(pattern, row.text(column), re.IGNORECASE) for column, pattern in where.items())


def read_rows(
    path: Path, *, limit: int | None = None, needed: frozenset[str] = OF_RUNS
) -> Iterator[PublishedRow]:
    """Read the table. Raises InputFileError where it is missing, unreadable or lacks `needed` columns."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = needed - set(reader.fieldnames or ())
            if missing:
                raise InputFileError(
                    f"{path}: lacks the columns {sorted(missing)}; the README lists what a table of runs has"
                )
            for number, row in enumerate(reader, start=1):
                if limit is not None and number > limit:
                    return
                cells = {k: v.strip() for k, v in row.items() if k and v and v.strip()}
                yield PublishedRow(id=cells.get("id", str(number)), cells=cells)
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise InputFileError(f"{path}: cannot be read as a CSV table: {error}") from error
