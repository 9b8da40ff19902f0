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
from planner.validation.published.rows import PublishedRow, says

__all__ = ["RowModel", "known_parameters", "known_size", "row_model"]

_FOLDER = Path(costmodel.__path__[0]) / "data" / "published"
_DATA = _FOLDER / "families.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowModel:
    """A transformers configuration and the sequence length to trace it with (0: the model has none)."""

    config: Mapping[str, Any]
    seq_len: int
    vocab: int
    head: str = ""
    """Module that sees only `predicted_share` of the positions; "": every module sees all."""
    predicted_share: float = 1.0
    target_len: int = 0
    """Tokens of an encoder-decoder's targets; 0: as many as its inputs."""
    adapted: tuple[str, ...] = ()
    """Last names of the linear layers with adapters; (): all, where there are any."""
    adapter_rank: int = 0
    """Rank of the adapters that alone are trained; 0: every parameter is."""


@lru_cache(maxsize=1)
def _families() -> dict[str, dict[str, Any]]:
    families: dict[str, dict[str, Any]] = json.loads(_DATA.read_text())["families"]
    return families


@lru_cache(maxsize=2)
def _table(name: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(_DATA.read_text())[name]
    return entries


@lru_cache(maxsize=1)
def _all_sizes() -> dict[str, Any]:
    sizes: dict[str, Any] = json.loads((_FOLDER / "sizes.json").read_text())
    return sizes


def known_parameters(row: PublishedRow) -> float:
    """The model's parameters as the row, its layers' width (12 L h^2 + V h) or its name says; 0: none."""
    layers, hidden = row.integer("layers"), row.integer("hidden")
    counted = 12.0 * layers * hidden**2 + row.integer("vocab") * hidden
    return row.number("n_params") or counted or 1e9 * _known(row).get("billions", 0.0)


def known_size(row: PublishedRow, column: str) -> int:
    """A size of the model as the row or its name says it; 0: neither."""
    return row.integer(column) or int(_known(row).get("sizes", {}).get(column, 0))


def _known(row: PublishedRow) -> dict[str, Any]:
    """The entry of sizes that the row's model name means, or its parameters where no name is known; nothing
    where neither says any, or the row gives another width."""
    family, told = row.text("model_family"), _all_sizes()
    name = re.sub(r"[\s_]+", "-", row.text("model_name"))
    of_family = [e for e in told["sizes"] if family in ("", e["family"])]
    entry = next((e for e in of_family if name and re.search(e["match"], name, re.I)), None)
    parameters, width = row.number("n_params"), row.integer("hidden")
    if entry is not None and width not in (0, entry["sizes"].get("hidden", width)):
        entry = None
    if entry is None and family and parameters and not width:
        any_name = [e for e in reversed(of_family) if not e.get("named")]
        apart = {abs(1e9 * e["billions"] / parameters - 1): e for e in any_name}
        if apart and min(apart) <= told["nearest_parameters"]["fraction"]:
            entry = apart[min(apart)]
    return entry or {}


def _named(row: PublishedRow) -> dict[str, Any] | None:
    """The entry of a model whose published configuration says more than the table's columns can."""
    for model in _table("models"):
        if says(row, {"model_name": model["match"], **model.get("where", {})}):
            if "family" in model:
                family = _families()[model["family"]]
                return {**family, **model, "config": {**family["config"], **model.get("config", {})}}
            shipped = shipped_config(model["shipped"]) if "shipped" in model else {}
            columns = {
                "vocab": "vocab_size",
                "seq_len": "max_position_embeddings",
                **model.get("columns", {}),
            }
            config = {**shipped, **model.get("config", {})}
            if "pattern" in model:
                config["layers_block_type"] = [model["layer_types"][letter] for letter in model["pattern"]]
            return {
                "config": config,
                "columns": columns,
                "defaults": {
                    **model.get("defaults", {}),
                    **{k: model[k] for k in ("seq_len",) if k in model},
                },
                "needs": model.get("needs", ["seq_len"]),
                "notes": model.get("notes", []),
            }
    return None


def row_model(row: PublishedRow, *, vocab_multiple: int = 1) -> RowModel | str:
    """The row's model, or the reason why it cannot be built. The vocabulary is padded to a multiple."""
    size = _known(row)
    family, known = row.text("model_family") or size.get("family", ""), size.get("sizes", {})
    entry = _named(row) or _families().get(family)
    if entry is None:
        return f"family {family!r} is not in the table of families"
    if "not" in entry and re.search(entry["not"], row.text("model_name"), re.I):
        return f"model {row.text('model_name')!r} is no {family} that the table of families can build"
    if row.text("task") != "train":
        known = {k: v for k, v in known.items() if k != "seq_len"}  # a prompt's length, not training's
    entry = _variant(row, entry, known)
    values: dict[str, int] = {}
    columns = dict.fromkeys((*entry["columns"], *entry["needs"]))
    # a default may be a multiple of another column: those come last
    for column in sorted(columns, key=lambda name: isinstance(entry["defaults"].get(name), str)):
        number = row.number(column)
        if number is None:
            number = known.get(column)
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
    config = {**(shipped_config(entry["shipped"]) if "shipped" in entry else {}), **entry["config"]}
    for named in entry.get("named", []):
        if re.search(named["match"], row.text("model_name"), re.I):
            config |= {**named.get("config", {}), named["field"]: named["value"]}
    for column, name in entry["columns"].items():
        if column in values:
            config[name] = round(values[column] * entry.get("factors", {}).get(column, 1))
    for name, (above, below) in entry.get("ratios", {}).items():
        config[name] = values[above] // values[below]
    if "layer_pattern" in entry:
        config["layers_block_type"] = entry["layer_pattern"] * values["layers"]
    said = _said(row, entry.get("notes", []))
    target_len = int(said.pop("target_len", 0))
    config.update(said)
    seq_len = row.integer("seq_len", known.get("seq_len", int(entry["defaults"].get("seq_len", 0))))
    predicts = entry.get("predicts", {"module": "", "share": 1.0})
    adapters = _adapters(row)
    return RowModel(
        config=config,
        seq_len=_without_padding(row, seq_len),
        vocab=values.get("vocab", 0),
        head=predicts["module"],
        predicted_share=predicts["share"],
        target_len=target_len,
        adapted=tuple(adapters["layers"]),
        adapter_rank=int(adapters["rank"]),
    )


def _adapters(row: PublishedRow) -> dict[str, Any]:
    """The adapters that a training row's words mean, of rank 0 where they mean none."""
    words = " ".join((row.written.get("task", ""), *map(row.text, ("model_name", "framework", "notes"))))
    said = (e for e in _table("adapters") if re.search(e["match"], words, re.I) and says(row, e["where"]))
    found = next(said, None) if row.text("task") == "train" else None
    return found or {"layers": (), "rank": 0}


def _without_padding(row: PublishedRow, seq_len: int) -> int:
    """The mean length that sequences are padded to, where their loader sorts them by length."""
    for loader in _table("padding"):
        if says(row, loader["where"]):
            mean = float(loader["real_tokens"]) * seq_len + 0.5 * float(loader["bin_tokens"])
            return min(seq_len, round(mean))
    return seq_len


def _variant(row: PublishedRow, entry: dict[str, Any], known: Mapping[str, int]) -> dict[str, Any]:
    """The entry with what the first of its variants replaces that the row's notes mean, or whose heads the
    row has."""
    heads, kv_heads = (row.integer(name, known.get(name, 0)) for name in ("heads", "kv_heads"))
    for variant in entry.get("variants", []):
        grouped = variant.get("grouped_heads", False) and 0 < kv_heads < heads
        if grouped or ("match" in variant and re.search(variant["match"], row.text("notes"))):
            return {**entry, **variant}
    return entry


def _said(row: PublishedRow, readings: list[dict[str, Any]]) -> dict[str, Any]:
    """What a row's notes say of the model: a number in the wording, or the reading's own value; and what its
    framework sets where they do not."""
    found: dict[str, Any] = {}
    for reading in readings:
        if "where" in reading:
            if says(row, reading["where"]):
                found[reading["field"]] = reading["value"]
        elif match := re.search(reading["match"], row.text("notes")):
            found[reading["field"]] = reading["value"] if "value" in reading else int(match[1])
    return found


def _default(default: Any, values: Mapping[str, int], row: PublishedRow) -> float | None:
    """A default is a number or 'factor*column'."""
    if isinstance(default, str):
        factor, _, column = default.partition("*")
        base = row.number(column) or values.get(column)
        return None if base is None else float(factor) * base
    return None if default is None else float(default)
