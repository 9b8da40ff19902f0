"""Names of published sources and what was fitted on them (costmodel/data/published/sources.json)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import costmodel
from planner.validation.scoring import ScoredRow

__all__ = ["NamedSource", "named_sources", "with_titles"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "sources.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSource:
    """A source in words. `fitted`: what was fitted to its rows; 'none' where nothing was."""

    prefixes: tuple[str, ...]
    title: str
    fitted: str


@lru_cache(maxsize=1)
def named_sources() -> tuple[NamedSource, ...]:
    """The table, in its order."""
    entries = json.loads(_DATA.read_text(encoding="utf-8"))["sources"]
    return tuple(NamedSource(**{**entry, "prefixes": tuple(entry["prefixes"])}) for entry in entries)


def with_titles(rows: Iterable[ScoredRow]) -> list[ScoredRow]:
    """The rows with the label `title`: their source in words, where the table has it."""
    titles = {prefix: source.title for source in named_sources() for prefix in source.prefixes}
    return [
        replace(row, labels={**row.labels, "title": titles[row.source]}) if row.source in titles else row
        for row in rows
    ]
