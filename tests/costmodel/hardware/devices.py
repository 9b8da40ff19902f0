"""Devices and fits that several tests share."""

from __future__ import annotations

from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.evaluate import floor_parameter, form_of
from costmodel.hardware.schema import DeviceSpec, HardwareProfile, OperatorFit, Residual

__all__ = ["device", "plain_fit", "profile"]


def device(name: str = "A100-SXM4-80GB") -> DeviceSpec:
    """A device of the datasheet file."""
    return datasheets()[name].device


def plain_fit(
    kind: str = "gemm",
    variant: str = "nt",
    dtype: str = "bf16",
    timing: str = "cuda_graph",
    *,
    on: str = "A100-SXM4-80GB",
    **changed: float,
) -> OperatorFit:
    """A fit of the form's start parameters, without correction; `changed` overrides parameters."""
    form = form_of(kind)
    theta = {p.name: p.start for p in form.parameters(device(on), dtype, variant)}
    floor = floor_parameter(device(on), timing)
    if floor is not None:
        theta[floor.name] = floor.start
    return OperatorFit(
        kind=kind,
        variant=variant,
        dtype=dtype,
        timing=timing,
        form=form.name,
        parameters=theta | changed,
        residual=Residual(mape=0.05, median_ape=0.04, bias=0.0, log_sigma=0.06, coverage=0.9, folds=5),
        n_samples=100,
        source="test",
    )


def profile(*fits: OperatorFit, on: str = "A100-SXM4-80GB") -> HardwareProfile:
    """A profile with these fits."""
    return HardwareProfile(name=on, created="2026-01-01", source="test", device=device(on), operators=fits)
