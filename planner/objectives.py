"""Objectives: what a plan can be best at, and the plans that no other beats in all of them.

    step_time    seconds of one step                     time     seconds to train the given amount
    throughput   tokens (or samples) per second          cost     USD to train it
    memory       peak bytes of the fullest device        energy   joules to train it
    gpus         devices

    ttft, tpot, latency    seconds of a request's first token, each further token, the whole answer

An objective is a number with a direction; `values` turns it so that less is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.errors import UsageError
from costmodel.estimate import Z90, FloatArray
from costmodel.registry import Registry
from planner.power import energy_j, power_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from costmodel.predict import Prediction

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Terms",
    "best",
    "log_sigma",
    "non_dominated",
    "pareto",
    "probability_within",
    "training_time_s",
    "values",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What objectives need beside a prediction.

    `tokens` or `samples`: how much is trained. `goodput_fraction`: share of the wall clock that trains (the
    rest goes to failures, checkpoints and restarts). `board_w`: power limit of one device.
    """

    tokens: float | None = None
    samples: float | None = None
    usd_per_hour: float | None = None
    board_w: float | None = None
    pue: float | None = None
    goodput_fraction: float = 1.0

    def __post_init__(self) -> None:
        for name in ("tokens", "samples"):
            amount = getattr(self, name)
            if amount is not None and not (amount > 0 and math.isfinite(amount)):
                raise UsageError(f"{name}={amount:g}: must be positive")
        if self.tokens is not None and self.samples is not None:
            raise UsageError("give tokens or samples to train, not both")
        if not 0.0 < self.goodput_fraction <= 1.0:
            raise UsageError(f"goodput {self.goodput_fraction:g}: must be above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One number of a plan. `sign`: 1 where less is better, -1 where more is."""

    name: str
    unit: str
    sign: int
    of: Callable[[Any, Terms], float]


OBJECTIVES: Registry[Objective] = Registry("objective")


def _objective(
    name: str, unit: str, sign: int = 1
) -> Callable[[Callable[[Any, Terms], float]], Callable[[Any, Terms], float]]:
    def file(of: Callable[[Any, Terms], float]) -> Callable[[Any, Terms], float]:
        OBJECTIVES.register(name)(Objective(name=name, unit=unit, sign=sign, of=of))
        return of

    return file


def training_time_s(prediction: Prediction, terms: Terms) -> float:
    """Wall-clock seconds to train the amount of `terms`: amount / rate / goodput.

    Raises UsageError where no amount is given, or tokens of a model without a sequence.
    """
    if terms.samples is not None:
        return terms.samples / prediction.samples_per_s / terms.goodput_fraction
    if terms.tokens is None:
        raise UsageError("time, cost and energy need the amount to train: give --tokens or --samples")
    if prediction.tokens_per_s is None:
        raise UsageError(f"{prediction.model} has no sequence, so it trains samples: give --samples")
    return terms.tokens / prediction.tokens_per_s / terms.goodput_fraction


_objective("time", "s")(training_time_s)


@_objective("step_time", "s")
def _step_time(prediction: Prediction, terms: Terms) -> float:
    return prediction.step_time_s


@_objective("throughput", "1/s", sign=-1)
def _throughput(prediction: Any, terms: Terms) -> float:
    rate = prediction.tokens_per_s
    return float(prediction.samples_per_s if rate is None else rate)


@_objective("memory", "B")
def _memory(prediction: Prediction, terms: Terms) -> float:
    return float(prediction.peak_memory_bytes)


@_objective("gpus", "")
def _gpus(prediction: Any, terms: Terms) -> float:
    return float(prediction.plan.world_size)


@_objective("cost", "USD")
def _cost(prediction: Prediction, terms: Terms) -> float:
    if terms.usd_per_hour is None:
        raise UsageError("cost needs the price of a device-hour: give --price NAME=USD")
    hours = training_time_s(prediction, terms) / 3600.0
    return hours * prediction.plan.world_size * terms.usd_per_hour


@_objective("energy", "J")
def _energy(prediction: Prediction, terms: Terms) -> float:
    step_j = energy_j(
        prediction.breakdown_s,
        n_devices=prediction.plan.world_size,
        board_w=terms.board_w,
        pue=terms.pue,
    )
    return step_j * training_time_s(prediction, terms) / prediction.step_time_s


@_objective("ttft", "s")
def _ttft(prediction: Any, terms: Terms) -> float:
    return float(prediction.time_to_first_token_s)


@_objective("tpot", "s")
def _tpot(prediction: Any, terms: Terms) -> float:
    return float(prediction.time_per_output_token_s)


@_objective("latency", "s")
def _latency(prediction: Any, terms: Terms) -> float:
    return float(prediction.latency_s)


def values(
    predictions: Sequence[Any],
    names: Sequence[str],
    terms: Terms | Sequence[Terms] = Terms(),
) -> FloatArray:
    """Objectives of each prediction, shape [plans, names], turned so that less is better.

    `terms`: one for all, or one per prediction (plans of several devices). Raises UsageError on an unknown
    objective, or one that lacks what it needs.
    """
    chosen = [OBJECTIVES[name] for name in names]
    each = [terms] * len(predictions) if isinstance(terms, Terms) else list(terms)
    if len(each) != len(predictions):
        raise ValueError(f"{len(each)} terms for {len(predictions)} predictions")
    table = [[o.sign * o.of(p, t) for o in chosen] for p, t in zip(predictions, each, strict=True)]
    return np.array(table, dtype=np.float64).reshape(len(predictions), len(chosen))


def non_dominated(table: FloatArray) -> NDArray[np.bool_]:
    """Which rows of [n, k] no other row beats: none is at most as large everywhere and smaller somewhere.

    Rows are taken in lexicographic order, in which the next one left is never beaten, and each takes out all
    that it beats: one pass over what is left per row of the front. Equal rows stay together.
    """
    order = np.lexsort(table.T[::-1])
    rows = table[order]
    at = 0
    while at < len(rows):
        row = rows[at]
        left = (rows < row).any(axis=1) | (rows == row).all(axis=1)
        rows, order = rows[left], order[left]
        at += 1
    keep = np.zeros(len(table), dtype=bool)
    keep[order] = True
    return keep


def pareto(
    predictions: Sequence[Any],
    names: Sequence[str],
    terms: Terms | Sequence[Terms] = Terms(),
) -> tuple[Any, ...]:
    """Predictions that no other beats in every one of the objectives, best in the first one first.

    Raises UsageError as `values` does, and where an objective is named twice.
    """
    if len(set(names)) != len(names) or not names:
        raise UsageError(f"objectives {', '.join(names) or '(none)'}: name one or more, each once")
    table = values(predictions, names, terms)
    if not predictions:
        return ()
    front = np.flatnonzero(non_dominated(table))
    return tuple(predictions[i] for i in sorted(front.tolist(), key=lambda i: tuple(table[i])))


def best(predictions: Sequence[Any], name: str, terms: Terms | Sequence[Terms] = Terms()) -> Any:
    """The prediction best in one objective, the first where several are. ValueError where there is none."""
    if not predictions:
        raise ValueError("no predictions to choose from")
    return predictions[int(np.argmin(values(predictions, [name], terms)[:, 0]))]


def log_sigma(prediction: Any, name: str = "step_time") -> float:
    """Standard deviation of the logarithm of an objective: that of the time it is in proportion to, for
    energy with that of the power model."""
    if name in ("memory", "gpus"):
        return 0.0
    sigma = getattr(prediction, "log_sigma", None)
    if sigma is None:
        sigma = math.log(prediction.step_time_high_s / prediction.step_time_low_s) / (2.0 * Z90)
    return math.hypot(sigma, power_model().log_sigma.value) if name == "energy" else float(sigma)


def probability_within(value: float, limit: float, sigma: float) -> float:
    """P(x <= limit) of a log-normal x with this median and standard deviation of ln x.

    >>> probability_within(10.0, 10.0, 0.1)
    0.5
    """
    if sigma <= 0:
        return float(value <= limit)
    return NormalDist().cdf(math.log(limit / value) / sigma)
