"""Reads tables of measured operators: CSV, plain or gzipped, one row per time.

The kind of a table is told by its columns:

    m, n, k                     gemm and bmm (`op` linear or bmm; `part` fwd, dgrad or wgrad)
    q_len, kv_len               attention (`phase`, `kind` mha/gqa or mla)
    c_in, c_out                 convolution
    rows, cols, bytes           memory-bound kinds (`op`)
    num_tokens, num_experts     routed-expert layer

All have gpu, dtype, latency_us and timing; source, framework and kernel where known. A line that cannot be
read is named with its file and line, and the rest is used.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.samples import SampleTable
from costmodel.errors import InputFileError
from costmodel.hardware.kinds import OPERATOR_KINDS

__all__ = ["OperatorTables", "read_operator_tables", "read_rows"]

_REQUIRED = ("gpu", "dtype", "latency_us")
_LAYOUT_OF_PART = {"fwd": "nt", "dgrad": "nn", "wgrad": "tn"}
_PHASES = {"train_fwd": "fwd", "train_bwd": "bwd"}
_MEMORY_BOUND = {
    "layernorm": ("norm", "layernorm"),
    "rmsnorm": ("norm", "rmsnorm"),
    "batchnorm": ("norm", "batchnorm"),
    "groupnorm": ("norm", "groupnorm"),
    "softmax": ("softmax", "fwd"),
    "embedding": ("embedding", "fwd"),
    "fp8_static_quant": ("quantise", "static"),
}
_GROUPED = {"grouped_gemm:fwd": "nt", "grouped_gemm:bwd_grad_act": "nn", "grouped_gemm:bwd_grad_w": "tn"}

_Row = Mapping[str, str]
_Sample = tuple[str, str, str, dict[str, float], str]
"""kind, variant, dtype, sizes, framework with its kernel"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTables:
    """One table per kind, and what was wrong with the lines that are missing.

    `row_id` of a sample is the row's `id` column or its 1-based data row number in its file.
    """

    tables: dict[str, SampleTable]
    problems: tuple[str, ...]
    """'file:line: reason', in file order."""
    skipped: tuple[tuple[str, str, str], ...]
    """(row id, source, reason) of the same lines."""


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names, and (line number, row) of each data line. InputFileError where it cannot be read."""
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputFileError(f"{path}: {error}; expected a CSV file, plain or gzipped") from error
    reader = csv.reader(io.StringIO(text))
    names = next(reader, [])
    return names, [(reader.line_num, _named(names, cells)) for cells in reader if cells]


def _named(names: list[str], cells: list[str]) -> dict[str, str]:
    """A line by column, as csv.DictReader makes it in twice the time: what is missing is empty, what is too
    much stands under None."""
    row: dict[Any, Any] = dict(zip(names, cells, strict=False))
    if len(cells) > len(names):
        row[None] = cells[len(names) :]
    for name in names[len(cells) :]:
        row[name] = ""
    return row


def read_operator_tables(paths: Sequence[Path]) -> OperatorTables:
    """Samples of operator tables, by kind. InputFileError where a file is no operator table."""
    columns: dict[str, list[tuple[_Sample, _Row, float, str]]] = {}
    problems: list[str] = []
    skipped: list[tuple[str, str, str]] = []
    for path in paths:
        names, rows = read_rows(path)
        reader = _reader(names)
        missing = [name for name in _REQUIRED if name not in names]
        if reader is None or missing:
            raise InputFileError(
                f"{path}: columns {', '.join(names) or '(none)'} are no operator table"
                + (f"; missing: {', '.join(missing)}" if missing else "")
                + "; expected gpu, dtype, latency_us and the sizes of one kind "
                "(m,n,k; q_len,kv_len,heads; c_in,c_out; op,rows,cols,bytes; num_tokens,num_experts)"
            )
        for number, (line, row) in enumerate(rows, start=1):
            row_id = row.get("id") or str(number)
            try:
                time_s = _positive(row, "latency_us") * 1e-6
                sample = reader(row)
                if not row["gpu"].strip():
                    raise ValueError("gpu is empty")
                if None in row:
                    raise ValueError("more fields than columns")
            except (ValueError, KeyError) as error:
                problems.append(f"{path}:{line}: {error}")
                skipped.append((row_id, row.get("source") or "", f"malformed line: {error}"))
                continue
            columns.setdefault(sample[0], []).append((sample, row, time_s, row_id))
    return OperatorTables(
        tables={kind: _table(kind, rows) for kind, rows in sorted(columns.items())},
        problems=tuple(problems),
        skipped=tuple(skipped),
    )


def _table(kind: str, rows: Sequence[tuple[_Sample, _Row, float, str]]) -> SampleTable:
    return SampleTable.of(
        kind,
        {name: [sample[3][name] for sample, *_ in rows] for name in OPERATOR_KINDS[kind].dims},
        time_s=[time_s for _, _, time_s, _ in rows],
        variant=[sample[1] for sample, *_ in rows],
        dtype=[sample[2] for sample, *_ in rows],
        timing=[row.get("timing") or "unknown" for _, row, *_ in rows],
        device=[row["gpu"].strip() for _, row, *_ in rows],
        source=[row.get("source") or "" for _, row, *_ in rows],
        framework=[sample[4] for sample, *_ in rows],
        row_id=[row_id for *_, row_id in rows],
    )


def _reader(columns: Sequence[str]) -> Callable[[_Row], _Sample] | None:
    names = set(columns)
    for needed, reader in (
        ({"m", "n", "k"}, _gemm),
        ({"q_len", "kv_len", "heads"}, _attention),
        ({"c_in", "c_out"}, _conv),
        ({"num_tokens", "num_experts"}, _moe),
        ({"op", "rows", "cols", "bytes"}, _memory_bound),
    ):
        if needed <= names:
            return reader
    return None


def _gemm(row: _Row) -> _Sample:
    sizes = {name: _positive(row, name) for name in ("m", "n", "k")}
    variant = _LAYOUT_OF_PART.get(row.get("part", ""), "nt")
    if row.get("op") == "bmm":
        return "bmm", "nn", row["dtype"], sizes | {"batch": _positive(row, "batch")}, row.get("framework", "")
    if row.get("op", "linear") not in ("linear", "gemm", "mm", ""):
        raise ValueError(f"op={row['op']!r} is neither linear nor bmm")
    return "gemm", variant, row["dtype"], sizes, row.get("framework", "")


def _attention(row: _Row) -> _Sample:
    names = ("batch", "q_len", "kv_len", "heads", "kv_heads", "qk_dim", "v_dim")
    sizes = {name: _positive(row, name) for name in names}
    sizes["window"] = float(row.get("window") or 0.0)
    sizes["causal"] = 1.0 if row.get("causal", "").strip().lower() in ("1", "true", "yes") else 0.0
    phase = row.get("phase", "")
    variant = _PHASES.get(phase, phase)
    if row.get("kind") == "mla":
        variant = f"mla_{variant}"
    dtype, cache = row["dtype"], row.get("kv_dtype") or row["dtype"]
    if cache != dtype:
        dtype = f"{dtype}+{cache}kv"
    return "attention", variant, dtype, sizes, _with_kernel(row)


def _conv(row: _Row) -> _Sample:
    names = ("batch", "c_in", "c_out", "h", "w", "kh", "kw", "stride", "groups")
    sizes = {name: _positive(row, name) for name in names}
    sizes["padding"] = float(row.get("padding") or 0.0)
    sizes["transposed"] = 0.0
    return "conv", "fwd", row["dtype"], sizes, row.get("framework", "")


def _memory_bound(row: _Row) -> _Sample:
    sizes = {name: _positive(row, name) for name in ("rows", "cols", "bytes")}
    name = row["op"].removesuffix("_scalar")
    if name in _MEMORY_BOUND:
        kind, variant = _MEMORY_BOUND[name]
    else:
        kind, variant = "elementwise", name
        if variant not in OPERATOR_KINDS[kind].variants:
            variant = "other"
    return kind, variant, row["dtype"], sizes, row.get("framework", "")


def _moe(row: _Row) -> _Sample:
    names = ("num_tokens", "hidden", "inter", "topk", "num_experts", "moe_tp", "moe_ep")
    sizes = {name: _positive(row, name) for name in names}
    if (layout := _GROUPED.get(row.get("kernel", ""))) is not None:
        grouped = {
            "groups": max(sizes["num_experts"] / sizes["moe_ep"], 1.0),
            "m": sizes["num_tokens"] * sizes["topk"],
            "n": sizes["inter"] / sizes["moe_tp"],
            "k": sizes["hidden"],
        }
        return "grouped_gemm", layout, row["dtype"], grouped, row.get("framework", "")
    return "moe", row.get("distribution") or "balanced", row["dtype"], sizes, _with_kernel(row)


def _with_kernel(row: _Row) -> str:
    framework, kernel = row.get("framework", ""), row.get("kernel", "")
    return f"{framework}:{kernel}" if kernel else framework


def _positive(row: _Row, name: str) -> float:
    text = row[name]
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={text!r} is not a number") from None
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name}={text} must be positive and finite")
    return value
