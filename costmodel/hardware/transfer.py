"""Operator fits for a device that was never measured: its datasheet and the nearest measured device.

Parameters are efficiencies relative to the datasheet, so they carry over as they are, but for one limit: a
board can spend only its power. The rate that its watts buy,

    power_w * FLOP per joule * (process_nm of the source / process_nm of the target) ^ exponent

caps the compute efficiency, where the FLOP per joule are those the source reached, or those known of the
dtype from a device that is limited by power (`costmodel/data/energy.json`).

The correction stays within one architecture (it speaks of tiles and waves of the same kernels); across
architectures only the form carries over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from costmodel.hardware.device import math_dtype, peak_flop_per_s
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.schema import DeviceSpec, HardwareProfile, OperatorFit

__all__ = ["device_distance", "power_capped_efficiency", "transfer_fit", "transferred_fits"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "energy.json"
_COMPUTE = "compute_efficiency"
_GENERATIONS = ("Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell")
_AMD = ("CDNA1", "CDNA2", "CDNA3")


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: float
    process_nm: float
    device: str


class _Energy(BaseModel):
    model_config = ConfigDict(frozen=True)
    source: str
    process_exponent: float
    flop_per_joule: dict[str, _Reference]


@lru_cache(maxsize=1)
def _energy() -> _Energy:
    return _Energy.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))


def device_distance(source: DeviceSpec, target: DeviceSpec) -> float:
    """How unlike two devices are: 0 = equal; an architecture apart counts 1, a vendor 10, and within one
    architecture the ratios of peak, bandwidth and multiprocessors decide."""
    import math

    apart = 10.0 * (source.kind != target.kind)
    for family in (_GENERATIONS, _AMD):
        if source.architecture in family and target.architecture in family:
            apart += abs(family.index(source.architecture) - family.index(target.architecture))
    if apart == 0.0 and source.architecture != target.architecture:
        apart = 5.0
    ratios = (
        source.memory_bytes_per_s / target.memory_bytes_per_s,
        source.multiprocessors / target.multiprocessors,
        peak_flop_per_s(source, "fp16") / peak_flop_per_s(target, "fp16"),
    )
    return apart + 0.1 * sum(abs(math.log(ratio)) for ratio in ratios)


def power_capped_efficiency(source: DeviceSpec, target: DeviceSpec, dtype: str, efficiency: float) -> float:
    """Compute efficiency on `target` of a kernel that reaches `efficiency` on `source`."""
    if not (source.power_w and target.power_w and source.process_nm and target.process_nm):
        return efficiency
    exponent = _energy().process_exponent
    reached = efficiency * peak_flop_per_s(source, dtype) / source.power_w
    flop_per_joule = reached * (source.process_nm / target.process_nm) ** exponent
    reference = _energy().flop_per_joule.get(math_dtype(dtype))
    if reference is not None:
        known = reference.value * (reference.process_nm / target.process_nm) ** exponent
        flop_per_joule = max(flop_per_joule, known)
    return float(min(efficiency, flop_per_joule * target.power_w / peak_flop_per_s(target, dtype)))


def transfer_fit(fit: OperatorFit, source: DeviceSpec, target: DeviceSpec) -> OperatorFit:
    """The fit restated for `target`, named `transferred_from` its source, with a wider spread."""
    spread = fallback_spread()
    same = source.architecture == target.architecture
    extra = (
        spread.transfer_same_architecture_log_sigma if same else spread.transfer_other_architecture_log_sigma
    )
    parameters = dict(fit.parameters)
    if _COMPUTE in parameters:
        capped = power_capped_efficiency(source, target, fit.dtype, parameters[_COMPUTE])
        parameters[_COMPUTE] = float(f"{capped:.6g}")
    return fit.model_copy(
        update={
            "parameters": parameters,
            "correction": fit.correction if same else None,
            "adjustments": fit.adjustments if same else (),
            "transferred_from": fit.transferred_from or source.name,
            "extra_log_sigma": float(f"{(fit.extra_log_sigma**2 + extra**2) ** 0.5:.4g}"),
        }
    )


def transferred_fits(
    target: DeviceSpec, have: Iterable[OperatorFit], donors: Sequence[HardwareProfile]
) -> list[OperatorFit]:
    """Fits for every (kind, variant, dtype) that donors measured and `target` did not.

    Each from the nearest donor; all its timings come along. dtypes that the target has no units for are
    left out (they are priced from a wider one).
    """
    present = {(fit.kind, fit.variant, fit.dtype) for fit in have}
    found: list[OperatorFit] = []
    taken: dict[tuple[str, str, str], str] = {}
    for donor in sorted(donors, key=lambda p: (device_distance(p.device, target), p.name)):
        if donor.device.name == target.name:
            continue
        for fit in donor.operators:
            key = (fit.kind, fit.variant, fit.dtype)
            native = math_dtype(fit.dtype) in target.peak_flop_per_s or fit.dtype == "fp32"
            if fit.transferred_from or key in present or not native:
                continue
            if taken.setdefault(key, donor.name) == donor.name:
                found.append(transfer_fit(fit, donor.device, target))
    return found
