"""GEMM and batched GEMM: roofline over thread-block tiles, waves and splits of the reduction.

For each tile shape (a, b) the library might choose:

    tiles   = batch * ceil(m / a) * ceil(n / b)
    split   = as many parts of k as fill idle multiprocessors, each at least `split_length` long
    x       = tiles * split / multiprocessors
    waves   = ceil(x) blended with max(x, 1)             several blocks per SM soften the last wave
    compute = waves * (2 a b k / split / (peak / multiprocessors * efficiency(a, b)) + block_s)
              + traffic of the split results
    memory  = traffic / (bandwidth * speed-up of cached operands * share of it that the blocks can draw)

The tile whose longer side is shortest wins, as the library's heuristics aim for, and

    both = (compute^p + memory^p)^(1/p)
    time = both * (1 + (1/sustained - 1) * share of compute * both / (both + burst)) + launch + k * latency
           + quantise * (traffic of quantising A) / bandwidth        where A is quantised by the operator

where peak is that of products whose rows are aligned to the loads of the library's kernels, or the share of
it that others reach (`hardware.alignment`).

The factor of `both` is the board's power limit: work longer than `burst` runs at the sustained clock. Block
scales are taken from the activations themselves, so such an operator first reads A wide and writes it narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.alignment import aligned_share, is_multiple
from costmodel.hardware.device import element_bytes, peak_flop_per_s, weight_bytes
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.schema import DeviceSpec

__all__ = ["GemmForm"]

_TILES = ((32, 64), (64, 32), (64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
"""Thread-block tiles that GEMM libraries ship for every generation since Pascal."""
_ROWS, _COLS = (np.array(sides, dtype=np.float64)[:, None] for sides in zip(*_TILES, strict=True))
"""Their sides [tiles, 1]."""
_MIN_SPLIT = 64.0
"""Shortest stretch of the reduction that is worth a thread block of its own, where no fit says so."""
_SPLIT = "split_length"
_ACCUMULATOR_BYTES = 8.0
"""A split result is written and read once more in fp32."""
_QUANTISED_BYTES = {"fp8_block": 3.0}
"""Bytes per element of A that a dtype's own quantisation moves: two read, one written."""
_QUANTISE = "quantise_cost"


class GemmForm(Form):
    """One form for gemm and bmm; sizes `m`, `n`, `k` and, for bmm, `batch`."""

    name = "gemm_tiles_2"
    kinds = ("gemm", "bmm")
    steps = True
    variants_alike = True

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet; `tile_*` that of one tile shape beside the whole."""
        tiles = tuple(
            Parameter(name=f"tile_{a}x{b}", start=0.45 + 0.55 * (a * b / 32768) ** 0.3, low=0.05, high=1.3)
            for a, b in _TILES
        )
        quantise = Parameter(name=_QUANTISE, start=1.0, low=0.01, high=10.0, doc="of one pass over A")
        return (
            Parameter(name="compute_efficiency", start=0.8, low=0.02, high=1.0, doc="of peak"),
            Parameter(name="wave_sharpness", start=0.6, low=0.02, high=1.0, doc="1 = whole waves only"),
            Parameter(name="memory_efficiency", start=0.8, low=0.05, high=1.0, doc="of datasheet bandwidth"),
            Parameter(name="cache_speedup", start=1.5, low=1.0, high=8.0, doc="bandwidth of cached operands"),
            Parameter(
                name="fill_fraction", start=0.3, low=0.01, high=2.0, doc="blocks per SM to fill memory"
            ),
            Parameter(name="split_cost", start=1.0, low=0.001, high=10.0, doc="traffic of split results"),
            Parameter(name=_SPLIT, start=512.0, low=32.0, high=65536.0, doc="shortest part of k"),
            Parameter(name="launch_s", start=3e-6, low=2e-7, high=2e-4, doc="floor of one launch"),
            Parameter(name="block_s", start=5e-7, low=1e-8, high=1e-4, doc="start and end of one block"),
            Parameter(name="latency_s_per_k", start=2e-10, low=1e-12, high=1e-8, doc="per k element"),
            Parameter(name="overlap_power", start=3.0, low=1.0, high=12.0, doc="of compute and memory"),
            Parameter(name="sustained_fraction", start=0.95, low=0.15, high=1.0, doc="of a burst's rate"),
            Parameter(name="burst_s", start=3e-3, low=1e-5, high=1.0, doc="time at the unlimited clock"),
            *tiles,
            *((quantise,) if dtype in _QUANTISED_BYTES else ()),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        return self.prepared(device, dims, dtype, variant)(theta)

    def prepared(
        self, device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> Callable[[Mapping[str, float]], FloatArray]:
        """`physical` of these sizes; what no parameter changes is worked out here, all tiles in one array."""
        batch, m, n, k = _sizes(dims)
        sms = float(device.multiprocessors)
        aligned = aligned_share(device, dtype, variant, {"batch": batch, "m": m, "n": n, "k": k})
        peak = peak_flop_per_s(device, dtype) / sms
        traffic = self.least_bytes(dims, dtype, variant)
        cached = 1.0 / (1.0 + (traffic / device.l2_bytes) ** 2)
        tiles = batch * np.ceil(m / _ROWS) * np.ceil(n / _COLS)
        most_copies = np.maximum(np.floor(sms / tiles), 1.0)
        results, quantised = batch * m * n, _QUANTISED_BYTES.get(dtype)

        def seconds(theta: Mapping[str, float]) -> FloatArray:
            rate = peak * theta["compute_efficiency"] * aligned
            bandwidth = device.memory_bytes_per_s * theta["memory_efficiency"]
            memory_s = traffic / (bandwidth * (1.0 + (theta["cache_speedup"] - 1.0) * cached))
            split_s = results * (theta["split_cost"] * _ACCUMULATOR_BYTES / bandwidth)
            work = k * (2.0 / rate)  # of one row and column of a tile, at an efficiency of 1
            efficiency = np.array([[theta[f"tile_{a}x{b}"]] for a, b in _TILES])
            split = np.minimum(most_copies, np.maximum(k / theta.get(_SPLIT, _MIN_SPLIT), 1.0))
            blocks = tiles * split
            sharp, x = theta["wave_sharpness"], blocks / sms
            waves = sharp * np.ceil(x)
            waves += (1.0 - sharp) * np.maximum(x, 1.0, out=x)
            compute = work / split
            compute *= _ROWS * _COLS / efficiency
            compute += theta["block_s"]
            compute *= waves
            split -= 1.0
            split *= split_s
            compute += split
            starved = np.divide(theta["fill_fraction"] * sms, blocks, out=blocks)
            np.maximum(starved, 1.0, out=starved)
            longer = np.maximum(compute, memory_s * starved)
            best, compute_s, slowed = longer[0], compute[0], starved[0]
            for one_s, tile_compute_s, tile_starved in zip(longer[1:], compute[1:], starved[1:], strict=True):
                better = one_s < best
                np.minimum(best, one_s, out=best)
                np.copyto(compute_s, tile_compute_s, where=better)
                np.copyto(slowed, tile_starved, where=better)
            p = theta["overlap_power"]
            shorter = np.minimum(compute_s, memory_s * slowed)
            both = best * (1.0 + (shorter / best) ** p) ** (1.0 / p)
            computing = compute_s / (best + shorter)
            limited = 1.0 / theta["sustained_fraction"] - 1.0
            both += both * limited * computing * both / (both + theta["burst_s"])
            if quantised is not None and _QUANTISE in theta:
                both += batch * m * k * (theta[_QUANTISE] * quantised / bandwidth)
            return np.asarray(both + theta["launch_s"] + k * theta["latency_s_per_k"], dtype=np.float64)

        return seconds

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of sizes, traffic, intensity, waves, and what the last wave and row of tiles leave idle."""
        batch, m, n, k = _sizes(dims)
        sms = float(device.multiprocessors)
        traffic = batch * (m * n + m * k + n * k)
        columns = [np.log(size) for size in (m, n, k, batch, traffic)]
        columns.append(columns[0] + columns[1] + columns[2] + columns[3] - columns[4])
        rows, cols = ({side: np.ceil(size / side) for side in (64.0, 128.0, 256.0)} for size in (m, n))
        for a, b in ((128.0, 128.0), (256.0, 128.0), (128.0, 256.0), (64.0, 64.0)):
            x = batch * rows[a] * cols[b] / sms
            columns.append(np.where(x > 1.0, 2.0 * np.log(np.ceil(x) / x), 0.0))
        columns.append(np.log(batch * rows[128.0] * cols[128.0] / sms))
        columns.append(np.minimum(3.0 * np.log(rows[128.0] * 128.0 / m), 0.7))
        columns.append(np.where(is_multiple(m, 8.0), 0.0, 1.0))
        columns.append(np.where(m <= 16, 1.0, 0.0))
        return np.stack(columns).T

    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """2 batch m n k."""
        batch, m, n, k = _sizes(dims)
        return 2.0 * batch * m * n * k

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Both operands read and the result written once."""
        batch, m, n, k = _sizes(dims)
        element = element_bytes(dtype)
        return batch * (element * (m * k + m * n) + weight_bytes(dtype) * n * k)


def _sizes(dims: Dims) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    m = np.maximum(np.asarray(dims["m"], dtype=np.float64), 1.0)
    batch = np.maximum(dims["batch"], 1.0) if "batch" in dims else np.ones_like(m)
    return batch, m, np.maximum(dims["n"], 1.0), np.maximum(dims["k"], 1.0)


FORMS.register(*GemmForm.kinds)(GemmForm())
