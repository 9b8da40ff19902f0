"""Contiguous partition of units into pipeline stages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray

__all__ = ["Partitions", "balanced_partition", "even_partition"]


_ALIKE = 1.0 + 1e-9
"""Cuts that differ by less are alike: blocks of one model take the same time, so that many cuts do, and which
of their sums is the least by rounding depends on the machine."""


def balanced_partition(
    unit_s: Sequence[float], n_stages: int, *, cut_s: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Cut `unit_s` (seconds per unit, forward order) into `n_stages` runs with the least bottleneck.

    `cut_s[i]` is what a cut after unit i costs both neighbours (transfer). Among cuts with the same
    bottleneck the one with the least sum of squared stage times is taken, and among those alike the one whose
    later stages are longer: earlier ones hold more micro-batches. Returns the first unit of each stage; stage
    0 starts at 0.

    Raises PlanError where there are fewer units than stages.
    """
    return Partitions(unit_s, cut_s=cut_s).starts(n_stages)


class Partitions:
    """Balanced cuts of one run of units into any number of stages; what one number needs serves the others.

    Dynamic programming over (first j units, k stages): best[k][j] = min over i of
    max(best[k-1][i], cost(i, j)); O(n_stages * n^2), vectorised over i and j.
    """

    def __init__(self, unit_s: Sequence[float], *, cut_s: Sequence[float] | None = None) -> None:
        n = self._n = len(unit_s)
        prefix = np.concatenate([[0.0], np.cumsum(np.asarray(unit_s, dtype=np.float64))])
        cut = np.zeros(n + 1)
        if cut_s is not None:
            cut[1:n] = np.asarray(cut_s, dtype=np.float64)[: n - 1]
        after = cut.copy()
        after[n] = 0.0
        run = prefix[None, :] - prefix[:, None] + cut[:, None] + after[None, :]
        run[np.tril_indices(n + 1)] = np.inf
        self._run: FloatArray = run
        self._squares: FloatArray = run**2
        self._worst = np.full(n + 1, np.inf)
        self._spread = np.full(n + 1, np.inf)
        self._worst[0] = self._spread[0] = 0.0
        self._came_from: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []

    def starts(self, n_stages: int) -> tuple[int, ...]:
        """First unit of each of `n_stages` stages. PlanError where there are fewer units."""
        if n_stages < 1 or n_stages > self._n:
            raise PlanError(
                f"pp * vpp = {n_stages} stages, but the model can be cut into at most {self._n} pieces; "
                f"use pp * vpp <= {self._n}"
            )
        while len(self._came_from) < n_stages:
            self._one_more()
        starts = []
        j = self._n
        for k in range(n_stages - 1, -1, -1):
            j = int(self._came_from[k][j])
            starts.append(j)
        return tuple(reversed(starts))

    def _one_more(self) -> None:
        k = len(self._came_from)  # so many stages take at least k units, one more at least k + 1
        before, after = slice(k, self._n), slice(k + 1, self._n + 1)
        bottleneck = np.maximum(self._worst[before, None], self._run[before, after])
        even = bottleneck <= bottleneck.min(axis=0) * _ALIKE
        spread = np.where(even, self._spread[before, None] + self._squares[before, after], np.inf)
        pick = (spread <= spread.min(axis=0) * _ALIKE).argmax(axis=0)
        at = np.arange(len(pick))
        self._worst[after], self._spread[after] = bottleneck[pick, at], spread[pick, at]
        self._came_from.append(np.concatenate([np.zeros(k + 1, dtype=np.int64), pick + k]))


def even_partition(blocks: Sequence[int], n_stages: int, stages: str) -> tuple[int, ...]:
    """First unit of each stage with as many blocks each, whose positions among the units are `blocks`.

    `stages`: even or late (`FrameworkProfile.stages`); empty where that does not say how to cut them.
    """
    each, more = divmod(len(blocks), n_stages)
    if stages not in ("even", "late") or not each or (more and stages == "even"):
        return ()
    late = n_stages - more
    return (0, *(blocks[k * each + max(0, k - late)] for k in range(1, n_stages)))
