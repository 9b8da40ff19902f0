"""Operator fits for a device that was never measured: its datasheet and the nearest measured device.

Parameters are efficiencies relative to the datasheet, so they carry over as they are, but for one limit: a
board can spend only its power. The rate that its watts buy,

    power_w * FLOP per joule * (process_nm of the source / process_nm of the target) ^ exponent

sets the sustained fraction of its burst rate, where the FLOP per joule are those the source sustained, or
those known of the dtype from a device that is limited by power (`costmodel/data/energy.json`). A board with
more power than that sustains what long products reach anywhere (`attainable`).

The correction stays within one architecture (it speaks of tiles and waves of the same kernels) and, for
products, one balance of arithmetic and memory: GeForce boards have half the tensor rate of L40S and A40
beside the same memory, so shapes that wait for memory there do not here. Elsewhere only the form carries
over, and efficiencies of traffic follow what of it both devices were measured with: B200 reaches 0.91 of
H100's share of the bandwidth in fp8 quantisation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from costmodel.hardware.device import math_dtype, peak_flop_per_s
from costmodel.hardware.distance import device_distance, other_generation
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.schema import BorrowedFit, DeviceSpec, HardwareProfile, OperatorFit

__all__ = [
    "as_fast_as_its_own_streams",
    "borrowed_fits",
    "sustained_fraction",
    "transfer_fit",
]

_DATA = Path(__file__).resolve().parent.parent / "data"
_COMPUTE, _SUSTAINED, _BURST = "compute_efficiency", "sustained_fraction", "burst_s"
_TILE = "tile_"
_TRAFFIC = "memory_efficiency"


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True)
    value: float
    process_nm: float
    device: str


class _Energy(BaseModel):
    model_config = ConfigDict(frozen=True)
    source: str
    process_exponent: float
    burst_s: float
    least_sustained: float
    attainable: dict[str, float]
    attainable_source: str
    flop_per_joule: dict[str, _Reference]


@lru_cache(maxsize=1)
def _energy() -> _Energy:
    return _Energy.model_validate(json.loads((_DATA / "energy.json").read_text(encoding="utf-8")))


def sustained_fraction(
    source: DeviceSpec, target: DeviceSpec, dtype: str, burst: float, held: float
) -> float:
    """Share of its burst rate that `target` sustains, where `source` holds `held` of its own.

    `burst`: compute efficiency of both in a burst, relative to the datasheet peak.
    """
    if not (source.power_w and target.power_w and source.process_nm and target.process_nm):
        return held
    exponent = _energy().process_exponent
    reached = burst * held * peak_flop_per_s(source, dtype) / source.power_w
    flop_per_joule = reached * (source.process_nm / target.process_nm) ** exponent
    reference = _energy().flop_per_joule.get(math_dtype(dtype))
    if reference is not None:
        known = reference.value * (reference.process_nm / target.process_nm) ** exponent
        flop_per_joule = max(flop_per_joule, known)
    bought = flop_per_joule * target.power_w / (burst * peak_flop_per_s(target, dtype))
    if source.architecture == target.architecture:
        bought = max(bought, held) if target.power_w >= source.power_w else bought
    return float(min(max(bought, _energy().least_sustained), 1.0))


def _like_balance(source: DeviceSpec, target: DeviceSpec, dtype: str) -> bool:
    """Whether both have about as many FLOP/s for each byte/s, so that the same shapes wait for memory."""
    balance = [peak_flop_per_s(d, dtype) / d.memory_bytes_per_s for d in (source, target)]
    return max(balance) <= fallback_spread().transfer_balance_ratio * min(balance)


def _burst_efficiency(parameters: Mapping[str, float]) -> float:
    """Share of the peak that a fit gives to its best tiles in a burst."""
    tiles = [value for name, value in parameters.items() if name.startswith(_TILE)]
    return parameters[_COMPUTE] * max(tiles, default=1.0)


def transfer_fit(fit: OperatorFit, source: DeviceSpec, target: DeviceSpec) -> OperatorFit:
    """The fit restated for `target`, named `transferred_from` its source, with a wider spread."""
    spread = fallback_spread()
    same = source.architecture == target.architecture
    distance = device_distance(source, target)
    near = same and distance <= spread.transfer_near_distance
    extra = (
        spread.transfer_same_architecture_log_sigma if near else spread.transfer_other_architecture_log_sigma
    )
    parameters = dict(fit.parameters)
    if {_COMPUTE, _SUSTAINED, _BURST} <= set(parameters):
        held = parameters[_SUSTAINED]
        share = sustained_fraction(source, target, fit.dtype, parameters[_COMPUTE], held)
        if most := _energy().attainable.get(math_dtype(fit.dtype)):
            share = min(share, most / _burst_efficiency(parameters))
        parameters[_SUSTAINED] = float(f"{share:.6g}")
        if share < held:  # the source's burst is that of a board with more power to spend
            parameters[_BURST] = min(parameters[_BURST], _energy().burst_s)
    if (faster := target.sustained_speed.get(math_dtype(fit.dtype))) and _COMPUTE in parameters:
        parameters[_COMPUTE] = float(f"{parameters[_COMPUTE] * faster:.6g}")
    wider = fit.widened(extra)
    same = same and (_streams(fit) or _like_balance(source, target, fit.dtype))
    return wider.model_copy(
        update={
            "parameters": parameters,
            "correction": fit.correction if same else None,
            "adjustments": fit.adjustments if same else (),
            "transferred_from": fit.transferred_from or source.name,
            "transfer_distance": float(f"{distance:.4g}"),
            "extra_log_sigma": float(f"{wider.extra_log_sigma:.4g}"),
        }
    )


def as_fast_as_its_own_streams(
    fit: OperatorFit, fits: Iterable[OperatorFit], donors: Mapping[str, HardwareProfile]
) -> OperatorFit:
    """A borrowed fit of traffic at the share of its bandwidth that the device reaches where the donor and it,
    or another of its architecture, were measured:

        memory_efficiency = donor's * (device's / donor's, of what both have, geometric mean)
    """
    donor = donors.get(fit.transferred_from or "")
    if donor is None or not _streams(fit) or fit.transfer_distance < other_generation():
        return fit
    theirs = {_what(f): f.parameters[_TRAFFIC] for f in donor.operators if _streams(f)}
    ours = {
        _what(f): f.parameters[_TRAFFIC]
        for f in fits
        if _streams(f) and (f.transferred_from is None or f.transfer_distance < other_generation())
    }
    both = theirs.keys() & ours.keys()
    if not both:
        return fit
    ratio = math.exp(sum(math.log(ours[what] / theirs[what]) for what in both) / len(both))
    reached = float(f"{fit.parameters[_TRAFFIC] * ratio:.6g}")
    return fit.model_copy(update={"parameters": {**fit.parameters, _TRAFFIC: reached}})


def _streams(fit: OperatorFit) -> bool:
    forms = load_forms()
    return _TRAFFIC in fit.parameters and fit.kind in forms and forms[fit.kind].streams


def _what(fit: OperatorFit) -> tuple[str, str, str, str]:
    return fit.kind, fit.variant, fit.dtype, fit.timing


def borrowed_fits(
    target: DeviceSpec, have: Iterable[OperatorFit], donors: Sequence[HardwareProfile]
) -> list[BorrowedFit]:
    """What to borrow: every (kind, variant, dtype) that donors measured and `target` did not; also where
    `target` has no more than derived efficiencies, what donors timed.

    Each from the nearest donor of its generation that timed it, or else that published an efficiency, and
    then from those of other generations alike; all its timings come along. CPUs are no donors of GPUs. dtypes
    that the target has no units for are left out (they are priced from a wider one).
    """
    own = tuple(have)
    present = {
        derived: {(f.kind, v, f.dtype) for f in own if derived or not f.is_derived for v in f.variants}
        for derived in (False, True)
    }
    found: list[BorrowedFit] = []
    taken: dict[tuple[str, str, str], str] = {}
    apart = {donor.name: device_distance(donor.device, target) for donor in donors}

    def order(way: tuple[bool, HardwareProfile]) -> tuple[bool, bool, float, str]:
        derived, donor = way
        return (apart[donor.name] >= other_generation(), derived, apart[donor.name], donor.name)

    for derived, donor in sorted(product((False, True), donors), key=order):
        from_host = donor.device.kind == "cpu" and target.kind != "cpu"
        if donor.device.name == target.name or from_host:
            continue
        for fit in donor.operators:
            key = (fit.kind, fit.variant, fit.dtype)
            native = math_dtype(fit.dtype) in target.peak_flop_per_s or fit.dtype == "fp32"
            if fit.transferred_from or key in present[derived] or not native or fit.is_derived != derived:
                continue
            if taken.setdefault(key, donor.name) == donor.name:
                found.append(
                    BorrowedFit(
                        kind=fit.kind,
                        variant=fit.variant,
                        dtype=fit.dtype,
                        timing=fit.timing,
                        donor=donor.name,
                    )
                )
    return found
