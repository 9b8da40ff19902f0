"""What a device can do at most for a dtype, and how wide a dtype is.

>>> element_bytes("bf16"), element_bytes("nvfp4"), cache_bytes("bf16+fp8kv")
(2.0, 0.5625, 1.0)

A dtype may say more than one type: `bf16->fp8` converts, `bf16+fp8kv` keeps the key-value cache in fp8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from costmodel.hardware.schema import DeviceSpec

__all__ = [
    "cache_bytes",
    "dtype_fallbacks",
    "element_bytes",
    "has_matrix_units",
    "has_units",
    "math_dtype",
    "peak_flop_per_s",
    "product_dtype",
    "product_flop_per_s",
    "units_of",
    "weight_bytes",
]

_ELEMENT_BYTES = {
    "fp64": 8.0,
    "int64": 8.0,
    "fp32": 4.0,
    "tf32": 4.0,
    "int32": 4.0,
    "fp16": 2.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8": 1.0,
    "bool": 1.0,
    "sq": 1.0,
    # 4-bit values with one 8-bit scale per 16 of them
    "nvfp4": 0.5625,
    "int8_wo": 2.0,
    "int4_wo": 2.0,
}
_PAIRS = 2.5
"""Times the rate of fp32 that halves may reach without matrix units: two in a register each make it 2."""
_WEIGHT_BYTES = {"int8_wo": 1.0, "int4_wo": 0.5}
_MATH = {"fp8_block": "fp8", "fp4": "nvfp4", "sq": "int8", "int8_wo": "fp16", "int4_wo": "fp16"}
_RUNS_ON = {
    "tf32": ("fp32",),
    "fp8": ("bf16", "fp16", "fp32"),
    "nvfp4": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("fp16", "fp32"),
}
"""Wider types whose units take a dtype that has none of its own."""
_NEIGHBOURS = {
    "bf16": ("fp16", "tf32", "fp32"),
    "fp16": ("bf16", "tf32", "fp32"),
    "tf32": ("fp32",),
    "fp32": ("tf32", "fp16", "bf16"),
    "fp64": ("fp32",),
    "fp8": ("fp8_block", "int8", "bf16", "fp16", "fp32"),
    "fp8_block": ("fp8", "bf16", "fp16", "fp32"),
    "nvfp4": ("fp8", "bf16", "fp16", "fp32"),
    "int8": ("sq", "fp8", "fp16", "bf16", "fp32"),
    "sq": ("int8", "fp8", "bf16", "fp16", "fp32"),
    "int8_wo": ("fp16", "bf16", "fp32"),
    "int4_wo": ("int8_wo", "fp16", "bf16", "fp32"),
}


def element_bytes(dtype: str) -> float:
    """Bytes of one activation element; a dtype like 'bf16->fp8' counts its left side, unknown ones 4."""
    return _ELEMENT_BYTES.get(_main(dtype), 4.0)


def cache_bytes(dtype: str) -> float:
    """Bytes of one element of the key-value cache."""
    _, plus, cache = dtype.partition("+")
    return element_bytes(cache.removesuffix("kv")) if plus else element_bytes(dtype)


@cache
def _main(dtype: str) -> str:
    return dtype.split("->")[0].split("+")[0]


def weight_bytes(dtype: str) -> float:
    """Bytes of one weight element (weight-only quantisation stores them narrower than activations)."""
    return _WEIGHT_BYTES.get(dtype, element_bytes(dtype))


def math_dtype(dtype: str) -> str:
    """The dtype whose matrix units compute it: fp8_block -> fp8, weight-only int4 -> fp16."""
    return _MATH.get(_main(dtype), _main(dtype))


def dtype_fallbacks(dtype: str) -> Sequence[str]:
    """Dtypes to look at, nearest first, where `dtype` itself was not measured."""
    main = _main(dtype)
    near = _NEIGHBOURS.get(main, ("fp32", "bf16", "fp16"))
    cache = dtype.partition("+")[2]
    same_cache = [f"{other}+{cache}" for other in near] if cache else []
    return near if main == dtype else (*same_cache, main, *near)


def peak_flop_per_s(device: DeviceSpec, dtype: str) -> float:
    """Dense peak of `dtype` on the device, FLOP/s: that of `units_of` it, half of it for fp64 and int64."""
    units = units_of(device, dtype)
    halved = dtype in ("fp64", "int64") and units in (dtype, "fp32")
    return device.peak_flop_per_s[units] * (0.5 if halved else 1.0)


def product_dtype(device: DeviceSpec, dtype: str) -> str:
    """The type that libraries compute products of `dtype` operands in: fp32 on GPUs that are slower in half
    precision than in fp32 (consumer Pascal) or have no units for it (bf16 before Ampere)."""
    peaks = device.peak_flop_per_s
    slower = peaks.get(dtype, 0.0) < peaks.get("fp32", 0.0)
    return "fp32" if dtype in ("fp16", "bf16") and device.kind != "cpu" and slower else dtype


def product_flop_per_s(device: DeviceSpec, dtype: str) -> float:
    """Dense peak of products of `dtype` operands, FLOP/s: what MFU and forecasts without skill divide by."""
    return peak_flop_per_s(device, product_dtype(device, dtype))


def units_of(device: DeviceSpec, dtype: str) -> str:
    """The dtype of the units that compute `dtype`: its own, else the next wider one that the device has (fp8
    on fp16 units), else its fastest."""
    peaks = device.peak_flop_per_s
    for name in (math_dtype(dtype), *_RUNS_ON.get(math_dtype(dtype), ("fp32",))):
        if peaks.get(name, 0.0) > 0.0:
            return name
    return max(peaks, key=lambda name: peaks[name])


def has_units(device: DeviceSpec, dtype: str) -> bool:
    """Whether the device computes `dtype` (weight-only types: what they widen to) on units of its own."""
    return units_of(device, dtype) == math_dtype(dtype)


def has_matrix_units(device: DeviceSpec) -> bool:
    """Whether it has matrix units: tf32, which nothing else computes, or halves faster than pairs of them are
    (boards whose units run at half rate, as GeForce do, have no more than that)."""
    peaks = device.peak_flop_per_s
    return "tf32" in peaks or peaks.get("fp16", 0.0) > _PAIRS * peaks.get("fp32", math.inf)
