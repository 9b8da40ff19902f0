"""Rows of a published-runs table (plain or gzipped CSV)."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel
from costmodel.errors import InputFileError

__all__ = ["METRICS", "OF_RUNS", "PublishedRow", "in_our_words", "read_rows", "says"]

_FOLDER = Path(costmodel.__path__[0]) / "data" / "published"

_NUMBER = re.compile(r"(\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?)\s*(k|K|M|B|%|s|GB|GiB|)")
_TIMES = {"k": 1024.0, "K": 1024.0, "M": 1e6, "B": 1e9}

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
    written: Mapping[str, str] = field(default_factory=dict)
    """What the table says in the columns whose cells are read otherwise; "" where a recipe fills them."""

    def text(self, column: str, default: str = "") -> str:
        """The cell, or `default` where the source does not say."""
        return self.cells.get(column, default)

    def number(self, column: str) -> float | None:
        """The cell as a number; None where the source does not say or says no number.

        Units behind it are left out (70 GiB, 45 %); k is 1,024, M and B are a million and a billion.
        """
        said = self.cells.get(column, "")
        try:
            return float(said)
        except ValueError:
            match = _NUMBER.fullmatch(said)
        return None if match is None else float(match[1].replace(",", "")) * _TIMES.get(match[2].strip(), 1.0)

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
                fraction = column == "mfu_reported" and value < 1.0  # as a share, not in percent
                return column, 100.0 * value if fraction else value
        return None


def says(row: PublishedRow, where: Mapping[str, str]) -> bool:
    """Whether each named column of the row holds its pattern (regular expression, case ignored)."""
    return all(re.search(pattern, row.text(column), re.IGNORECASE) for column, pattern in where.items())


@lru_cache(maxsize=1)
def _wordings() -> dict[str, list[dict[str, Any]]]:
    columns: dict[str, list[dict[str, Any]]] = json.loads((_FOLDER / "wordings.json").read_text())["columns"]
    return columns


@lru_cache(maxsize=1)
def _recipes() -> list[dict[str, Any]]:
    recipes: list[dict[str, Any]] = json.loads((_FOLDER / "recipes.json").read_text())["recipes"]
    return recipes


def in_our_words(row: PublishedRow) -> PublishedRow:
    """The row with what other sources write in a column put as this table's rows put it, and with what its
    launcher's own configuration of the model sets in the cells it leaves empty."""
    changed = {}
    for column, entries in _wordings().items():
        said = row.text(column)
        entry = next((e for e in entries if said and says(row, e["where"])), None)
        if entry is None:
            continue
        match = re.search(entry["where"][column], said, re.IGNORECASE)
        meant = match.expand(entry["means"]).strip() if match else said
        if meant != said:
            changed[column] = meant
    meant_row = replace(row, cells={**row.cells, **changed}) if changed else row
    recipe: dict[str, str] = next((r["cells"] for r in _recipes() if says(meant_row, r["where"])), {})
    filled = {column: cell for column, cell in recipe.items() if not row.text(column)}
    if not changed and not filled:
        return row
    written = {column: row.text(column) for column in (*changed, *filled)}
    return replace(row, cells={**meant_row.cells, **filled}, written=written)


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
                row_read = PublishedRow(id=cells.get("id", str(number)), cells=cells)
                yield in_our_words(row_read) if needed == OF_RUNS else row_read
    except (OSError, UnicodeDecodeError, csv.Error, EOFError) as error:
        raise InputFileError(f"{path}: cannot be read as a CSV table: {error}") from error
