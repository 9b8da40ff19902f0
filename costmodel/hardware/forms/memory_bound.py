"""Memory-bound operators: normalisation, softmax, reduction, embedding, quantise.

    rate   = bandwidth * efficiency * (1 + (cache_speedup - 1) / (1 + (bytes / (cache_share * cache))^2))
    time   = launch + rows * row / units + bytes / rate + sqrt(ramp * bytes / rate)

Two bandwidths (last-level cache and memory) with a smooth change between them; `row` is what each row costs
beyond its bytes; `ramp` is how slowly bandwidth is reached.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.schema import DeviceSpec

__all__ = ["MemoryBoundForm"]


class MemoryBoundForm(Form):
    """One form for every kind whose time is traffic; sizes `rows`, `cols`, `bytes`."""

    name = "memory_bound_2"
    streams = True
    plain_variants = ("add", "mul", "fwd", "layernorm", "sum")
    kinds: tuple[str, ...] = ("norm", "softmax", "reduction", "embedding", "quantise")

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet bandwidth."""
        return (
            Parameter(
                name="memory_efficiency", start=0.75, low=0.003, high=1.2, doc="of datasheet bandwidth"
            ),
            Parameter(name="cache_speedup", start=2.0, low=1.0, high=40.0, doc="bandwidth of what is cached"),
            Parameter(name="cache_share", start=0.5, low=0.005, high=4.0, doc="of the last-level cache"),
            Parameter(name="launch_s", start=3e-6, low=2e-7, high=2e-4, doc="floor of one launch"),
            Parameter(name="row_s", start=1e-8, low=1e-11, high=2e-4, doc="per row, one unit"),
            Parameter(name="ramp_s", start=1e-7, low=1e-9, high=1e-4, doc="how slowly bandwidth is reached"),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        size = np.maximum(dims["bytes"], 1.0)
        rows = np.maximum(dims["rows"], 1.0)
        cached = 1.0 / (
            1.0 + (self.cached_bytes(device, dims) / (theta["cache_share"] * device.l2_bytes)) ** 2
        )
        rate = (
            device.memory_bytes_per_s
            * theta["memory_efficiency"]
            * (1.0 + (theta["cache_speedup"] - 1.0) * cached)
        )
        busy = size / rate
        units = 1.0 if device.kind == "cpu" else float(device.multiprocessors)
        overhead = theta["launch_s"] + rows * theta.get("row_s", 0.0) / units
        return np.asarray(overhead + busy + np.sqrt(theta["ramp_s"] * busy), dtype=np.float64)

    def cached_bytes(self, device: DeviceSpec, dims: Dims) -> FloatArray:
        """What must fit the cache for the faster bandwidth [n], bytes."""
        return np.asarray(np.maximum(dims["bytes"], 1.0), dtype=np.float64)

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of bytes, rows, cols and bytes per element, and whether cols fill whole vectors."""
        rows, cols = np.maximum(dims["rows"], 1.0), np.maximum(dims["cols"], 1.0)
        columns = [
            np.log(np.maximum(dims["bytes"], 1.0)),
            0.5 * np.log(rows),
            0.5 * np.log(cols),
            np.where(cols % 4 == 0, 0.0, 0.5),
        ]
        if device.kind == "cpu":  # calls of one variant differ in operands (a broadcast one moves little)
            columns.append(4.0 * np.log(np.maximum(dims["bytes"], 1.0) / (rows * cols)))
        return np.stack(columns, axis=1)

    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """None counted: the arithmetic hides behind the traffic."""
        return np.zeros_like(dims["bytes"])

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """The traffic the caller states."""
        return np.asarray(dims["bytes"], dtype=np.float64)


FORMS.register(*MemoryBoundForm.kinds)(MemoryBoundForm())
