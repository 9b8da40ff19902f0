"""What a convolution's sizes come to: output, implicit product, least traffic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.base import Dims

__all__ = ["gemm_sizes", "least_elements", "output_sides", "soft_max", "soft_min"]

_SHARP = 8.0
"""How sharply the library takes the quicker algorithm (power of the soft minimum)."""
_POWER = 3.0


def soft_max(a: FloatArray, b: FloatArray) -> FloatArray:
    """(a^p + b^p)^(1/p) [n]: two sides of a roofline that overlap in part."""
    return np.asarray((a**_POWER + b**_POWER) ** (1.0 / _POWER), dtype=np.float64)


def soft_min(times_s: Sequence[FloatArray]) -> FloatArray:
    """Seconds [n] of the quicker algorithm, where nearly equal ones shorten each other a little."""
    return np.asarray(np.sum([t**-_SHARP for t in times_s], axis=0) ** (-1.0 / _SHARP), dtype=np.float64)


def output_sides(dims: Dims) -> tuple[FloatArray, FloatArray]:
    """(height, width) of the output, each [n]. A side along which the kernel is 1 long is not padded."""
    stride = np.maximum(dims["stride"], 1.0)
    transposed = np.asarray(dims.get("transposed", np.zeros_like(stride)))
    one_dimensional = (dims["h"] == 1) & (dims["kh"] == 1)
    pad_h = np.where((dims["kh"] == 1) & (one_dimensional | (dims["kw"] > 1)), 0.0, dims["padding"])
    pad_w = np.where((dims["kw"] == 1) & (dims["kh"] > 1), 0.0, dims["padding"])
    down_h = np.floor((dims["h"] + 2 * pad_h - dims["kh"]) / np.where(one_dimensional, 1.0, stride)) + 1
    down_w = np.floor((dims["w"] + 2 * pad_w - dims["kw"]) / stride) + 1
    up_h = (dims["h"] - 1) * np.where(one_dimensional, 1.0, stride) - 2 * pad_h + dims["kh"]
    up_w = (dims["w"] - 1) * stride - 2 * pad_w + dims["kw"]
    h = np.where(transposed > 0, up_h, down_h)
    w = np.where(transposed > 0, up_w, down_w)
    return np.maximum(h, 1.0), np.maximum(w, 1.0)


def least_elements(dims: Dims) -> FloatArray:
    """Elements [n] of input, weights and output together."""
    h, w = output_sides(dims)
    groups = np.maximum(dims["groups"], 1.0)
    x = dims["batch"] * dims["c_in"] * dims["h"] * dims["w"]
    y = dims["batch"] * dims["c_out"] * h * w
    weights = dims["c_out"] * dims["c_in"] / groups * dims["kh"] * dims["kw"]
    return np.asarray(x + y + weights, dtype=np.float64)


def gemm_sizes(dims: Dims, variant: str) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(m, n, k, groups) of the implicit product; a transposed convolution is the data gradient of one."""
    groups = np.maximum(dims["groups"], 1.0)
    transposed = np.asarray(dims.get("transposed", np.zeros_like(groups))) > 0
    kernel = np.maximum(dims["kh"] * dims["kw"], 1.0)
    c_in = np.maximum(dims["c_in"] / groups, 1.0)
    c_out = np.maximum(dims["c_out"] / groups, 1.0)
    batch = np.maximum(dims["batch"], 1.0)
    h, w = output_sides(dims)
    # positions where the kernel is applied: of the output, or of the input where transposed
    positions = np.where(transposed, dims["h"] * dims["w"], h * w)
    rows = np.maximum(batch * positions, 1.0)
    if variant == "dgrad":
        return rows, c_in, c_out * kernel, groups
    if variant == "wgrad":
        return c_out, c_in * kernel, rows, groups
    return rows, c_out, c_in * kernel, groups
