"""Contiguous partition of units into pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray

__all__ = ["balanced_partition", "bottleneck_s"]


def balanced_partition(
    unit_s: Sequence[float], n_stages: int, *, cut_s: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Cut `unit_s` (seconds per unit, forward order) into `n_stages` runs with the least bottleneck.

    `cut_s[i]` is what a cut after unit i costs both neighbours (transfer). Among cuts with the same
    bottleneck the one with the least sum of squared stage times is taken. Returns the first unit of each
    stage; stage 0 starts at 0.

    Dynamic programming over (first j units, k stages): best[k][j] = min over i of
    max(best[k-1][i], cost(i, j)); O(n_stages * n^2), vectorised over i.

    Raises PlanError where there are fewer units than stages.
    """
    n = len(unit_s)
    if n_stages < 1 or n_stages > n:
        raise PlanError(
            f"pp * vpp = {n_stages} stages, but the model can be cut into at most {n} pieces; "
            f"use pp * vpp <= {n}"
        )
    prefix = np.concatenate([[0.0], np.cumsum(np.asarray(unit_s, dtype=np.float64))])
    cut = np.zeros(n + 1)
    if cut_s is not None:
        cut[1:n] = np.asarray(cut_s, dtype=np.float64)[: n - 1]
    worst = np.full((n_stages + 1, n + 1), np.inf)
    squares = np.full((n_stages + 1, n + 1), np.inf)
    came_from = np.zeros((n_stages + 1, n + 1), dtype=np.int64)
    worst[0, 0] = squares[0, 0] = 0.0
    for k in range(1, n_stages + 1):
        for j in range(k, n - (n_stages - k) + 1):
            i = np.arange(k - 1, j)
            stage: FloatArray = prefix[j] - prefix[i] + cut[i] + (cut[j] if j < n else 0.0)
            bottleneck = np.maximum(worst[k - 1, i], stage)
            spread = squares[k - 1, i] + stage**2
            least = bottleneck.min()
            near = np.flatnonzero(bottleneck <= least * (1 + 1e-9))
            pick = near[np.argmin(spread[near])]
            worst[k, j], squares[k, j], came_from[k, j] = bottleneck[pick], spread[pick], i[pick]
    starts = []
    j = n
    for k in range(n_stages, 0, -1):
        j = int(came_from[k, j])
        starts.append(j)
    return tuple(reversed(starts))


def bottleneck_s(unit_s: Sequence[float], starts: Sequence[int]) -> float:
    """Time of the slowest stage of a partition."""
    ends = [*starts[1:], len(unit_s)]
    return max(sum(unit_s[a:b]) for a, b in zip(starts, ends, strict=True))
