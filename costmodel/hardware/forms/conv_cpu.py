"""Convolution on a CPU: the quicker of implicit GEMM and Winograd by their multiplications.

Winograd F(2x2, 3x3) exists for 3 x 3 kernels of stride 1 and needs 4/9 of the multiplications
(arXiv 1509.09308, section 4.1), at an efficiency of its own, with transforms that move the data once more.

    time = softmin(gemm, winograd) + launch;  gemm, winograd = (compute^p + memory^p)^(1/p)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.device import element_bytes, peak_flop_per_s
from costmodel.hardware.forms.base import Dims, Parameter
from costmodel.hardware.forms.conv_shapes import gemm_sizes, least_elements, soft_max, soft_min
from costmodel.hardware.schema import DeviceSpec

__all__ = ["cpu_parameters", "cpu_s"]

_TILE = 128.0
_WINOGRAD_FLOP = 4.0 / 9.0


def cpu_parameters() -> tuple[Parameter, ...]:
    """Efficiencies are fractions of the measured peak and bandwidth."""
    return (
        Parameter(name="gemm_efficiency", start=0.6, low=0.01, high=1.0, doc="of peak"),
        Parameter(name="winograd_efficiency", start=0.5, low=0.01, high=1.0, doc="of peak"),
        Parameter(name="wave_sharpness", start=0.4, low=0.02, high=1.0, doc="1 = whole blocks only"),
        Parameter(name="channel_half", start=8.0, low=0.01, high=300.0, doc="channels of half efficiency"),
        Parameter(name="memory_efficiency", start=0.6, low=0.02, high=1.2, doc="of bandwidth"),
        Parameter(name="transform_cost", start=3.0, low=0.01, high=30.0, doc="Winograd traffic"),
        Parameter(name="launch_s", start=5e-6, low=2e-7, high=2e-4, doc="floor of one call"),
    )


def cpu_s(theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
    """Seconds [n]; see the module for the formula."""
    m, n, k, groups = gemm_sizes(dims, variant)
    peak = peak_flop_per_s(device, dtype)
    blocks = groups * np.ceil(m / _TILE) * np.ceil(n / _TILE)
    sharp = theta["wave_sharpness"]
    waves = sharp * np.ceil(blocks) / blocks + (1.0 - sharp) * np.maximum(1.0 / blocks, 1.0)
    waves = np.minimum(waves, np.maximum(1.0, 1.0 / blocks / np.maximum(k / 64.0, 1.0)) + 1.0)
    half = theta["channel_half"]
    narrow = (1.0 + half / n) * (1.0 + half / np.maximum(k, 1.0))
    work = 2.0 * groups * m * n * k * narrow
    memory_s = element_bytes(dtype) * least_elements(dims)
    memory_s = memory_s / (device.memory_bytes_per_s * theta["memory_efficiency"])
    gemm = soft_max(work * waves / (peak * theta["gemm_efficiency"]), memory_s)
    winograd = soft_max(
        _WINOGRAD_FLOP * work * np.maximum(1.0, waves) / (peak * theta["winograd_efficiency"]),
        memory_s * (1.0 + theta["transform_cost"]),
    )
    three = (dims["kh"] == 3) & (dims["kw"] == 3) & (dims["stride"] <= 1)
    allowed = three & (groups == 1) & (variant != "wgrad")
    quicker = soft_min([gemm, np.where(allowed, winograd, np.inf)])
    return np.asarray(quicker + theta["launch_s"], dtype=np.float64)
