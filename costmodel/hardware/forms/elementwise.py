"""Element-wise operators: memory-bound, and blind to the shape of what they run over.

    time = launch + bytes / rate + sqrt(ramp * bytes / rate)

The other memory-bound kinds' formula without a cost per row: a kernel sees one run of elements. A table of
measurements in which rows and bytes grow together could not tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.base import FORMS, Dims, Parameter
from costmodel.hardware.forms.memory_bound import MemoryBoundForm
from costmodel.hardware.schema import DeviceSpec

__all__ = ["ElementwiseForm"]


class ElementwiseForm(MemoryBoundForm):
    """Sizes `rows`, `cols` (their product is the number of elements), `bytes`."""

    kinds = ("elementwise",)

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Those of the memory-bound form but `row_s`."""
        return tuple(p for p in super().parameters(device, dtype, variant) if p.name != "row_s")

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        flat = {**dims, "rows": np.zeros_like(dims["rows"])}
        return super().physical({**theta, "row_s": 0.0}, device, flat, dtype, variant)


FORMS.register(*ElementwiseForm.kinds)(ElementwiseForm())
