"""Fused attention: prefill, decode and training, full and latent (MLA).

    pairs    = query-key pairs: q (kv - (q - 1)/2) per head where causal, q kv else, at most q window
    compute  = waves * (2 pairs (w_qk + w_v) / tiles) / (rate of one multiprocessor * efficiency)
    w        = width of the narrowest kernel that a head of d elements fits in, d beyond the widest
    tiles    = batch * heads * ceil(q / 128); idle multiprocessors take splits of the keys
    memory   = (q, k, v, out once) / (bandwidth * share that the blocks can draw)
    time     = (compute^p + memory^p)^(1/p) + launch + kv * latency

Backward does five products to the forward's two (FlashAttention-2, arXiv 2307.08691, section 3.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.device import cache_bytes, element_bytes, peak_flop_per_s
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.schema import DeviceSpec

__all__ = ["AttentionForm"]

_KERNELS = Path(__file__).parents[2] / "data" / "attention.json"
_TILE = 128.0
_SPLIT = 256.0
"""Shortest stretch of keys that is worth a block of its own."""
_PACKED = 16.0
"""Most heads of one key head that a decode kernel computes together: rows of one matrix instruction."""
_LEVEL_S = 2e-6
"""Shortest kernel of a captured graph: below it the sizes leave no trace."""


class AttentionForm(Form):
    """One form for every phase; the variant names it."""

    name = "attention_tiles_2"
    kinds = ("attention",)
    variants_alike = True
    plain_variants = ("prefill", "fwd")

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet."""
        older = _kernels()["without_flash"]
        share = older["compute_efficiency"] if device.architecture in older["architectures"] else 0.5
        return (
            Parameter(name="compute_efficiency", start=share, low=0.005, high=1.0, doc="of peak"),
            Parameter(name="wave_sharpness", start=0.4, low=0.02, high=1.0, doc="1 = whole waves only"),
            Parameter(name="memory_efficiency", start=0.7, low=0.02, high=1.2, doc="of datasheet bandwidth"),
            Parameter(name="cache_speedup", start=1.5, low=1.0, high=10.0, doc="bandwidth of cached keys"),
            Parameter(
                name="fill_fraction", start=0.5, low=0.01, high=4.0, doc="blocks per SM to fill memory"
            ),
            Parameter(name="split_cost_s", start=2e-6, low=1e-9, high=1e-4, doc="combining split results"),
            Parameter(name="launch_s", start=5e-6, low=2e-7, high=2e-4, doc="floor of one launch"),
            Parameter(name="latency_s_per_kv", start=1e-9, low=1e-13, high=1e-7, doc="per key of one block"),
            Parameter(name="overlap_power", start=3.0, low=1.0, high=12.0, doc="of compute and memory"),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        sms = float(device.multiprocessors)
        batch, q, kv, heads, kv_heads = (np.maximum(dims[k], 1.0) for k in _NAMES)
        rate = peak_flop_per_s(device, dtype) * theta["compute_efficiency"]
        packed = np.where(q <= 16, np.minimum(heads / kv_heads, _PACKED), 1.0)
        tiles = batch * heads / packed * np.ceil(q * packed / _TILE)
        split = np.clip(np.floor(sms / tiles), 1.0, np.maximum(kv / _SPLIT, 1.0))
        blocks = tiles * split
        x = blocks / sms
        sharp = theta["wave_sharpness"]
        idle = sharp * np.ceil(x) / x + (1.0 - sharp) * np.maximum(1.0 / x, 1.0)
        padded = np.ceil(q * packed / 16.0) * 16.0 / (q * packed)
        compute = self.flop(_in_kernels(dims, device), variant) * idle * padded / rate
        traffic = self.least_bytes(dims, dtype, variant)
        cached = 1.0 / (1.0 + (traffic / device.l2_bytes) ** 2)
        nominal = device.memory_bytes_per_s * theta["memory_efficiency"]
        bandwidth = nominal * (1.0 + (theta["cache_speedup"] - 1.0) * cached)
        starved = np.maximum(theta["fill_fraction"] * sms / blocks, 1.0)
        memory = traffic / bandwidth * starved
        p = theta["overlap_power"]
        longer, shorter = np.maximum(compute, memory), np.minimum(compute, memory)
        both = longer * (1.0 + (shorter / longer) ** p) ** (1.0 / p)
        extra = np.where(split > 1.0, theta["split_cost_s"], 0.0) + kv / split * theta["latency_s_per_kv"]
        return np.asarray(both + theta["launch_s"] + extra, dtype=np.float64)

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of batch, lengths, heads and widths, and what the last wave leaves idle.

        Decode: how many heads share their keys, blocks with and without sharing, and both sides of the
        roofline, level below the time of a launch (there sizes do not matter).
        """
        batch, q, kv, heads, kv_heads = (np.maximum(dims[k], 1.0) for k in _NAMES)
        columns = [
            np.log(batch),
            np.log(q),
            np.log(kv),
            np.log(heads),
            np.log(kv_heads),
            2.0 * np.log(np.maximum(dims["qk_dim"], 1.0)),
            2.0 * np.log(np.maximum(dims["v_dim"], 1.0)),
            np.where(dims["window"] > 0, 0.5 * np.log1p(dims["window"]) - 5.0, 0.0),
        ]
        if variant == "decode":
            sharing = np.log2(heads / kv_heads)
            compute_s = self.flop(dims, variant) / peak_flop_per_s(device, dtype)
            memory_s = self.least_bytes(dims, dtype, variant) / device.memory_bytes_per_s
            columns += [
                np.log(heads / kv_heads),
                2.0 * np.maximum(sharing - np.log2(_PACKED), 0.0),
                np.log(batch * kv_heads),
                np.log(batch * heads),
                np.log(compute_s + _LEVEL_S),
                np.log(memory_s + _LEVEL_S),
            ]
        else:
            x = batch * heads * np.ceil(q / _TILE) / float(device.multiprocessors)
            columns += [
                np.log(batch * heads * q * kv),
                np.where(x > 1.0, 2.0 * np.log(np.ceil(x) / x), 0.0),
            ]
        return np.stack(columns, axis=1)

    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """2 pairs (d_qk + d_v); backward 2.5 times that."""
        q, kv = np.maximum(dims["q_len"], 1.0), np.maximum(dims["kv_len"], 1.0)
        window = np.where(dims["window"] > 0, dims["window"], np.inf)
        full = q * np.minimum(kv, window)
        causal = q * np.maximum(np.minimum(kv, window) - np.minimum((q - 1.0) / 2.0, kv / 2.0), 1.0)
        pairs = np.where(dims["causal"] > 0, causal, full)
        work = 2.0 * dims["batch"] * dims["heads"] * pairs * (dims["qk_dim"] + dims["v_dim"])
        return np.asarray(work * (2.5 if variant == "bwd" else 1.0), dtype=np.float64)

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Queries, keys, values and result once; latent attention keeps one compressed row per key."""
        width = dims["qk_dim"] + dims["v_dim"]
        kv = np.minimum(dims["kv_len"], np.where(dims["window"] > 0, dims["window"] + dims["q_len"], np.inf))
        row = dims["qk_dim"] if variant == "mla_decode" else width * np.maximum(dims["kv_heads"], 1.0)
        of_queries = element_bytes(dtype) * dims["q_len"] * dims["heads"] * width
        total = dims["batch"] * (of_queries + cache_bytes(dtype) * kv * row)
        return np.asarray(total * (2.0 if variant == "bwd" else 1.0), dtype=np.float64)


@lru_cache(maxsize=1)
def _kernels() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(_KERNELS.read_text(encoding="utf-8"))
    return table


def _in_kernels(dims: Dims, device: DeviceSpec) -> Dims:
    """The sizes with heads as wide as the kernels that a GPU's library has for them."""
    if device.kind != "cuda":
        return dims
    widths = np.array(_kernels()["head_widths"], dtype=np.float64)

    def wide(elements: FloatArray) -> FloatArray:
        place = np.searchsorted(widths, elements)
        return np.where(place < len(widths), widths[np.minimum(place, len(widths) - 1)], elements)

    return {**dims, "qk_dim": wide(dims["qk_dim"]), "v_dim": wide(dims["v_dim"])}


_NAMES = ("batch", "q_len", "kv_len", "heads", "kv_heads")

FORMS.register(*AttentionForm.kinds)(AttentionForm())
