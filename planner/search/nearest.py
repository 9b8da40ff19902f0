"""What would have to change for a plan to fit, where none does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form import Evaluated, evaluate
from costmodel.errors import ForeshardError
from planner.search.space import SearchOptions, choices_of

if TYPE_CHECKING:
    from costmodel.predict import Forecaster

__all__ = ["nearest_change"]

_GROWTH = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Multiples of the device count that are tried."""
_POLICIES = ("none", "selective", "full")
_OFFLOAD = ("zero-offload", "zero-infinity")


def nearest_change(
    forecaster: Forecaster, space: Evaluated, options: SearchOptions, excluded: dict[str, int]
) -> str:
    """One line: what the leanest plan needs, and the changes that make one fit."""
    n, batch = space.choices.n_devices, space.choices.global_batch_size
    priced = np.isfinite(space.memory_bytes)
    if not priced.any():
        reasons = ", ".join(f"{reason} ({count})" for reason, count in excluded.items())
        return f"no plan for {n} devices: {reasons}; change the batch or the number of devices"
    least = int(np.argmin(space.memory_bytes))
    need, have = float(space.memory_bytes[least]), forecaster.profile.device.memory_bytes
    changes = [
        change
        for change in (
            _other_recompute(forecaster, n, batch, options),
            _offloaded(forecaster, space, least),
            _more_devices(forecaster, n, batch, options),
        )
        if change
    ]
    advice = " or ".join(changes) if changes else "a device with more memory"
    return (
        f"nothing fits: the leanest of {int(priced.sum())} plans, {space.plan(least)}, needs "
        f"{need / 2**30:.1f} GiB of {have / 2**30:.1f} GiB per device; it fits with {advice}"
    )


def _fitting(forecaster: Forecaster, n: int, batch: int, options: SearchOptions) -> str | None:
    try:
        found = evaluate(forecaster, choices_of(forecaster, n, batch, options))
    except ForeshardError:
        return None
    fits = found.memory_bytes <= forecaster.profile.device.memory_bytes
    if not fits.any():
        return None
    rows = np.flatnonzero(fits)
    return str(found.plan(int(rows[np.argmin(found.bound_s[rows])])))


def _other_recompute(forecaster: Forecaster, n: int, batch: int, options: SearchOptions) -> str | None:
    for policy in _POLICIES:
        if policy in options.recompute:
            continue
        if plan := _fitting(forecaster, n, batch, replace(options, recompute=(policy,))):
            return f"recompute={policy} ({plan})"
    return None


def _offloaded(forecaster: Forecaster, space: Evaluated, row: int) -> str | None:
    for word in _OFFLOAD:
        plan = space.plan(row)
        try:
            prediction = forecaster.forecast(plan.with_(flags=(*plan.flags, word))).prediction
        except ForeshardError:
            continue
        if prediction.fits:
            return f"{word} ({prediction.plan})"
    return None


def _more_devices(forecaster: Forecaster, n: int, batch: int, options: SearchOptions) -> str | None:
    lean = replace(options, recompute=(options.recompute[-1],), vpp=(1,), schedules=options.schedules[-1:])
    for factor in _GROWTH:
        if plan := _fitting(forecaster, n * factor, batch, lean):
            return f"{n * factor} devices ({plan})"
    return None
