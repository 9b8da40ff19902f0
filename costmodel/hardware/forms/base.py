"""Form: how the time of one kind of operator depends on its sizes. What calibrate fits is evaluated here.

time = physical(theta, sizes) * exp(correction(features(sizes)))

The physical part is a roofline whose attainable rates depend on shape. Its parameters are efficiencies
relative to the datasheet, so that they carry over to a device that was never measured. The correction
(`forms.correction`) is what the samples add where they are.

A form is registered under each operator kind it prices:

    @FORMS.register("gemm", "bmm")   # on a class: pass the instance, FORMS.register(...)(GemmForm())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.schema import DeviceSpec
from costmodel.registry import Registry

__all__ = ["FORMS", "Dims", "Form", "Parameter", "datasheet_floor_s", "load_forms"]

Dims = Mapping[str, FloatArray]
"""Size name (as in OPERATOR_KINDS[kind].dims) -> array [n]; every array of one call has the same length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A fitted parameter: its start value and bounds. All are positive and fitted on a log scale."""

    name: str
    start: float
    low: float
    high: float
    doc: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.low <= self.start <= self.high:
            raise ValueError(f"parameter {self.name}: needs 0 < low <= start <= high, got {self}")


class Form(ABC):
    """Base of all forms. Stateless: one instance serves every device, dtype and thread."""

    name: str = ""
    """Stored in the profile with the parameters. Change it when their meaning changes."""
    kinds: tuple[str, ...] = ()
    """Operator kinds this form is registered for."""
    streams: bool = False
    """Time is traffic: what was measured holds for another dtype of as many bytes, so a fit of the same kind
    and variant in another dtype is nearer than one of another variant."""
    rates: tuple[str, ...] = ("compute_efficiency",)
    """Parameters that are shares of the peak FLOP/s; those of a form that has none are not there."""
    steps: bool = False
    """Time climbs in steps (tiles, waves) that the features tell of, so what is left of it turns within a
    fraction of a factor e: its correction may have short lengths and a centre on every shape."""
    pools_variants: bool = False
    """Variants differ in what `physical` and `features` know of them: one fit holds the rows of all."""
    variants_alike: bool = False
    """Variants run like kernels, or the form knows how they differ: another one of a like device is nearer
    than the same of an unlike."""
    plain_variants: tuple[str, ...] = ()
    """Which variants stand for those that were not measured, the likeliest first."""

    @abstractmethod
    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Parameters with start values and bounds for this device."""

    @abstractmethod
    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n] from parameters and sizes; vectorised, positive, finite."""

    def prepared(
        self, device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> Callable[[Mapping[str, float]], FloatArray]:
        """`physical` of these sizes as a function of theta, for fits, which ask for one table thousands of
        times: forms may override it to work out once what no parameter changes."""
        return lambda theta: self.physical(theta, device, dims, dtype, variant)

    @abstractmethod
    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Coordinates [n, f] of the correction: natural logs of sizes, about one unit = a factor e.

        Points that should share a correction lie close together.
        """

    @abstractmethod
    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """Floating-point operations [n] (1 multiply-add = 2)."""

    @abstractmethod
    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Least memory traffic [n], bytes: each operand read once, each result written once."""

    def least_flop(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Operations [n] that no algorithm does without; default: all of `flop`."""
        return self.flop(dims, variant)

    def regions(
        self, device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
        """Names [n] of the region of shapes each row belongs to; residuals are kept per region.

        Default: by which side of the datasheet roofline is longer, and by decade of that time.
        """
        compute_s, memory_s = _datasheet_sides(self, device, dims, dtype, variant)
        longer_s = np.maximum(compute_s, memory_s)
        size = np.select(
            [longer_s < 1e-6, longer_s < 1e-5, longer_s < 1e-4], ["<1us", "1-10us", "10-100us"], ">100us"
        )
        side = np.where(compute_s >= memory_s, "compute", "memory")
        return np.char.add(np.char.add(side, " "), size)


FORMS: Registry[Form] = Registry("operator kind with a form")
"""Operator kind -> the form that prices it."""


@cache
def load_forms() -> Registry[Form]:
    """FORMS with every form of the package registered (their modules are imported on first use)."""
    from importlib import import_module
    from pkgutil import iter_modules

    import costmodel.hardware.forms as package

    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return FORMS


def _datasheet_sides(
    form: Form, device: DeviceSpec, dims: Dims, dtype: str, variant: str
) -> tuple[FloatArray, FloatArray]:
    from costmodel.hardware.device import peak_flop_per_s

    compute_s = form.flop(dims, variant) / peak_flop_per_s(device, dtype)
    memory_s = form.least_bytes(dims, dtype, variant) / device.memory_bytes_per_s
    return compute_s, memory_s


def datasheet_floor_s(
    form: Form, device: DeviceSpec, dims: Dims, dtype: str, variant: str, peak_ratio: float = 1.0
) -> FloatArray:
    """Seconds [n] that the datasheet does not allow to beat.

    max(least FLOP / peak, (bytes - last-level cache) / memory bandwidth): what fits the cache may stay there.
    `peak_ratio`: of a board that is known to clock above its datasheet.
    """
    from costmodel.hardware.device import peak_flop_per_s

    compute_s = form.least_flop(dims, dtype, variant) / (peak_flop_per_s(device, dtype) * peak_ratio)
    memory_s = form.least_bytes(dims, dtype, variant) / device.memory_bytes_per_s
    cached_s = device.l2_bytes / device.memory_bytes_per_s
    return np.asarray(np.maximum(compute_s, memory_s - cached_s), dtype=np.float64)
