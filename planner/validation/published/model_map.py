"""From a row's family and sizes to a model argument, by the table costmodel/data/published/families.json."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel
from costmodel.models import shipped_config
from planner.validation.published.rows import PublishedRow

__all__ = ["RowModel", "row_model"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "families.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowModel:
    """A transformers configuration and the sequence length to trace it with (0: the model has none)."""

    config: Mapping[str, Any]
    seq_len: int
    vocab: int


@lru_cache(maxsize=1)
def _families() -> dict[str, dict[str, Any]]:
    families: dict[str, dict[str, Any]] = json.loads(_DATA.read_text())["families"]
    return families


@lru_cache(maxsize=1)
def _models() -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads(_DATA.read_text())["models"]
    return models


def _named(row: PublishedRow) -> dict[str, Any] | None:
    """The entry of a model whose published configuration says more than the table's columns can."""
    wanted = row.text("model_name")
    for model in _models():
        if re.search(model["match"], wanted):
            shipped = shipped_config(model["shipped"]) if "shipped" in model else {}
            columns = {"vocab": "vocab_size", "seq_len": "max_position_embeddings"}
            config = {**shipped, **model.get("config", {})}
            if "pattern" in model:
                config["layers_block_type"] = [model["layer_types"][letter] for letter in model["pattern"]]
            return {"config": config, "columns": columns, "defaults": {}, "needs": ["seq_len"]}
    return None


def row_model(row: PublishedRow, *, vocab_multiple: int = 1) -> RowModel | str:
    """The row's model, or the reason why it cannot be built. The vocabulary is padded to a multiple."""
    family = row.text("model_family")
    entry = _named(row) or _families().get(family)
    if entry is None:
        return f"family {family!r} is not in the table of families"
    values: dict[str, int] = {}
    for column in {*entry["columns"], *entry["needs"]}:
        number = row.number(column)
        if number is None:
            default = entry["defaults"].get(column)
            number = _default(default, values, row)
        if number is not None:
            values[column] = round(number)
    missing = [column for column in entry["needs"] if column not in values]
    if missing:
        return f"the source does not say {', '.join(missing)}"
    if "vocab" in values:
        values["vocab"] = -(-values["vocab"] // vocab_multiple) * vocab_multiple
    config = dict(entry["config"])
    for column, name in entry["columns"].items():
        if column in values:
            config[name] = round(values[column] * entry.get("factors", {}).get(column, 1))
    seq_len = row.integer("seq_len", int(entry["defaults"].get("seq_len", 0)))
    return RowModel(config=config, seq_len=seq_len, vocab=values.get("vocab", 0))


def _default(default: Any, values: Mapping[str, int], row: PublishedRow) -> float | None:
    """A default is a number or 'factor*column'."""
    if isinstance(default, str):
        factor, _, column = default.partition("*")
        base = row.number(column)
        return None if base is None else float(factor) * base
    return None if default is None else float(default)
