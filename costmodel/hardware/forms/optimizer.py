"""The optimizer's update of a set of tensors.

A GPU updates many tensors per launch, so all of them stream through the cache together. On a CPU torch
updates one tensor after another, each with several element-wise operators: a tensor that stays in the cache
between them is fetched from memory once, a larger one every time. What counts as cached there is one
tensor's bytes, not all of them.

    swept = bytes / rows on a CPU, else bytes
    rate  = bandwidth * efficiency * (1 + (cache_speedup - 1) / (1 + (swept / (cache_share * cache))^2))
    time  = launch + rows * row / units + bytes / rate + sqrt(ramp * bytes / rate)
"""

from __future__ import annotations

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.base import FORMS, Dims
from costmodel.hardware.forms.memory_bound import MemoryBoundForm
from costmodel.hardware.schema import DeviceSpec

__all__ = ["OptimizerForm"]


class OptimizerForm(MemoryBoundForm):
    """Sizes `rows` (tensors), `cols` (elements of each), `bytes` (traffic of all).

    The parameters, and so the name, are those of the other memory-bound kinds: one can stand in for another.
    """

    kinds = ("optimizer",)

    def cached_bytes(self, device: DeviceSpec, dims: Dims) -> FloatArray:
        """What must fit the cache to be fetched once [n], bytes."""
        size = np.maximum(dims["bytes"], 1.0)
        rows = np.maximum(dims["rows"], 1.0)
        return np.asarray(size / rows if device.kind == "cpu" else size, dtype=np.float64)


FORMS.register(*OptimizerForm.kinds)(OptimizerForm())
