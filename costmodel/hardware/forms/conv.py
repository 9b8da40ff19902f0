"""Convolution: the quicker of two algorithms, implicit GEMM and Winograd.

Implicit GEMM (forward): C[m, n] = A[m, k] B[k, n] per group, m = batch x output positions, n = output
channels, k = input channels x kernel; data gradient swaps the channels, weight gradient reduces over m.
Winograd F(2x2, 3x3) exists for 3 x 3 kernels of stride 1 and needs 4/9 of the multiplications
(arXiv 1509.09308, section 4.1), at an efficiency of its own, with transforms that move the data once more.

    time = softmin(gemm, winograd) + launch;  gemm, winograd = (compute^p + memory^p)^(1/p)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.device import element_bytes, peak_flop_per_s
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.schema import DeviceSpec

__all__ = ["ConvForm"]

_TILE = 128.0
_WINOGRAD_FLOP = 4.0 / 9.0
_SHARP = 8.0
"""How sharply the library takes the quicker algorithm (power of the soft minimum)."""
_POWER = 3.0


class ConvForm(Form):
    """Forward, data gradient and weight gradient (variants fwd, dgrad, wgrad)."""

    name = "conv_two_algorithms_1"
    kinds = ("conv",)

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet."""
        return (
            Parameter(name="gemm_efficiency", start=0.6, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="winograd_efficiency", start=0.5, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="wave_sharpness", start=0.4, low=0.02, high=1.0, doc="1 = whole waves only"),
            Parameter(
                name="channel_half", start=8.0, low=0.01, high=300.0, doc="channels of half efficiency"
            ),
            Parameter(name="memory_efficiency", start=0.6, low=0.02, high=1.2, doc="of datasheet bandwidth"),
            Parameter(name="transform_cost", start=3.0, low=0.01, high=30.0, doc="Winograd traffic"),
            Parameter(name="launch_s", start=5e-6, low=2e-7, high=2e-4, doc="floor of one launch"),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        m, n, k, groups = _gemm_sizes(dims, variant)
        peak = peak_flop_per_s(device, dtype)
        blocks = groups * np.ceil(m / _TILE) * np.ceil(n / _TILE)
        parallel = float(device.multiprocessors) if device.kind != "cpu" else 1.0
        x = blocks / parallel
        sharp = theta["wave_sharpness"]
        # blocks of the reduction fill idle multiprocessors (split-k)
        waves = sharp * np.ceil(x) / x + (1.0 - sharp) * np.maximum(1.0 / x, 1.0)
        waves = np.minimum(waves, np.maximum(1.0, parallel / blocks / np.maximum(k / 64.0, 1.0)) + 1.0)
        half = theta["channel_half"]
        narrow = (1.0 + half / n) * (1.0 + half / np.maximum(k, 1.0))
        flop = self.flop(dims, variant)
        bandwidth = device.memory_bytes_per_s * theta["memory_efficiency"]
        traffic_s = self.least_bytes(dims, dtype, variant) / bandwidth
        gemm = _both(flop * waves * narrow / (peak * theta["gemm_efficiency"]), traffic_s)
        winograd = _both(
            _WINOGRAD_FLOP * flop * narrow * np.maximum(1.0, waves) / (peak * theta["winograd_efficiency"]),
            traffic_s * (1.0 + theta["transform_cost"]),
        )
        allowed = (
            (dims["kh"] == 3)
            & (dims["kw"] == 3)
            & (dims["stride"] <= 1)
            & (groups == 1)
            & (variant != "wgrad")
        )
        quicker = np.where(allowed, (gemm**-_SHARP + winograd**-_SHARP) ** (-1.0 / _SHARP), gemm)
        return np.asarray(quicker + theta["launch_s"], dtype=np.float64)

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of the product's sizes, of image and kernel, and of what the tiles leave idle."""
        m, n, k, groups = _gemm_sizes(dims, variant)
        blocks = groups * np.ceil(m / _TILE) * np.ceil(n / _TILE) / float(device.multiprocessors)
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
        m, n, k, groups = _gemm_sizes(dims, variant)
        return 2.0 * groups * m * n * k

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Input, weights and output once each."""
        positions = _output_positions(dims)
        groups = np.maximum(dims["groups"], 1.0)
        x = dims["batch"] * dims["c_in"] * dims["h"] * dims["w"]
        y = dims["batch"] * dims["c_out"] * positions
        weights = dims["c_out"] * dims["c_in"] / groups * dims["kh"] * dims["kw"]
        return np.asarray(element_bytes(dtype) * (x + y + weights), dtype=np.float64)


def _both(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray((a**_POWER + b**_POWER) ** (1.0 / _POWER), dtype=np.float64)


def _output_positions(dims: Dims) -> FloatArray:
    stride = np.maximum(dims["stride"], 1.0)
    transposed = np.asarray(dims.get("transposed", np.zeros_like(stride)))
    one_dimensional = (dims["h"] == 1) & (dims["kh"] == 1)
    pad_h = np.where(one_dimensional, 0.0, dims["padding"])
    down_h = np.floor((dims["h"] + 2 * pad_h - dims["kh"]) / np.where(one_dimensional, 1.0, stride)) + 1
    down_w = np.floor((dims["w"] + 2 * dims["padding"] - dims["kw"]) / stride) + 1
    up_h = (dims["h"] - 1) * np.where(one_dimensional, 1.0, stride) - 2 * pad_h + dims["kh"]
    up_w = (dims["w"] - 1) * stride - 2 * dims["padding"] + dims["kw"]
    h = np.where(transposed > 0, up_h, down_h)
    w = np.where(transposed > 0, up_w, down_w)
    return np.asarray(np.maximum(h, 1.0) * np.maximum(w, 1.0), dtype=np.float64)


def _gemm_sizes(dims: Dims, variant: str) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(m, n, k, groups) of the implicit product; a transposed convolution is the data gradient of one."""
    groups = np.maximum(dims["groups"], 1.0)
    transposed = np.asarray(dims.get("transposed", np.zeros_like(groups))) > 0
    kernel = np.maximum(dims["kh"] * dims["kw"], 1.0)
    c_in = np.maximum(dims["c_in"] / groups, 1.0)
    c_out = np.maximum(dims["c_out"] / groups, 1.0)
    batch = np.maximum(dims["batch"], 1.0)
    # positions where the kernel is applied: of the output, or of the input where transposed
    positions = np.where(transposed, dims["h"] * dims["w"], _output_positions(dims))
    rows = np.maximum(batch * positions, 1.0)
    if variant == "dgrad":
        return rows, c_in, c_out * kernel, groups
    if variant == "wgrad":
        return c_out, c_in * kernel, rows, groups
    return rows, c_out, c_in * kernel, groups


FORMS.register(*ConvForm.kinds)(ConvForm())
