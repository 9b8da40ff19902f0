"""Convolution: the quickest of the algorithms that libraries choose from.

    implicit GEMM     A[m, k] B[k, n] per group; forward: m = batch x output positions, n = output channels,
                      k = input channels x kernel; data gradient swaps channels, weight gradient sums over m
    fused Winograd    F(2x2, 3x3): 16 products for every 2 x 2 outputs instead of 36, in one kernel
    staged Winograd   F(4x4, 3x3): 36 products for every 4 x 4 outputs instead of 144; transforms and products
                      are kernels of their own, so what is transformed goes through memory
    FFT               products of frequencies of images padded to a power of two, in stages as well
    columns           data gradient (and what is transposed): A[m, c_out] B[c_out, c_in x kernel], its result
                      goes through memory to be summed; where few channels leave a tile of implicit GEMM idle
    direct            one channel per group: each multiply-add fetches its operands, as many a clock as a
                      multiprocessor's first-level cache has banks; gradients of such weights, sums over all
                      images and positions, take a multiple of the forward in half precision
                      (`costmodel/data/depthwise.json`)

Winograd exists for 3 x 3 kernels of stride 1 (arXiv 1509.09308, section 4), FFT for stride 1 (arXiv
1412.7580, section 2); both for fp32 and not for weight gradients: kernels on matrix units are implicit
GEMMs. Groups are convolutions of their own, side by side in one launch, on matrix units in the widest tiles
unless their channels are a power of two. Outputs are covered by whole tiles,
tiles and channels by whole blocks, blocks run in whole waves: an image of 5 x 5 pays for 8 x 8 in tiles of
4 x 4.

    products   = waves(blocks) * block's FLOP (+ start) / (rate of one multiprocessor * efficiency)
                 beside block's operands / what a multiprocessor gathers from images, where the fit says so
    one kernel = (products^p + memory^p)^(1/p)
    stages     = one kernel + what is transformed / bandwidth + further launches
    time       = softmin over algorithms + launch

A CPU has two algorithms and no waves: `conv_cpu`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodel.estimate import FloatArray
from costmodel.hardware.device import element_bytes, math_dtype, peak_flop_per_s
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.forms.conv_cpu import cpu_parameters, cpu_s
from costmodel.hardware.forms.conv_shapes import gemm_sizes, least_elements, output_sides, soft_max, soft_min
from costmodel.hardware.schema import DeviceSpec

__all__ = ["ConvForm"]

_DEPTHWISE = Path(__file__).resolve().parents[2] / "data" / "depthwise.json"
_IMPLICIT_TILES = ((128.0, 32.0), (128.0, 64.0), (128.0, 128.0))
"""Positions and channels of one block of implicit GEMM."""
_WIDE = _IMPLICIT_TILES[-1:]
_FUSED_TILE = (32.0, 32.0)
"""Winograd tiles and channels of one block."""
_STAGED_TILES = ((64.0, 64.0), (32.0, 128.0), (128.0, 128.0))
_FFT_TILES = ((32.0, 32.0), (64.0, 64.0))
_FFT_SIDES = (8.0, 32.0)
"""Shortest and longest side of a padded image; longer images are cut."""
_COMPLEX = 4.0
"""A complex multiply-add is four real ones."""
_DEPTH_STEP = 8.0
_SPLIT_DEPTH = 256.0
"""Shortest stretch of a weight gradient's reduction that is worth a block of its own."""
_GATHERED = "gathered_bytes_per_clock"
_HALF_BYTES = 2.0
_VECTOR_BYTES = 16.0
"""Width of the loads that kernels on matrix units make."""
_BANKS = 32.0
"""Words that a multiprocessor's shared memory or first-level cache delivers in a clock."""


class ConvForm(Form):
    """Forward, data gradient and weight gradient (variants fwd, dgrad, wgrad)."""

    name = "conv_algorithms_2"
    kinds = ("conv",)
    rates = ("gemm_efficiency", "fused_efficiency", "staged_efficiency", "fft_efficiency")

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet; `*_start`: reduction length of equal start-up time."""
        if device.kind == "cpu":
            return cpu_parameters()
        shared = (
            Parameter(name="gemm_efficiency", start=0.65, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="gemm_128x32", start=1.0, low=0.1, high=1.3, doc="beside 128 x 128"),
            Parameter(name="gemm_128x64", start=1.0, low=0.1, high=1.3, doc="beside 128 x 128"),
            Parameter(name="gemm_start", start=3.0, low=0.1, high=300.0, doc="implicit GEMM"),
            Parameter(name="wave_sharpness", start=0.8, low=0.02, high=1.0, doc="1 = whole waves only"),
            Parameter(name="memory_efficiency", start=0.55, low=0.02, high=1.2, doc="of datasheet bandwidth"),
            Parameter(name="launch_s", start=5e-6, low=2e-7, high=2e-4, doc="floor of one launch"),
        )
        if not _has_transforms(dtype, variant):
            return shared
        return (
            *shared,
            Parameter(name="fused_efficiency", start=0.65, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="fused_start", start=9.0, low=0.1, high=300.0, doc="fused Winograd"),
            Parameter(name="staged_efficiency", start=0.75, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="staged_64x64", start=1.0, low=0.1, high=1.3, doc="beside 128 x 128"),
            Parameter(name="staged_32x128", start=0.9, low=0.1, high=1.3, doc="beside 128 x 128"),
            Parameter(name="staged_start", start=2.0, low=0.1, high=300.0, doc="products of stages"),
            Parameter(name="fft_efficiency", start=0.5, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="transform_efficiency", start=0.38, low=0.02, high=3.0, doc="of bandwidth"),
            Parameter(name="stage_s", start=5e-5, low=1e-7, high=2e-4, doc="each further kernel"),
            Parameter(name="filter_s", start=4e-10, low=1e-13, high=1e-8, doc="transforming one filter"),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        if device.kind == "cpu":
            return cpu_s(theta, device, dims, dtype, variant)
        times_s = self._quickest_s(theta, device, dims, dtype, variant)
        alone = (dims["groups"] > 1) & (dims["c_in"] <= dims["groups"])
        if variant == "wgrad" and element_bytes(dtype) == _HALF_BYTES and np.any(alone):
            forward_s = self._quickest_s(theta, device, dims, dtype, "fwd")
            times_s = np.where(alone, _gradient_forwards() * forward_s, times_s)
        return np.asarray(times_s + theta["launch_s"], dtype=np.float64)

    def _quickest_s(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        return soft_min(list(self.algorithms_s(theta, device, dims, dtype, variant).values()))

    def algorithms_s(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> dict[str, FloatArray]:
        """Algorithm -> seconds [n] on a GPU, infinite where it does not exist; the launch is left out."""
        padded = dims if math_dtype(dtype) == "fp32" else _aligned(dims, dtype)
        m, n, k, groups = gemm_sizes(padded, variant)
        bandwidth = device.memory_bytes_per_s * theta["memory_efficiency"]
        memory_s = self.least_bytes(dims, dtype, variant) / bandwidth
        kernel = np.maximum(dims["kh"] * dims["kw"], 1.0)
        split_sums = variant == "wgrad"
        gathered = (kernel > 1.0) | (dims["stride"] > 1)
        implicit_s = _gemm_s(
            theta, device, dtype, (m, n, k, groups), split_sums=split_sums, gathered=gathered
        )
        if np.any(groups > 1):  # at worst all groups as one product, most of which is thrown away
            whole = (m * groups, n * groups, k) if split_sums else (m, n * groups, k * groups)
            sizes = (*whole, np.ones_like(m))
            dense_s = _gemm_s(theta, device, dtype, sizes, split_sums=split_sums, gathered=gathered)
            if math_dtype(dtype) != "fp32":  # groups of other widths run in the dense layers' tiles
                sizes = (m, n, k, groups)
                wide_s = _gemm_s(
                    theta, device, dtype, sizes, split_sums=split_sums, gathered=gathered, tiles=_WIDE
                )
                implicit_s = np.where(_has_group_kernels(dims), implicit_s, wide_s)
            implicit_s = np.minimum(implicit_s, dense_s)
        found = {"implicit_gemm": soft_max(implicit_s, memory_s)}
        scattered = _scatters(dims, variant)
        if np.any(scattered):
            columns_s = _gemm_s(theta, device, dtype, (m, n * kernel, k / kernel, groups))
            moved_s = 2.0 * element_bytes(dtype) * groups * m * n * kernel / bandwidth
            found["columns"] = np.where(scattered, soft_max(columns_s, memory_s) + moved_s, np.inf)
        alone = (groups > 1) & (dims["c_in"] <= groups)
        if np.any(alone):
            per_s = _BANKS * device.multiprocessors * device.boost_hz * theta["gemm_efficiency"]
            found["direct"] = np.where(alone, soft_max(groups * m * n * k / per_s, memory_s), np.inf)
        if not _has_transforms(dtype, variant) or "filter_s" not in theta:  # those of a weight gradient
            return found
        plain, three = _exists(dims)
        c_in = k / kernel
        filters_s = groups * c_in * n * theta["filter_s"]
        fused_s = _fused_s(theta, device, dims, dtype, c_in, n)
        found["fused_winograd"] = np.where(three, soft_max(fused_s, memory_s) + filters_s, np.inf)
        for name, (stages_s, transforms_s) in {
            "staged_winograd": _staged_s(theta, device, dims, dtype, c_in, n),
            "fft": _fft_s(theta, device, dims, dtype, c_in, n),
        }.items():
            exists = three if name == "staged_winograd" else plain
            found[name] = np.where(
                exists, soft_max(stages_s, memory_s) + transforms_s + filters_s * (name != "fft"), np.inf
            )
        return found

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of the product's sizes, of image and kernel, and of what the tiles leave idle."""
        m, n, k, groups = gemm_sizes(dims, variant)
        blocks = groups * np.ceil(m / 128.0) * np.ceil(n / 128.0) / float(device.multiprocessors)
        return np.stack(
            [
                np.log(m * groups),
                np.log(n),
                np.log(k),
                0.7 * np.log(np.maximum(dims["h"] * dims["w"], 1.0)),
                0.7 * np.log(np.maximum(dims["batch"], 1.0)),
                np.log(np.maximum(dims["kh"] * dims["kw"], 1.0)),
                2.0 * np.log(np.maximum(dims["stride"], 1.0)),
                np.log(groups),
                np.where(blocks > 1.0, 2.0 * np.log(np.ceil(blocks) / blocks), 0.0),
                np.where(np.asarray(dims["c_in"]) % 4 == 0, 0.0, 0.7),
            ],
            axis=1,
        )

    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """2 x batch x output positions x c_out x c_in / groups x kernel, for each of the three."""
        m, n, k, groups = gemm_sizes(dims, variant)
        return 2.0 * groups * m * n * k

    def least_flop(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Products of the algorithm that needs fewest: F(4x4, 3x3) a quarter, FFT one per frequency."""
        flop = self.flop(dims, variant)
        if not _has_transforms(dtype, variant):
            return flop
        plain, three = _exists(dims)
        kernel = np.maximum(dims["kh"] * dims["kw"], 1.0)
        side, step = _FFT_SIDES[1], _FFT_SIDES[1] - np.maximum(dims["kh"], dims["kw"]) + 1.0
        by_fft = _COMPLEX * side * (side / 2.0 + 1.0) / (np.maximum(step, 1.0) ** 2 * kernel)
        share = np.minimum(np.where(plain, by_fft, 1.0), np.where(three, 36.0 / 144.0, 1.0))
        return np.asarray(flop * np.minimum(share, 1.0), dtype=np.float64)

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Input, weights and output once each."""
        return element_bytes(dtype) * least_elements(dims)


@lru_cache(maxsize=1)
def _gradient_forwards() -> float:
    """Times that the gradient of a depthwise convolution's weights takes as long as its forward."""
    return float(json.loads(_DEPTHWISE.read_text(encoding="utf-8"))["weight_gradient_forwards"])


def _has_transforms(dtype: str, variant: str) -> bool:
    return math_dtype(dtype) == "fp32" and variant != "wgrad"


def _has_group_kernels(dims: Dims) -> NDArray[np.bool_]:
    """Whether libraries have kernels of matrix units for groups of so many channels: powers of two [n]
    (RegNets with 16 channels a group run as such tiles would, with 24, 48 and 120 as in tiles of 128)."""
    width = np.maximum(dims["c_in"] / np.maximum(dims["groups"], 1.0), 1.0)
    return np.asarray(np.log2(width) % 1.0 == 0.0) | (dims["groups"] <= 1)


def _aligned(dims: Dims, dtype: str) -> Dims:
    """Sizes with input channels filled up to whole vectors, as libraries do for kernels on matrix units:
    three colours become eight in half precision."""
    vector = _VECTOR_BYTES / element_bytes(dtype)
    plain = np.maximum(dims["groups"], 1.0) == 1.0
    return {**dims, "c_in": np.where(plain, np.ceil(dims["c_in"] / vector) * vector, dims["c_in"])}


def _exists(dims: Dims) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether there is an FFT, and whether a Winograd kernel, each [n]."""
    plain = (dims["stride"] <= 1) & (np.asarray(dims["kh"]) > 1)
    return plain, plain & (dims["kh"] == 3) & (dims["kw"] == 3)


def _scatters(dims: Dims, variant: str) -> NDArray[np.bool_]:
    """Whether results are summed where they overlap: data gradients, transposed forwards [n]."""
    transposed = np.asarray(dims.get("transposed", np.zeros_like(dims["stride"]))) > 0
    if variant == "wgrad":
        return np.zeros_like(transposed)
    return transposed if variant == "fwd" else ~transposed


def _gemm_s(
    theta: Mapping[str, float],
    device: DeviceSpec,
    dtype: str,
    sizes: tuple[FloatArray, FloatArray, FloatArray, FloatArray],
    *,
    split_sums: bool = False,
    gathered: NDArray[np.bool_] | bool = False,
    tiles: Sequence[tuple[float, float]] = _IMPLICIT_TILES,
) -> FloatArray:
    """Seconds [n] of one product of (m, n, k) per group in the quickest tile.

    `split_sums`: both sides of the result are channels, so a tile may lie either way, and idle
    multiprocessors take parts of the sum. `gathered`: rows of an operand are collected from an image, where
    those of a kernel of one position lie as in a product.
    """
    m, n, k, groups = sizes
    best = np.full(m.shape, np.inf)
    for tile in tiles:
        for rows, cols in {tile, tile[::-1]} if split_sums else {tile}:
            blocks = groups * np.ceil(m / rows) * np.ceil(n / cols)
            split = np.ones_like(m)
            if split_sums:
                most = np.maximum(k / _SPLIT_DEPTH, 1.0)
                split = np.clip(np.floor(device.multiprocessors / blocks), 1.0, most)
            rate: FloatArray | float
            rate = theta["gemm_efficiency"] * theta.get(f"gemm_{tile[0]:.0f}x{tile[1]:.0f}", 1.0)
            if _GATHERED in theta:
                gathering = _gathering(theta[_GATHERED], device, dtype, rows, cols)
                busy = soft_max(np.asarray(1.0 / rate), np.asarray(gathered * gathering))
                rate = np.asarray(1.0 / busy, dtype=np.float64)
            work = rows * cols * _deep(k / split, theta["gemm_start"])
            best = np.minimum(best, _products_s(theta, device, dtype, blocks * split, work, rate))
    return best


def _gathering(bytes_per_clock: float, device: DeviceSpec, dtype: str, rows: float, cols: float) -> float:
    """Time in which a multiprocessor gathers the operands of a block over that of its FLOP at the peak."""
    flop_per_clock = peak_flop_per_s(device, dtype) / (device.multiprocessors * device.boost_hz)
    flop_per_byte = 2.0 * rows * cols / ((rows + cols) * element_bytes(dtype))
    return flop_per_clock / flop_per_byte / bytes_per_clock


def _deep(k: FloatArray, start: float) -> FloatArray:
    """Reduction length in whole steps, with the start-up of a block [n]."""
    return np.asarray(np.ceil(k / _DEPTH_STEP) * _DEPTH_STEP + start)


def _products_s(
    theta: Mapping[str, float],
    device: DeviceSpec,
    dtype: str,
    blocks: FloatArray,
    work: FloatArray,
    efficiency: FloatArray | float,
) -> FloatArray:
    """Seconds [n] of `blocks` blocks of `work` multiply-adds each, in waves over the multiprocessors."""
    sms = float(device.multiprocessors)
    x, sharp = blocks / sms, theta["wave_sharpness"]
    waves = sharp * np.ceil(x) + (1.0 - sharp) * np.maximum(x, 1.0)
    return np.asarray(waves * 2.0 * work * sms / (peak_flop_per_s(device, dtype) * efficiency))


def _tiles(dims: Dims, side: float) -> FloatArray:
    """Tiles of side x side outputs that cover all images [n]."""
    h, w = output_sides(dims)
    return np.asarray(np.maximum(dims["batch"], 1.0) * np.ceil(h / side) * np.ceil(w / side))


def _groups(dims: Dims) -> FloatArray:
    return np.maximum(dims["groups"], 1.0)


def _fused_s(
    theta: Mapping[str, float],
    device: DeviceSpec,
    dims: Dims,
    dtype: str,
    c_in: FloatArray,
    c_out: FloatArray,
) -> FloatArray:
    rows, cols = _FUSED_TILE
    blocks = _groups(dims) * np.ceil(_tiles(dims, 2.0) / rows) * np.ceil(c_out / cols)
    work = 16.0 * rows * cols * _deep(c_in, theta["fused_start"])
    return _products_s(theta, device, dtype, blocks, work, theta["fused_efficiency"])


def _staged_s(
    theta: Mapping[str, float],
    device: DeviceSpec,
    dims: Dims,
    dtype: str,
    c_in: FloatArray,
    c_out: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """(products, transforms) of F(4x4, 3x3): 36 products of tiles x c_in by c_in x c_out."""
    tiles, best = _tiles(dims, 4.0), np.full(c_in.shape, np.inf)
    for rows, cols in _STAGED_TILES:
        blocks = 36.0 * _groups(dims) * np.ceil(tiles / rows) * np.ceil(c_out / cols)
        rate = theta["staged_efficiency"] * theta.get(f"staged_{rows:.0f}x{cols:.0f}", 1.0)
        work = rows * cols * _deep(c_in, theta["staged_start"])
        best = np.minimum(best, _products_s(theta, device, dtype, blocks, work, rate))
    moved = 36.0 * element_bytes(dtype) * _groups(dims) * (tiles * (c_in + c_out) + c_in * c_out)
    transforms_s = moved / (device.memory_bytes_per_s * theta["transform_efficiency"])
    return best, np.asarray(transforms_s + 2.0 * theta["stage_s"])


def _fft_s(
    theta: Mapping[str, float],
    device: DeviceSpec,
    dims: Dims,
    dtype: str,
    c_in: FloatArray,
    c_out: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """(products, transforms): one complex product of images x c_in by c_in x c_out per frequency."""
    h, w = output_sides(dims)
    over = np.maximum(dims["kh"], dims["kw"]) - 1.0
    side = np.clip(np.exp2(np.ceil(np.log2(np.maximum(h, w) + over))), *_FFT_SIDES)
    step = np.maximum(side - over, 1.0)
    images = np.maximum(dims["batch"], 1.0) * np.ceil(h / step) * np.ceil(w / step)
    frequencies = side * (side / 2.0 + 1.0)
    best = np.full(c_in.shape, np.inf)
    for rows, cols in _FFT_TILES:
        blocks = frequencies * _groups(dims) * np.ceil(images / rows) * np.ceil(c_out / cols)
        work = _COMPLEX * rows * cols * _deep(c_in, theta["staged_start"])
        best = np.minimum(best, _products_s(theta, device, dtype, blocks, work, theta["fft_efficiency"]))
    moved = 2.0 * element_bytes(dtype) * frequencies * (images * (c_in + c_out) + c_in * c_out)
    moved = moved * _groups(dims)
    transforms_s = moved / (device.memory_bytes_per_s * theta["transform_efficiency"])
    return best, np.asarray(transforms_s + 3.0 * theta["stage_s"])


FORMS.register(*ConvForm.kinds)(ConvForm())
