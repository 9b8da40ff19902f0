"""What a choice among plans hangs on: the operators, collectives and costs that the contenders differ in.

For each contender d ln(step time) / d ln(item), by predicting the plan once more with a collective or a
machine constant a tenth larger, and with all operators so, shared out by the time each takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from calibrate.decision import alike
from calibrate.host_costs import CONTENTION, OVERLAP
from calibrate.wanted import CONSTANT, Item, Wanted
from costmodel.graph.fusion import fuse
from costmodel.graph.liveness import recomputed_operators
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.kinds import OPERATOR_KINDS
from costmodel.hardware.pricing import operator_times
from costmodel.predict.optimizer_costs import optimizer_variant, update_sizes
from costmodel.predict.pricing import price_operators
from costmodel.predict.uncertainty import component_of, error_model, relative_loadings
from costmodel.predict.units import expand, held_elements
from planner.certainty import TIE_BELOW, probabilities_faster, restated

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Forecaster, Prediction
    from costmodel.predict.units import Unit

__all__ = ["alike_with", "contenders_of", "operator_shares", "sizes_text", "wanted_list"]

_MOST_CONTENDERS = 6
_STEP = 0.1
"""Relative change by which a derivative is taken: large enough to outlast rounding, small beside a step."""
_LEAST_WEIGHT = 1e-4
"""Items that no contender spends more than this share of its step on decide nothing."""
_NOT_MEASURED = ("framework", "bubble")
"""Components of a prediction's error that no operator, transfer or constant accounts for."""
_Key = tuple[str, str, str, tuple[tuple[str, int], ...], bool]


def contenders_of(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The fastest and those that may be faster, fastest first: at least two (fewer only where there are
    fewer), at most six. Of plans that are forecast alike the first stands for all, where others are left."""
    ordered = sorted(predictions, key=lambda p: (p.step_time_s, str(p.plan)))
    firsts = [ordered[i] for i in sorted({group[0] for group in _groups_alike(ordered)})]
    if len(firsts) < 2:
        return ordered[:2]
    chances = probabilities_faster(firsts, of=0)
    able = [p for p, chance in zip(firsts, chances, strict=True) if chance > TIE_BELOW]
    return (able if len(able) > 1 else firsts[:2])[:_MOST_CONTENDERS]


def alike_with(prediction: Prediction, predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """The other plans that are forecast alike, as nothing can tell them from it."""
    listed = [prediction, *(p for p in predictions if p.plan != prediction.plan)]
    return tuple(str(listed[i].plan) for i in _groups_alike(listed)[0][1:])


def _groups_alike(predictions: Sequence[Prediction]) -> list[list[int]]:
    """For each prediction the numbers of all that are alike with it, rising."""
    said = restated(predictions)
    same = alike(np.log(said.step_times_s), np.array(said.covariance))
    return [np.flatnonzero(row).tolist() for row in same]


def wanted_list(forecaster: Forecaster, contenders: Sequence[Prediction]) -> Wanted:
    """The list of one decision. ValueError for fewer than two contenders."""
    n = len(contenders)
    operators: dict[_Key, list[float]] = {}
    priced: dict[_Key, tuple[float, float]] = {}
    slower = forecaster.on(profile=_slower_operators(forecaster.profile))
    for place, prediction in enumerate(contenders):
        found = operator_shares(forecaster, prediction)
        # what waits on transfers, or hides behind them, does not follow the operators by their share
        follows = _slope(slower, prediction) / sum(share for _, _, share in found.values())
        for key, (seconds, sigma, share) in found.items():
            operators.setdefault(key, [0.0] * n)[place] += share * follows
            priced[key] = seconds, sigma
    items = [
        Item(
            kind=kind,
            variant=variant,
            dtype=dtype,
            dims=dict(dims),
            predicted_s=priced[kind, variant, dtype, dims, images][0],
            log_sigma=priced[kind, variant, dtype, dims, images][1],
            weights=tuple(weights),
            together=f"{kind}/{variant}/{dtype}",
            images=images,
        )
        for (kind, variant, dtype, dims, images), weights in operators.items()
    ]
    items += _collectives(forecaster, contenders)
    items += _constants(forecaster, contenders)
    keys, loadings = relative_loadings([p.errors for p in contenders], [p.step_time_s for p in contenders])
    left = loadings[:, [k for k, key in enumerate(keys) if component_of(key) in _NOT_MEASURED]]
    return Wanted(
        contenders=tuple(str(p.plan) for p in contenders),
        step_times_s=tuple(p.step_time_s for p in contenders),
        rest=tuple(tuple(map(float, row)) for row in left @ left.T),
        shared=error_model().splits["fit"]["all"],
        machine_log_sigma=fallback_spread().transfer_other_architecture_log_sigma,
        items=tuple(i for i in items if max(map(abs, i.weights)) >= _LEAST_WEIGHT),
    )


def operator_shares(forecaster: Forecaster, prediction: Prediction) -> dict[_Key, tuple[float, float, float]]:
    """Operator -> seconds of one call, spread, share of the step; the update's among them."""
    plan = prediction.plan
    units = expand(forecaster, plan)
    total = sum(unit.seconds(1.0) for unit in units)
    parts = prediction.breakdown_s
    apart = sum(parts.get(part, 0.0) for part in ("dp_comm", "pp_comm", "optimizer", "offload"))
    scale = (prediction.step_time_s - apart) / total / prediction.step_time_s if total else 0.0
    found: dict[_Key, tuple[float, float, float]] = {}

    def add(key: _Key, seconds: float, sigma: float, share: float) -> None:
        found[key] = seconds, sigma, share + (found[key][2] if key in found else 0.0)

    counts: dict[tuple[int, bool], list[Unit]] = {}
    for unit in units:
        counts.setdefault((unit.segment, bool(unit.costs.device_s["recompute"])), []).append(unit)
    for (_, recomputed), same in counts.items():
        segment = same[0].shard.local
        fused = fuse(segment, forecaster.fusion).operators
        images = any(op.kind == "conv" for op in fused)
        prices = price_operators(
            fused, forecaster.profile, forecaster.framework, long_run=forecaster.training
        )
        again = recomputed_operators(segment, plan.recompute) if recomputed else frozenset()
        for place, op in enumerate(fused):
            if not prices.fit[place]:
                continue
            kind, variant, dtype = prices.fit[place].split("/")
            seconds, sigma = float(prices.device_s[place]), float(prices.log_sigma[place])
            times = len(same) * (2 if op.index in again else 1)
            dims = tuple((name, op.dims.get(name, 0)) for name in OPERATOR_KINDS[kind].dims)
            key = kind, variant, dtype, dims, images
            add(key, seconds, sigma, times * seconds * scale)
    variant = optimizer_variant(forecaster.optimizer).variant
    updates = _updates(forecaster, prediction, units)
    update_s = sum(seconds for _, seconds, _ in updates)
    for dims, seconds, sigma in updates:
        share = parts.get("optimizer", 0.0) / prediction.step_time_s * seconds / update_s
        add(("optimizer", variant, "fp32", dims, False), seconds, sigma, share)
    return found


def sizes_text(component: str, forecaster: Forecaster, predictions: Sequence[Prediction]) -> str:
    """The sizes at which plans run what a component of their errors is of; "" where it has none."""
    kind, _, name = component.partition(" ")
    found: dict[str, list[float]] = {}
    if kind == "fit":
        for prediction in predictions:
            for key, (_, _, share) in operator_shares(forecaster, prediction).items():
                if "/".join(key[:3]) == name and share >= _LEAST_WEIGHT:
                    for dim, size in key[3]:
                        found.setdefault(dim, []).append(size)
    elif kind == "collective":
        op = name.partition("/")[0]
        for prediction in predictions:
            for asked, size_bytes, group in forecaster.collectives_of(prediction.plan):
                if asked == op and group.n_ranks > 1:
                    found.setdefault("bytes", []).append(round(size_bytes))
                    found.setdefault("ranks", []).append(group.n_ranks)
    return ", ".join(
        f"{dim} {min(sizes):g}" + (f"..{max(sizes):g}" if max(sizes) > min(sizes) else "")
        for dim, sizes in found.items()
        if max(sizes) > 0
    )


def _updates(
    forecaster: Forecaster, prediction: Prediction, units: Sequence[Unit]
) -> list[tuple[tuple[tuple[str, int], ...], float, float]]:
    """Sizes of the update of the rank that holds most, with the seconds and spread of each."""
    plan = prediction.plan
    ends = list(accumulate(len(modules) for modules in prediction.stage_modules))
    stages = [units[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    elements = max((held_elements(stage) for stage in stages), key=sum)
    if not elements or not optimizer_variant(forecaster.optimizer).updates:
        return []
    shard = (plan.dp_shard or plan.dp) if plan.zero_stage else 1
    dims = update_sizes(
        [max(1, math.ceil(n / shard)) for n in elements], forecaster.optimizer, forecaster.profile
    )
    variant = optimizer_variant(forecaster.optimizer).variant
    estimate = operator_times(forecaster.profile, "optimizer", variant, "fp32", dims)
    return [
        (
            tuple((name, round(float(values[i]))) for name, values in dims.items()),
            float(estimate.median_s[i]),
            float(estimate.log_sigma[i]),
        )
        for i in range(len(estimate.median_s))
    ]


def _slope(changed: Forecaster, prediction: Prediction) -> float:
    """d ln(step time) / d ln(what is a tenth larger in `changed`)."""
    longer_s = changed.forecast(prediction.plan).prediction.step_time_s
    return math.log(longer_s / prediction.step_time_s) / math.log1p(_STEP)


def _collectives(forecaster: Forecaster, contenders: Sequence[Prediction]) -> list[Item]:
    weights: dict[tuple[str, int, int], list[float]] = {}
    estimates: dict[tuple[str, int, int], tuple[float, float]] = {}
    for place, prediction in enumerate(contenders):
        used = forecaster.collectives_of(prediction.plan)
        for key, estimate in used.items():
            op, size_bytes, group = key
            if not float(estimate.median_s[0]) > 0.0:
                continue
            name = op, round(size_bytes), group.n_ranks
            slope = _slope(forecaster.with_collective(prediction.plan, key, 1.0 + _STEP, used), prediction)
            weights.setdefault(name, [0.0] * len(contenders))[place] += slope
            estimates[name] = float(estimate.median_s[0]), float(estimate.log_sigma[0])
    return [
        Item(
            kind=op,
            variant="",
            dtype="fp32",
            dims={"size_bytes": size, "n_ranks": n_ranks},
            predicted_s=estimates[op, size, n_ranks][0],
            log_sigma=estimates[op, size, n_ranks][1],
            weights=tuple(slopes),
            together=f"collective {op}",
        )
        for (op, size, n_ranks), slopes in weights.items()
    ]


def _constants(forecaster: Forecaster, contenders: Sequence[Prediction]) -> list[Item]:
    items = []
    for name, (value, larger) in _larger_constants(forecaster.profile).items():
        other = forecaster.on(profile=larger)
        slopes = tuple(_slope(other, prediction) for prediction in contenders)
        items.append(
            Item(
                kind=CONSTANT,
                variant=name,
                dtype="fp32",
                dims={},
                predicted_s=value,
                log_sigma=error_model().host,
                weights=slopes,
                together=f"{CONSTANT} {name}",
                is_time=name != OVERLAP,
            )
        )
    return items


def _slower_operators(profile: HardwareProfile) -> HardwareProfile:
    """The profile with every fitted operator a tenth longer."""
    more = math.log1p(_STEP)
    fits = (fit.model_copy(update={"log_offset": fit.log_offset + more}) for fit in profile.operators)
    return profile.model_copy(update={"operators": tuple(fits)})


def _larger_constants(profile: HardwareProfile) -> Mapping[str, tuple[float, HardwareProfile]]:
    """Constant -> its value and the profile with it a tenth larger; those of zero are left out."""
    factor = 1.0 + _STEP
    found: dict[str, tuple[float, HardwareProfile]] = {}
    for name, cost in profile.host.items():
        if cost.value_s > 0.0:
            larger = cost.model_copy(update={"value_s": cost.value_s * factor})
            found[name] = (
                cost.value_s,
                profile.model_copy(update={"host": {**profile.host, name: larger}}),
            )
    if profile.network is not None:
        slower = profile.overlap.model_copy(
            update={
                "compute_slowdown": profile.overlap.compute_slowdown * factor,
                "comm_slowdown": profile.overlap.comm_slowdown * factor,
            }
        )
        found[OVERLAP] = (
            profile.overlap.compute_slowdown,
            profile.model_copy(update={"overlap": slower}),
        )
    if profile.contention_s_per_byte > 0.0:
        found[CONTENTION] = (
            profile.contention_s_per_byte,
            profile.model_copy(update={"contention_s_per_byte": profile.contention_s_per_byte * factor}),
        )
    return found
