"""PipeDream's partition: the pipeline whose slowest stage is fastest, over levels of ever slower links.

SOSP 2019, section 3.1. Level k joins `count` components of level k - 1 (devices to nodes, nodes to racks).
With A_k(i, j, m) the time per mini-batch of the slowest stage of units [i, j) on m components of level k:

    T_k(i, j, m) = max(A_(k-1)(i, j, count_(k-1)), reduce_s(i, j, m)) / m             one stage, m replicas
    A_k(i, j, m) = min(T_k(i, j, m),
                       min over s, m' of max(A_k(i, s, m - m'), send_s(s), T_k(s, j, m')))

Replicas take mini-batches in turn, so that m of them pass in the time of one; weights are reduced once for
each m, beside computing. `reduce_s` is the time of that all-reduce, for the paper's 2 (m - 1) |w| / B.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodel.errors import InfeasibleError, PlanError
from costmodel.estimate import FloatArray

__all__ = ["Level", "Replicated", "Throughput", "fastest_pipeline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """`count` components joined by the same links."""

    count: int
    send_s: Sequence[float]
    """[n - 1]: what crosses after unit i to another component and its gradient back, seconds."""
    reduce_s: Callable[[int], FloatArray]
    """m -> [n + 1, n + 1]: all-reduce of the weights of units [i, j) between m components, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicated:
    """Units [start, stop) on `replicas` devices."""

    start: int
    stop: int
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Seconds per mini-batch in the steady state, and the stages."""

    step_s: float
    stages: tuple[Replicated, ...]


@dataclass(frozen=True, slots=True)
class _Solved:
    """One level: A_k by m, and how it was reached: [m][i, j] = (s, m') or (0, 0) for one stage."""

    count: int
    best: dict[int, FloatArray]
    cut: dict[int, NDArray[np.int32]]
    given: dict[int, NDArray[np.int32]]


def fastest_pipeline(
    unit_s: Sequence[float], levels: Sequence[Level], *, fits: NDArray[np.bool_] | None = None
) -> Throughput:
    """PipeDream's pipeline on all devices of all levels, innermost level first.

    `unit_s`: forward and backward of each unit for one mini-batch, seconds. `fits`: [n + 1, n + 1], whether
    one device holds units [i, j). Raises PlanError without a level, InfeasibleError where no pipeline fits.
    """
    if not levels or min(level.count for level in levels) < 1:
        raise PlanError("give at least one level, each of at least one component")
    n = len(unit_s)
    prefix = np.concatenate([[0.0], np.cumsum(np.asarray(unit_s, dtype=np.float64))])
    inner: FloatArray = prefix[None, :] - prefix[:, None]
    inner = np.where(np.arange(n + 1)[:, None] < np.arange(n + 1)[None, :], inner, np.inf)
    if fits is not None:
        inner = np.where(fits, inner, np.inf)
    solved: list[_Solved] = []
    for level in levels:
        solved.append(_solve(inner, level))
        inner = solved[-1].best[level.count]
    if not np.isfinite(inner[0, n]):
        raise InfeasibleError(
            f"no pipeline of {n} units over {[level.count for level in levels]} components fits; "
            "take more devices, or devices with more memory"
        )
    return Throughput(
        step_s=float(inner[0, n]), stages=tuple(_stages(solved, len(solved) - 1, 0, n, levels[-1].count))
    )


def _solve(inner: FloatArray, level: Level) -> _Solved:
    n = inner.shape[0] - 1
    single: dict[int, FloatArray] = {}
    best: dict[int, FloatArray] = {}
    cut: dict[int, NDArray[np.int32]] = {}
    given: dict[int, NDArray[np.int32]] = {}
    for m in range(1, level.count + 1):
        single[m] = (np.maximum(inner, level.reduce_s(m)) if m > 1 else inner) / m
        value = single[m].copy()
        at = np.zeros(value.shape, dtype=np.int32)
        last = np.zeros(value.shape, dtype=np.int32)
        for replicas in range(1, m):
            for s in range(1, n):
                ahead = np.maximum(best[m - replicas][:s, s], level.send_s[s - 1])
                found = np.maximum(ahead[:, None], single[replicas][s, s + 1 :][None, :])
                better = found < value[:s, s + 1 :]
                value[:s, s + 1 :][better] = found[better]
                at[:s, s + 1 :][better] = s
                last[:s, s + 1 :][better] = replicas
        best[m], cut[m], given[m] = value, at, last
    return _Solved(level.count, best, cut, given)


def _stages(solved: Sequence[_Solved], k: int, i: int, j: int, m: int) -> list[Replicated]:
    """The stages of units [i, j) on m components of level k; k = -1 is one device."""
    if k < 0:
        return [Replicated(start=i, stop=j, replicas=1)]
    s, replicas = int(solved[k].cut[m][i, j]), int(solved[k].given[m][i, j])
    if s:
        return [*_stages(solved, k, i, s, m - replicas), *_one(solved, k, s, j, replicas)]
    return _one(solved, k, i, j, m)


def _one(solved: Sequence[_Solved], k: int, i: int, j: int, m: int) -> list[Replicated]:
    """One stage of level k: what a component of level k - 1 does, on m of them."""
    below = solved[k - 1].count if k else 1
    return [
        Replicated(start=r.start, stop=r.stop, replicas=r.replicas * m)
        for r in _stages(solved, k - 1, i, j, below)
    ]
