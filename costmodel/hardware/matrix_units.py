"""Convolutions on matrix units where nobody measured any: implicit products at the rate of products.

Tables of convolutions hold fp32, which runs on other units, by other algorithms (Winograd, FFT) and other
tiles. On matrix units libraries compute convolutions as products of positions x (channels x kernel), in the
kernels that products run in (CUTLASS, implicit GEMM; cuDNN on tensor cores), so what a device reaches in
large products of a type is what it reaches in convolutions of that type:

    gemm_efficiency   = share of the peak that the fit of products gives to its best large square one
    memory_efficiency, wave_sharpness, launch_s = those of that fit
    tiles             = alike, as tiles of 128 x 64 and more are on matrix units

Rows of a product lie in memory; those of a kernel of several positions are collected from images, beside the
products, at most as fast as `costmodel/data/convolution.json` says.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from costmodel.hardware.attained import best_share
from costmodel.hardware.device import has_matrix_units, math_dtype
from costmodel.hardware.forms.evaluate import form_of
from costmodel.hardware.schema import DeviceSpec, OperatorFit

__all__ = ["as_products", "products_variant"]

_DATA = Path(__file__).parents[1] / "data" / "convolution.json"
_SHARED = ("memory_efficiency", "wave_sharpness", "launch_s")
_VARIANTS = {"fwd": "nt", "dgrad": "nn", "wgrad": "tn"}


@lru_cache(maxsize=8)
def _gathered_bytes_per_clock(architecture: str) -> float:
    """Operands that a multiprocessor collects from images in a clock: by a copy engine or by instructions."""
    table = json.loads(_DATA.read_text(encoding="utf-8"))
    engine = architecture in table["copy_engine_architectures"]
    return float(table["gathered_bytes_per_clock"]["copy_engine" if engine else "instructions"])


def products_variant(fit: OperatorFit, measured_dtype: str, device: DeviceSpec) -> str | None:
    """The variant of products that tells how fast a convolution runs which only fp32 ones can lend a fit to;
    None where it was measured on such units, or the device has none."""
    other_units = math_dtype(measured_dtype) == "fp32" != math_dtype(fit.dtype) and has_matrix_units(device)
    return _VARIANTS[fit.variant] if fit.kind == "conv" and device.kind == "cuda" and other_units else None


def as_products(fit: OperatorFit, products: OperatorFit, device: DeviceSpec) -> OperatorFit:
    """A convolution's `fit` with the rates of `products`, of the same type on the same device."""
    form = form_of("conv")
    share = best_share(products, device)
    parameters = {p.name: p.start for p in form.parameters(device, fit.dtype, fit.variant)}
    parameters |= {name: products.parameters[name] for name in _SHARED}
    parameters["gemm_efficiency"] = float(f"{share:.6g}")
    parameters["gathered_bytes_per_clock"] = _gathered_bytes_per_clock(device.architecture)
    return fit.model_copy(
        update={
            "parameters": parameters,
            "timing": products.timing,
            "correction": None,
            "adjustments": (),
            "peak_ratio": max(1.0, parameters["gemm_efficiency"]),
            "source": f"{fit.source}; rates of products: {products.source}",
        }
    )
