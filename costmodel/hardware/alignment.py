"""What products lose on matrix units where the rows of a matrix do not start on a boundary of their loads.

A kernel that loads 16 bytes at a time needs every row of its operands and of its result to be a multiple of
them; a width of 50,257 in fp16 leaves 2 bytes, and the library falls back on kernels with loads that narrow,
often of an older generation. Shares of the aligned rate stand in `data/alignment.json`; short rows lose less.
Batches of products find no kernel with matrix units at all for such rows, as unfused attention with heads of
108 elements does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.device import element_bytes, has_matrix_units, has_units, math_dtype
from costmodel.hardware.schema import DeviceSpec

__all__ = ["aligned_share", "is_multiple", "whole_rows"]

_DATA = Path(__file__).parents[1] / "data" / "alignment.json"
_ROWS = {"nt": ("k", "n"), "nn": ("k", "n"), "tn": ("m", "n")}
"""The sizes that rows of A, B and the result have, by layout: all matrices lie row by row."""
_HALF_BYTES = 2


@lru_cache(maxsize=1)
def _table() -> tuple[int, int, dict[int, float]]:
    table = json.loads(_DATA.read_text())
    shares = {int(size): float(share) for size, share in table["matrix_unit_share"].items()}
    return int(table["vector_bytes"]), int(table["long_row"]), shares


def aligned_share(
    device: DeviceSpec, dtype: str, variant: str, sizes: Mapping[str, FloatArray]
) -> FloatArray | float:
    """Share of the aligned rate that products of these sizes reach, [n], or 1 for all of them.

    `sizes`: `m`, `n`, `k`, and `batch` where there are several products. 1 where rows are a multiple of 16
    bytes, where the dtype is computed without matrix units (fp32), where it has one byte or less (libraries
    refuse such rows, frameworks pad them) and for a layout other than nt, nn and tn.
    """
    element, units = element_bytes(dtype), math_dtype(dtype)
    matrices = units != "fp32" and has_units(device, dtype) and has_matrix_units(device)
    if not matrices or element < _HALF_BYTES or variant not in _ROWS:
        return 1.0
    peaks = device.peak_flop_per_s
    plain_share = min(1.0, peaks.get("fp32", np.inf) / peaks[units])
    vector_bytes, long_row, shares = _table()
    per_vector = vector_bytes / element
    rows = [np.asarray(sizes[name]) for name in _ROWS[variant]]
    if all(np.all(is_multiple(row, per_vector)) for row in rows):
        return 1.0
    several = np.asarray(sizes.get("batch", 1)) > 1
    share = np.ones(rows[0].shape)
    for row in rows:
        lost = np.zeros(row.shape)  # of a long row
        for row_bytes, part in shares.items():
            aligned = is_multiple(row, 2 * row_bytes / element)
            np.maximum(lost, np.where(aligned, 0.0, 1.0 - part), out=lost)
        reached = 1.0 - lost * np.minimum(row / long_row, 1.0)
        if several.any():
            reached = np.where(several & (lost > 0.0), plain_share, reached)
        np.minimum(share, reached, out=share)
    return share


def whole_rows(dtype: str, variant: str, sizes: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """`sizes` with rows of all matrices filled up to whole loads, as compilers pad operands before a product
    (torch/_inductor/fx_passes/pad_mm.py, shape_padding; XLA's CublasPadForGemms).

    >>> sizes = {"m": np.array([3.0]), "n": np.array([50257.0]), "k": np.array([768.0])}
    >>> whole_rows("bf16", "nt", sizes)["n"]
    array([50264.])
    """
    vector_bytes, _, _ = _table()
    per_vector = max(1.0, vector_bytes / element_bytes(dtype))
    rows = _ROWS.get(variant, ())
    return {
        name: np.ceil(size / per_vector) * per_vector if name in rows else size
        for name, size in sizes.items()
    }


def is_multiple(values: FloatArray, period: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether each value is a multiple of a power of two, by which floats divide without rounding; a tenth of
    what numpy's remainder takes."""
    parts = values / period
    return np.asarray(np.floor(parts) == parts)
