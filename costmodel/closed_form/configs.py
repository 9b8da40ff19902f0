"""What plans with the same numbers of ranks and chunks share: rows that are alike, configs of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from costmodel.estimate import FloatArray, IntArray

if TYPE_CHECKING:
    from costmodel.hardware.kinds import CollectiveGroup
    from costmodel.predict.forecaster import Forecaster

__all__ = ["Configs", "alike", "distinct", "groups_by", "parts_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Configs:
    """Plans with the same numbers of ranks and chunks, orders of micro-batches aside; arrays over them."""

    table: IntArray
    """Which of the stages' arrays each has."""
    key: IntArray
    """Which unit table each has."""
    num_microbatches: IntArray
    dp: IntArray
    replicas: IntArray
    """Ranks that hold the same parameters: dp * cp."""
    zero: IntArray
    shard: IntArray
    groups: list[dict[str, CollectiveGroup]]
    """Groups of the axes; `group` numbers the one of each config."""
    group: IntArray
    inside: IntArray
    tp: IntArray
    sp: IntArray
    over: IntArray
    """Parts that expert parallelism cuts experts into beside tensor parallelism (`Plan.experts_over`)."""

    @property
    def expert_replicas(self) -> IntArray:
        """Ranks that hold the same experts."""
        return np.asarray(np.maximum(1, self.replicas // self.over))

    @property
    def expert_shard(self) -> IntArray:
        """Ranks that divide the same experts under ZeRO-3."""
        return np.asarray(np.maximum(1, self.shard * (self.replicas // self.dp) // self.over))

    def take(self, places: IntArray) -> Configs:
        """Some of them."""
        names = ("table", "key", "num_microbatches", "dp", "replicas", "zero", "shard", "group", "inside")
        return replace(self, **{name: getattr(self, name)[places] for name in (*names, "tp", "sp", "over")})

    def collective_s(self, forecaster: Forecaster, op: str, size_bytes: FloatArray, axis: str) -> FloatArray:
        """Seconds for each config's sizes [n, ...] over its own group of the axis."""
        times = np.zeros_like(size_bytes)
        sends = size_bytes.any(axis=tuple(range(1, size_bytes.ndim)))  # what sends nothing takes no time
        number = np.where(sends, self.group, -1)
        for group in np.flatnonzero(np.bincount(number[sends])):
            rows = np.flatnonzero(number == group)
            times[rows] = forecaster.collective_s(op, size_bytes[rows], self.groups[group][axis])
        return times


def groups_by(values: IntArray, rows: IntArray | None = None) -> Iterator[IntArray]:
    """The rows (of all, where none are given) by their values, ascending; each in the order they have."""
    if rows is not None:
        values = values[rows]
    order = np.argsort(values, kind="stable")
    ends = np.flatnonzero(np.diff(values[order])) + 1
    for part in np.split(order, ends) if len(order) else []:
        yield part if rows is None else rows[part]


def parts_of(rows: IntArray, most: int) -> Iterator[IntArray]:
    """Rows in parts of at most so many."""
    most = max(1, most)
    for start in range(0, len(rows), most):
        yield rows[start : start + most]


def distinct(*columns: IntArray) -> tuple[IntArray, IntArray]:
    """(place of the first of every combination of the columns' values, which one stands at each place);
    combinations ascend."""
    code = columns[0]
    for values in columns[1:]:
        code = code * (int(values.max()) + 1) + values
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    return first, which.reshape(-1)


def alike(values: FloatArray) -> tuple[IntArray, IntArray]:
    """As `distinct`, of the arrays values[i]."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize)))
    _, first, which = np.unique(whole, return_index=True, return_inverse=True)
    return first, which.reshape(-1)
