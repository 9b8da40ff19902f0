"""The errors of a step's time, by what errs together, and how sure that makes a comparison of two steps.

A prediction's error is a sum of independent standard normal factors z_k, each with a loading of so many
seconds: T' = T exp(sum_k s_k z_k / T). Two predictions share the factors that bear one name, so

    Var[ln A' - ln B'] = sum_k (a_k / A - b_k / B)^2        P(A' < B') = Phi(ln(B / A) / that one's root)

Components before they are split into factors:

    fit KIND/VARIANT/DTYPE     operators one fit prices, as far as they err alike at all sizes: their seconds
                               add up linearly
    ... @SIZES                 those of one size, beyond that: a factor that plans share which run that size
    collective OP/LINK         transfers one fit prices: their seconds add up linearly
    host, bubble               host time that shows, idle time of the pipeline: shares of their own seconds
    framework                  what measured runs of a framework differ by beyond all that

Each of the others is split by `costmodel/data/uncertainty.json` into a part that all plans share and parts
that only plans share which are equal in some respect (the shapes of their operators, a degree), or that are a
plan's own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.estimate import FloatArray, normal_cdf
from costmodel.hardware.learnt import link_term
from costmodel.predict.learnt import residual_variance

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.learnt import Learnt
    from costmodel.plan import Plan
    from costmodel.predict.units import Unit

__all__ = [
    "NO_ERRORS",
    "ErrorModel",
    "StepErrors",
    "component_of",
    "difference_log_sigma",
    "error_model",
    "probability_shorter",
    "relative_loadings",
    "step_components",
    "step_errors",
    "step_log_sigma",
    "unit_errors",
]

_DATA = Path(__file__).parents[1] / "data" / "uncertainty.json"


@dataclass(frozen=True, slots=True)
class StepErrors:
    """Loadings of one prediction: `seconds[k]` of one standard deviation of the factor named `keys[k]`.

    A factor's name is its component's, and behind " @" what plans must have in common to share it.
    """

    keys: tuple[str, ...] = ()
    seconds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.keys) == len(self.seconds) == len(set(self.keys))

    def log_sigma(self, step_time_s: float) -> float:
        """Standard deviation of ln(step time)."""
        return math.hypot(*self.seconds) / step_time_s if step_time_s else 0.0


NO_ERRORS = StepErrors()


def component_of(key: str) -> str:
    """The component a factor belongs to."""
    return key.partition(" @")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorModel:
    """Widths and correlations out of the data file.

    `host`, `bubble`: standard deviation over the seconds. `splits`: first word of a component -> respect ->
    share of its variance; respects are those of `_respects`.
    """

    host: float
    bubble: float
    splits: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        assert min(self.host, self.bubble) >= 0
        for name, split in self.splits.items():
            assert abs(sum(split.values()) - 1.0) < 1e-6, (name, split)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> ErrorModel:
        """Out of the data file's fields."""
        return cls(
            host=float(data["host_sigma"]),
            bubble=float(data["bubble_sigma"]),
            splits={name: dict(split) for name, split in data["variance_shares"].items()},
        )

    def factors(self, components: Mapping[str, float], plan: Plan) -> StepErrors:
        """The factors of a plan's components (name -> seconds of one standard deviation)."""
        found: dict[str, float] = {}
        respects = _respects(plan)
        for name, seconds in components.items():
            if component_of(name) != name:  # a factor already
                found[name] = seconds
                continue
            for respect, share in self.splits[name.partition(" ")[0]].items():
                if share > 0.0 and seconds > 0.0:
                    value = respects[respect]
                    found[f"{name} @{value}" if value else name] = seconds * math.sqrt(share)
        return StepErrors(keys=tuple(found), seconds=tuple(found.values()))


def _respects(plan: Plan) -> dict[str, str]:
    """Respect -> what two plans must have equal in it to share a factor; "" = they always do."""
    experts = f"ep{plan.ep}.etp{plan.expert_width}"
    return {
        "all": "",
        "shapes": f"mbs{plan.micro_batch_size}.tp{plan.tp}.cp{plan.cp}.{experts}.{plan.sequence_parallel}",
        "group": f"dp{plan.dp}.tp{plan.tp}.pp{plan.pp}",
        "tp": f"tp{plan.tp}",
        "pp": f"pp{plan.pp}",
        "dp": f"dp{plan.dp}.zero{plan.zero_stage}",
        "mbs": f"mbs{plan.micro_batch_size}",
        "plan": str(plan),
    }


@lru_cache(maxsize=1)
def error_model() -> ErrorModel:
    """The shipped widths and correlations."""
    return ErrorModel.of(json.loads(_DATA.read_text()))


def step_components(
    units: Sequence[Unit],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    *,
    transfers: Mapping[str, tuple[str, float]],
    update: tuple[str, float],
    overhead_s: float,
    framework: FrameworkProfile,
    model: ErrorModel,
) -> dict[str, float]:
    """Component -> seconds of one standard deviation in the step.

    The units' own errors are summed over one micro-batch of all stages and scaled to what of the step is
    their work or waits for it. `transfers`: part of the breakdown (dp_comm, pp_comm) -> (component, spread
    of ln time); `update`: the optimizer's. `overhead_s`: host time of the step outside the units.
    """
    found: dict[str, float] = {}

    def add(name: str, seconds: float) -> None:
        found[name] = found.get(name, 0.0) + abs(seconds)

    apart = sum(breakdown_s.get(part, 0.0) for part in ("dp_comm", "pp_comm", "optimizer", "offload"))
    total = sum(unit.seconds(1.0) for unit in units)
    scale = max(0.0, step_time_s - apart - overhead_s) / total if total else 0.0
    for name, seconds in unit_errors(units).items():
        add(name, scale * seconds)
    for part, (name, sigma) in transfers.items():
        add(name, sigma * breakdown_s.get(part, 0.0))
    add(update[0], update[1] * breakdown_s.get("optimizer", 0.0))
    add("host", model.host * breakdown_s.get("host", 0.0))
    add("bubble", model.bubble * breakdown_s.get("bubble", 0.0))
    add("framework", framework.residual_log_sigma * step_time_s)
    return found


def unit_errors(units: Sequence[Unit]) -> dict[str, float]:
    """What errs together -> seconds of one standard deviation over one micro-batch of all units."""
    counts = Counter(id(unit.costs) for unit in units)
    costs = {id(unit.costs): unit.costs for unit in units}
    found: dict[str, float] = {}
    for key, count in counts.items():
        for (name, _part), seconds in costs[key].error_s.items():
            found[name] = found.get(name, 0.0) + count * seconds
    return found


def step_errors(
    units: Sequence[Unit],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    *,
    plan: Plan,
    transfers: Mapping[str, tuple[str, float]],
    update: tuple[str, float],
    overhead_s: float,
    framework: FrameworkProfile,
    learnt: Learnt | None = None,
) -> StepErrors:
    """The loadings of one step; see `step_components` for the arguments. `learnt`: what runs taught shrinks
    them together to the spread that is left."""
    model = error_model()
    components = step_components(
        units,
        breakdown_s,
        step_time_s,
        transfers=transfers,
        update=update,
        overhead_s=overhead_s,
        framework=framework,
        model=model,
    )
    if learnt is not None and step_time_s:
        components = _taught(components, step_time_s, framework, learnt)
    return model.factors(components, plan)


def _taught(
    components: dict[str, float], step_time_s: float, framework: FrameworkProfile, learnt: Learnt
) -> dict[str, float]:
    """The components that runs teach about, shrunk or widened in one ratio to the variance that is left."""
    prior = math.hypot(
        *(s for name, s in components.items() if name.partition(" ")[0] in ("fit", "collective", "framework"))
    )
    left = residual_variance(
        learnt, framework, _moved({name: s / step_time_s for name, s in components.items()})
    )
    ratio = math.sqrt(left) * step_time_s / prior if prior else 1.0
    return {
        name: seconds * (ratio if name.partition(" ")[0] in ("fit", "collective", "framework") else 1.0)
        for name, seconds in components.items()
    }


def _moved(relative: Mapping[str, float]) -> dict[str, float]:
    """Operator kind or link term -> spread of ln(time) of its components together."""
    moved: dict[str, float] = {}
    for name, sigma in relative.items():
        word, _, rest = name.partition(" ")
        if word == "fit":
            key = rest.partition("/")[0]
        elif word == "collective":
            key = link_term(*rest.split("/", 1))
        else:
            continue
        moved[key] = math.hypot(moved.get(key, 0.0), sigma)
    return moved


def relative_loadings(
    errors: Iterable[StepErrors], step_times_s: Sequence[float]
) -> tuple[tuple[str, ...], FloatArray]:
    """Factor names [k] and loadings over step time [n, k] of `n` predictions, for work on all at once."""
    listed = list(errors)
    keys = tuple(dict.fromkeys(key for e in listed for key in e.keys))
    column = {key: k for k, key in enumerate(keys)}
    matrix = np.zeros((len(listed), len(keys)))
    for row, (one, step_time_s) in enumerate(zip(listed, step_times_s, strict=True)):
        for key, seconds in zip(one.keys, one.seconds, strict=True):
            matrix[row, column[key]] = seconds / step_time_s
    return keys, matrix


def difference_log_sigma(loadings: FloatArray, of: int) -> FloatArray:
    """Standard deviation [n] of ln T_i - ln T_of, out of the loadings [n, k] of `relative_loadings`."""
    return np.asarray(np.sqrt(np.sum((loadings - loadings[of]) ** 2, axis=1)), dtype=np.float64)


def probability_shorter(log_gap: FloatArray, log_sigma: FloatArray) -> FloatArray:
    """P [n] that a step is shorter than one whose ln is `log_gap` [n] larger (1, 0.5, 0 where sigma is 0)."""
    gap, sigma = np.asarray(log_gap, dtype=np.float64), np.asarray(log_sigma, dtype=np.float64)
    certain = 0.5 * (1.0 + np.sign(gap))
    return np.asarray(np.where(sigma > 0, normal_cdf(gap / np.where(sigma > 0, sigma, 1.0)), certain))


def step_log_sigma(
    units: Sequence[Unit],
    breakdown_s: Mapping[str, float],
    step_time_s: float,
    *,
    comm_log_sigma: float,
    framework: FrameworkProfile,
    learnt: Learnt | None = None,
) -> float:
    """Standard deviation of ln(time) of one forward pass in inference.

    The units' own errors are summed over one micro-batch of all stages and scaled to the share of the
    pass that is spent computing. `learnt`: what runs taught takes away from it.
    """
    total = sum(unit.seconds(1.0) for unit in units)
    exposed = sum(breakdown_s.get(k, 0.0) for k in ("dp_comm", "pp_comm"))
    share = exposed / step_time_s if step_time_s else 0.0
    scaled = {name: (1.0 - share) * s / total if total else 0.0 for name, s in unit_errors(units).items()}
    moved = _moved(scaled)
    moved[""] = share * comm_log_sigma
    return math.sqrt(residual_variance(learnt, framework, moved))
