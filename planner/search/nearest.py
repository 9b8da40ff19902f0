"""What would have to change for a plan to fit, where none does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form import Evaluated, evaluate
from costmodel.errors import ForeshardError
from costmodel.recompute import POLICIES
from planner.render import bytes_text
from planner.search.space import SearchOptions, choices_of

if TYPE_CHECKING:
    from costmodel.predict import Forecaster

__all__ = ["nearest_change"]

_MOST_TRIES = 4
"""Doublings of the device count that are tried."""
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
            _more_devices(forecaster, n, batch, options, need / have),
        )
        if change
    ]
    if changes:
        advice = f"it fits with {' or '.join(changes)}"
    else:
        advice = f"try more than {math.ceil(n * need / have)} devices, or a device with more memory"
    if need <= have:
        return (
            f"nothing fits: none of the plans that fit the devices, {space.plan(least)} among them, leaves a "
            f"node's host the memory for what it offloads; {advice}"
        )
    return (
        f"nothing fits: the leanest of {int(priced.sum())} plans, {space.plan(least)}, needs "
        f"{bytes_text(need)} of {bytes_text(have)} per device; {advice}"
    )


def _fitting(forecaster: Forecaster, n: int, batch: int, options: SearchOptions) -> str | None:
    try:
        found = evaluate(forecaster, choices_of(forecaster, n, batch, options))
    except ForeshardError:
        return None
    fits = found.fits(forecaster.profile.device.memory_bytes)
    if not fits.any():
        return None
    rows = np.flatnonzero(fits)
    return str(found.plan(int(rows[np.argmin(found.bound_s[rows])])))


def _other_recompute(forecaster: Forecaster, n: int, batch: int, options: SearchOptions) -> str | None:
    for policy in POLICIES:
        if policy in options.recompute:
            continue
        if plan := _fitting(forecaster, n, batch, replace(options, recompute=(policy,))):
            return f"recompute={policy} ({plan})"
    return None


def _offloaded(forecaster: Forecaster, space: Evaluated, row: int) -> str | None:
    for word in _OFFLOAD:
        if word in space.choices.offload:
            continue  # was searched
        plan = space.plan(row)
        try:
            prediction = forecaster.forecast(plan.with_(flags=(*plan.flags, word))).prediction
        except ForeshardError:
            continue
        if prediction.fits:
            return f"{word} ({prediction.plan})"
    return None


def _more_devices(
    forecaster: Forecaster, n: int, batch: int, options: SearchOptions, need_over_have: float
) -> str | None:
    """The least count that fits, of those that double from what the leanest plan's need points to."""
    lean = replace(options, recompute=(options.recompute[-1],), vpp=(1,), schedules=options.schedules[-1:])
    first = max(1, int(math.log2(max(2.0, need_over_have))) - 1)
    for doublings in range(first, first + _MOST_TRIES):
        count = n * 2**doublings
        if plan := _fitting(forecaster, count, batch, lean):
            return f"{count} devices ({plan})"
    return None
