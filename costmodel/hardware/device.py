"""What a device can do at most for a dtype, and how wide a dtype is.

>>> element_bytes("bf16"), element_bytes("nvfp4")
(2.0, 0.5625)
"""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.hardware.schema import DeviceSpec

__all__ = ["dtype_fallbacks", "element_bytes", "math_dtype", "peak_flop_per_s", "weight_bytes"]

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
_WEIGHT_BYTES = {"int8_wo": 1.0, "int4_wo": 0.5}
_MATH = {"fp8_block": "fp8", "sq": "int8", "int8_wo": "fp16", "int4_wo": "fp16"}
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
    return _ELEMENT_BYTES.get(dtype.split("->")[0], 4.0)


def weight_bytes(dtype: str) -> float:
    """Bytes of one weight element (weight-only quantisation stores them narrower than activations)."""
    return _WEIGHT_BYTES.get(dtype, element_bytes(dtype))


def math_dtype(dtype: str) -> str:
    """The dtype whose matrix units compute it: fp8_block -> fp8, weight-only int4 -> fp16."""
    return _MATH.get(dtype, dtype)


def dtype_fallbacks(dtype: str) -> Sequence[str]:
    """Dtypes to look at, nearest first, where `dtype` itself was not measured."""
    return _NEIGHBOURS.get(dtype, ("fp32", "bf16", "fp16"))


def peak_flop_per_s(device: DeviceSpec, dtype: str) -> float:
    """Dense peak of `dtype` on the device, FLOP/s.

    A dtype without units of its own runs on the next wider one that has (fp8 on fp16 units); integer and
    double types fall to half of fp32 at worst.
    """
    peaks = device.peak_flop_per_s
    for name in (math_dtype(dtype), *map(math_dtype, dtype_fallbacks(dtype))):
        if peaks.get(name, 0.0) > 0.0:
            return peaks[name] * (0.5 if dtype in ("fp64", "int64") else 1.0)
    return max(peaks.values())
