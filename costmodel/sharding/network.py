"""Choosing one state per node at least total cost: exact elimination, an integer program, brute force.

The total is the sum of a cost per node state and a cost per pair of states of joined nodes; infinity forbids.
Nodes with at most two neighbours are eliminated exactly (their best answer becomes a cost between the
neighbours). What remains is an integer program over node states x and pair states y,

    min  sum c x + sum C y   with  sum_s x[v,s] = 1,  sum_t y[s,t] = x[u,s],  sum_s y[s,t] = x[v,t],

solved by HiGHS (scipy.optimize.milp).
"""

from __future__ import annotations

import numpy as np

from costmodel.errors import InfeasibleError
from costmodel.estimate import FloatArray

__all__ = ["CostNetwork"]


class CostNetwork:
    """Nodes with state costs and pair costs. Built once, solved without being changed."""

    def __init__(self) -> None:
        self._costs: list[FloatArray] = []
        self._pairs: dict[tuple[int, int], FloatArray] = {}

    def add_node(self, costs: FloatArray) -> int:
        """Add a node with its cost per state, shape [states]; returns its number."""
        if costs.ndim != 1 or not len(costs):
            raise ValueError(f"a node needs at least one state, got costs of shape {costs.shape}")
        self._costs.append(np.asarray(costs, dtype=np.float64))
        return len(self._costs) - 1

    def add_pair(self, u: int, v: int, costs: FloatArray) -> None:
        """Add the cost per pair of states, shape [states of u, states of v]; repeated calls add up."""
        if u == v:
            self._costs[u] = self._costs[u] + np.diagonal(costs)
            return
        if costs.shape != (len(self._costs[u]), len(self._costs[v])):
            raise ValueError(f"pair ({u}, {v}): costs of shape {costs.shape} do not fit the nodes' states")
        key, matrix = ((u, v), costs) if u < v else ((v, u), costs.T)
        known = self._pairs.get(key)
        self._pairs[key] = matrix.copy() if known is None else known + matrix

    @property
    def n_nodes(self) -> int:
        """Nodes added so far."""
        return len(self._costs)

    def total(self, states: tuple[int, ...]) -> float:
        """Cost of a choice of one state per node."""
        cost = sum(float(c[s]) for c, s in zip(self._costs, states, strict=True))
        return cost + sum(float(m[states[u], states[v]]) for (u, v), m in self._pairs.items())

    def solve(self, *, contract: bool = True, time_limit_s: float = 60.0) -> tuple[float, tuple[int, ...]]:
        """Least total and its states. Raises InfeasibleError where every choice is forbidden."""
        costs = [c.copy() for c in self._costs]
        pairs = {key: m.copy() for key, m in self._pairs.items()}
        around: list[set[int]] = [set() for _ in costs]
        for u, v in pairs:
            around[u].add(v)
            around[v].add(u)
        removed: list[tuple[int, tuple[int, ...], list[FloatArray]]] = []
        alive = set(range(len(costs)))
        waiting = sorted(alive) if contract else []
        while waiting:
            v = waiting.pop()
            if v not in alive or len(around[v]) > 2:
                continue
            near = tuple(sorted(around[v]))
            tables = [_oriented(pairs, v, u) for u in near]
            removed.append((v, near, [costs[v], *tables]))
            _eliminate(v, near, tables, costs, pairs, around)
            alive.discard(v)
            waiting.extend(near)
        states = [0] * len(costs)
        if alive:
            self._integer_program(sorted(alive), costs, pairs, states, time_limit_s)
        for v, near, (own, *tables) in reversed(removed):
            score = own.copy()
            for u, table in zip(near, tables, strict=True):
                score = score + table[:, states[u]]
            states[v] = int(np.argmin(score))
        answer = tuple(states)
        total = self.total(answer)
        if not np.isfinite(total):
            raise InfeasibleError(
                "no way to split the model's operators fits together: where one is split, another needs its "
                "whole input; take another tp, or tensor parallelism from the model's own tp_plan"
            )
        return total, answer

    @staticmethod
    def _integer_program(
        nodes: list[int],
        costs: list[FloatArray],
        pairs: dict[tuple[int, int], FloatArray],
        states: list[int],
        time_limit_s: float,
    ) -> None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        allowed = {v: np.flatnonzero(np.isfinite(costs[v])) for v in nodes}
        offset, size = {}, 0
        for v in nodes:
            offset[v] = size
            size += len(allowed[v])
        n_choices = size
        objective = [costs[v][allowed[v]] for v in nodes]
        rows: list[FloatArray] = []
        cols: list[FloatArray] = []
        data: list[FloatArray] = []
        bounds: list[float] = []

        def entry(row: object, col: object, value: object) -> None:
            r, c, d = np.broadcast_arrays(
                np.asarray(row), np.asarray(col), np.asarray(value, dtype=np.float64)
            )
            rows.append(r.ravel())
            cols.append(c.ravel())
            data.append(d.ravel())

        for v in nodes:
            entry(len(bounds), offset[v] + np.arange(len(allowed[v])), 1.0)
            bounds.append(1.0)
        for (u, v), matrix in pairs.items():
            if u not in offset or v not in offset:
                continue
            table = matrix[np.ix_(allowed[u], allowed[v])]
            s, t = np.nonzero(np.isfinite(table))
            y = size + np.arange(len(s))
            size += len(s)
            objective.append(table[s, t])
            for own, index in ((u, s), (v, t)):
                first, many = len(bounds), len(allowed[own])
                entry(first + index, y, 1.0)
                entry(first + np.arange(many), offset[own] + np.arange(many), -1.0)
                bounds.extend([0.0] * many)
        matrix = coo_array(
            (np.concatenate(data), (np.concatenate(rows), np.concatenate(cols))), shape=(len(bounds), size)
        ).tocsr()
        weights = np.concatenate(objective)
        scale = float(np.max(np.abs(weights))) or 1.0
        integrality = np.zeros(size)
        integrality[:n_choices] = 1
        result = milp(
            weights / scale,
            integrality=integrality,
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(matrix, bounds, bounds),
            options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
        )
        if result.x is None:
            raise InfeasibleError(
                f"the sharding integer program ended without an answer ({result.message}); free a boundary "
                "or a fixed layout, or allow more time"
            )
        for v in nodes:
            part = result.x[offset[v] : offset[v] + len(allowed[v])]
            states[v] = int(allowed[v][int(np.argmax(part))])


def _oriented(pairs: dict[tuple[int, int], FloatArray], v: int, u: int) -> FloatArray:
    """Pair costs with v's states first."""
    return pairs[(v, u)] if v < u else pairs[(u, v)].T


def _eliminate(
    v: int,
    near: tuple[int, ...],
    tables: list[FloatArray],
    costs: list[FloatArray],
    pairs: dict[tuple[int, int], FloatArray],
    around: list[set[int]],
) -> None:
    """Fold node v into its (at most two) neighbours: min over its states."""
    for u in near:
        del pairs[(min(u, v), max(u, v))]
        around[u].discard(v)
    if len(near) == 1:
        costs[near[0]] = costs[near[0]] + np.min(costs[v][:, None] + tables[0], axis=0)
    elif len(near) == 2:
        u, w = near
        left = costs[v][:, None] + tables[0]
        folded = np.min(left[:, :, None] + tables[1][:, None, :], axis=0)
        known = pairs.get((u, w))
        pairs[(u, w)] = folded if known is None else known + folded
        around[u].add(w)
        around[w].add(u)
    around[v].clear()
