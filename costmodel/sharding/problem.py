"""The cost network of one block on a mesh: states of operators, weights and shared values, and joints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.sharding.block import Block, Value
from costmodel.sharding.candidates import Axis, Rules, candidates, sequence_shards
from costmodel.sharding.cost import ShardingCost
from costmodel.sharding.executable import may_gather
from costmodel.sharding.local import PRODUCT_KINDS, local_backward, local_forward
from costmodel.sharding.network import CostNetwork
from costmodel.sharding.placements import (
    BROADCAST,
    REPLICATED,
    Layout,
    Partial,
    Placement,
    Replicate,
    Shard,
    Transfer,
    redistribute,
)
from costmodel.sharding.strategies import Strategy

__all__ = ["Joint", "Layouts", "Port", "Problem", "transfers"]

Layouts = tuple[Layout, ...]
"""A layout per mesh axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """Where a value leaves or enters a node: its layouts for each of the node's states."""

    node: int
    layouts: tuple[Layouts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """A value handed from one port to another. Positions are forward operators, None at the boundary."""

    value: int
    source: Port
    target: Port
    after: int | None
    before: int | None
    what: str
    """'activation', 'parameter' or 'boundary'."""


def transfers(
    source: Layouts, target: Layouts, size_bytes: int, axes: tuple[Axis, ...], *, gradient: bool
) -> list[tuple[Axis, bool, Transfer]]:
    """Collectives of a change of layout: (axis, is backward, transfer), axis after axis."""
    found = []
    for a, axis in enumerate(axes):
        size = size_bytes
        for b, other in enumerate(axes):
            placement = (target if b < a else source)[b].forward
            if b != a and isinstance(placement, Shard):
                size //= other.n
        for t in redistribute(source[a].forward, target[a].forward, size, axis.n):
            found.append((axis, False, t))
        if gradient:
            for t in redistribute(target[a].gradient, source[a].gradient, size, axis.n):
                found.append((axis, True, t))
    return found


_INSIST = 2.0
_UNSENT = 0.01
"""Weight of gradients' collectives where none go back, as in inference: of equal ways the one that training
takes."""
_MINOR = 0.05
"""Weight of memory-bound work where splitting the products is insisted on: it breaks ties, no more, as tensor
parallelism keeps what lies between two split products whole."""


class Problem:
    """Builds the network of a block. `boundary`: the layout at entry and exit, or None: free and steady."""

    def __init__(
        self, block: Block, axes: tuple[Axis, ...], rules: Rules, cost: ShardingCost, boundary: Layouts | None
    ) -> None:
        self.block, self.axes, self.rules, self.cost, self.boundary = block, axes, rules, cost, boundary
        self.network = CostNetwork()
        self.joints: list[Joint] = []
        self.states: list[list[tuple[Strategy, ...]]] = []
        self.stored: dict[int, Port] = {}
        self.entry: Port | None = None
        self.leaves: Port | None = None
        self._price: dict[tuple[str, int, str], float] = {}
        self._tables: dict[Any, FloatArray] = {}
        per_axis = [candidates(block, axis, rules) for axis in axes]
        known = block.work_s.setdefault((axes, rules.insist, cost), {})
        for position in range(len(block.forward)):
            choices = [
                c for c in product(*(found[position] for found in per_axis)) if self._fits(position, c)
            ]
            self.states.append(choices)
            for c in choices:
                if (position, c) not in known:
                    known[position, c] = self._work_s(position, c)
            costs = np.array([known[position, c] for c in choices])
            self.network.add_node(costs + self._whole_s(position, choices, float(costs.max())))
        for v, value in enumerate(block.values):
            self._connect(v, value)

    def _fits(self, position: int, choice: tuple[Strategy, ...]) -> bool:
        """A dimension sharded over several axes must divide by all of them together."""
        if len(choice) == 1:
            return True
        values = (*self.block.inputs[position], *self.block.outputs[position])
        columns = zip(*((*s.inputs, *s.outputs) for s in choice), strict=True)
        for v, layouts in zip(values, columns, strict=True):
            ranks: dict[int, int] = {}
            pieces: dict[int, int] = {}
            for axis, layout in zip(self.axes, layouts, strict=True):
                if isinstance(layout.forward, Shard):
                    dim = layout.forward.dim
                    if pieces.setdefault(dim, layout.forward.chunks) != layout.forward.chunks:
                        return False
                    ranks[dim] = ranks.get(dim, 1) * axis.n
            shape = self.block.values[v].info.shape
            for dim, n in ranks.items():
                if shape[dim] % (n * pieces[dim]) and shape[dim] not in self.rules.uneven:
                    return False
        keys = [key for s in choice for key in set(s.splits)]
        for key in {k for k in keys if keys.count(k) > 1}:
            n = 1
            for axis, s in zip(self.axes, choice, strict=True):
                n *= axis.n if key in s.splits else 1
            if self.block.forward[position].dims.get(key, n) % n:
                return False
        return True

    def _whole_s(self, position: int, choices: list[tuple[Strategy, ...]], work_s: float) -> FloatArray:
        """Price of keeping a weight whole where the rules insist on splitting: above all it could save."""
        weights = [v for v in self.block.inputs[position] if self._is_weight(v, position)]
        if not self.rules.insist or not weights:
            return np.zeros(len(choices))
        slots = [self.block.inputs[position].index(v) for v in weights]
        size = max(value.size_bytes for value in self.block.values)
        price = _INSIST * (work_s + max(self.collective_s("all_reduce", size, axis) for axis in self.axes))
        whole = [any(not isinstance(x.inputs[i].forward, Shard) for i in slots for x in c) for c in choices]
        return np.array(whole, dtype=np.float64) * price * len(self.block.forward)

    def _is_weight(self, v: int, position: int) -> bool:
        value, op = self.block.values[v], self.block.forward[position]
        if not value.of_parameter or len(value.info.shape) < 2:
            return False
        return op.kind in (*PRODUCT_KINDS, "conv") or (
            op.kind == "embedding" and value.info.shape[0] in self.rules.uneven
        )

    def _work_s(self, position: int, choice: tuple[Strategy, ...]) -> float:
        block = self.block
        op = block.forward[position]
        ins = tuple(block.values[v].info for v in block.inputs[position])
        outs = tuple(block.values[v].info for v in block.outputs[position])
        total = 0.0
        for axis, strategy in zip(self.axes, choice, strict=True):
            op = local_forward(op, strategy, ins, outs, axis.n)
            for inner in strategy.collectives:
                total += self.collective_s(inner.op, inner.size_bytes, axis)
        total += self.cost.operator_s(op)
        for back in block.backward.get(position, ()):
            local = back
            for axis, strategy in zip(self.axes, choice, strict=True):
                local = local_backward(local, block.forward[position], strategy, axis.n)
            total += self.cost.operator_s(local)
        if self.rules.insist and block.forward[position].kind not in (*PRODUCT_KINDS, "conv", "attention"):
            total *= _MINOR
        return total

    def collective_s(self, op: str, size_bytes: int, axis: Axis) -> float:
        """Priced once per kind, size and axis."""
        key = (op, size_bytes, axis.name)
        if key not in self._price:
            self._price[key] = self.cost.collective_s(op, size_bytes, axis.n, axis.name)
        return self._price[key]

    def _connect(self, v: int, value: Value) -> None:
        targets = [
            Port(node=p, layouts=tuple(tuple(s.inputs[slot] for s in c) for c in self.states[p]))
            for p, slot in value.users
        ]
        if value.is_parameter:
            if targets:
                self._store_parameter(v, value, targets)
            return
        source: Port | None = None
        if value.producer is not None:
            p, slot = value.producer, value.slot
            source = Port(node=p, layouts=tuple(tuple(s.outputs[slot] for s in c) for c in self.states[p]))
        elif v == self.block.entry:
            source = self.entry = self._boundary_port(value, targets)
        elif value.has_gradient:
            wanted = {x for t in targets for x in t.layouts if v in self.block.asides}
            plain = {x for x in wanted if all(isinstance(y.forward, Shard) for y in x)}
            source = self._node(plain | {(REPLICATED,) * len(self.axes)})
        if source is None:
            return
        after = value.producer
        gather = True
        if v in self.block.exits and v != self.block.exit:
            self._join(v, source, self._boundary_port(value, [source]), after, None, "boundary")
        if v == self.block.exit:
            out = (
                self.entry
                if self.entry is not None and self._same_shape(v)
                else self._boundary_port(value, [source])
            )
            self.leaves = out
            self._join(v, source, out, after, None, "boundary")
        if len(targets) > 1:
            source, gather = self._share(v, source, targets, after), False
        for target, (p, _) in zip(targets, value.users, strict=True):
            self._join(v, source, target, after, p, "activation", gather=gather)

    def _same_shape(self, v: int) -> bool:
        entry = self.block.entry
        return entry is not None and self.block.values[entry].info.shape == self.block.values[v].info.shape

    def _node(self, layouts: set[Layouts]) -> Port:
        ordered = tuple(sorted(layouts, key=_name))
        return Port(node=self.network.add_node(np.zeros(len(ordered))), layouts=ordered)

    def _boundary_port(self, value: Value, others: list[Port]) -> Port:
        if self.boundary is not None:
            return self._node(
                {tuple(self._fitting(value, x, n.n) for x, n in zip(self.boundary, self.axes, strict=True))}
            )
        seen = {x for port in others for x in port.layouts}
        plain = {tuple(REPLICATED if not isinstance(y.forward, Shard) else y for y in x) for x in seen}
        return self._node(plain | {(REPLICATED,) * len(self.axes)})

    def _fitting(self, value: Value, layout: Layout, n: int) -> Layout:
        """The boundary's layout for this value: a sequence shard lies where the value has its sequence."""
        if not isinstance(layout.forward, Shard):
            return layout
        found = sequence_shards(value.info.shape, self.rules, n)
        if self.rules.sequence is None:
            shape = value.info.shape
            return (
                layout
                if layout.forward.dim < len(shape) and shape[layout.forward.dim] % n == 0
                else REPLICATED
            )
        return Layout(found[0], found[0]) if found else REPLICATED

    def _share(self, v: int, source: Port, targets: list[Port], after: int | None) -> Port:
        """A node for a value with several users: converted once forward, gradients summed once backward."""
        layouts = set(source.layouts).union(*(set(t.layouts) for t in targets))
        if not self.rules.merge_gradients:
            layouts = {tuple(REPLICATED if y == BROADCAST else y for y in x) for x in layouts}
        shared = self._node(layouts)
        self._join(v, source, shared, after, None, "activation")
        return shared

    def _store_parameter(self, v: int, value: Value, targets: list[Port]) -> None:
        fixed = self.rules.parameters.get(value.info.name)
        layouts: set[Layouts]
        if fixed is not None:
            layouts = {(Layout(fixed, fixed),) * len(self.axes)}
        else:
            options: list[set[Placement]] = [{Replicate()} for _ in self.axes]
            for target in targets:
                for layout in target.layouts:
                    for own, one in zip(options, layout, strict=True):
                        if not isinstance(one.forward, Partial):
                            own.add(one.forward)
            layouts = {tuple(Layout(p, p) for p in c) for c in product(*options)}
        port = self._node(layouts)
        self.stored[v] = port
        for target, (p, _) in zip(targets, value.users, strict=True):
            self._join(v, port, target, None, p, "parameter")

    def _join(
        self,
        v: int,
        source: Port,
        target: Port,
        after: int | None,
        before: int | None,
        what: str,
        *,
        gather: bool = True,
    ) -> None:
        self.joints.append(
            Joint(value=v, source=source, target=target, after=after, before=before, what=what)
        )
        value = self.block.values[v]
        if self.rules.local_modules and gather:
            gather = may_gather(self.block, after, self.rules.styles)
        alike = value.info.shape, value.size_bytes, value.has_gradient, value.of_parameter
        key = (*alike, gather, source.layouts, target.layouts)
        if key not in self._tables:
            self._tables[key] = self._table(value, source.layouts, target.layouts, gather)
        self.network.add_pair(source.node, target.node, self._tables[key])

    def _table(
        self, value: Value, source: tuple[Layouts, ...], target: tuple[Layouts, ...], gather: bool
    ) -> FloatArray:
        """Price of every change of layout, shape [layouts of the source, of the target]."""
        left, left_of = _unique(source)
        right, right_of = _unique(target)
        table = np.array([[self._change_s(value, s, t, gather) for t in right] for s in left])
        return np.asarray(table[left_of][:, right_of])

    def _change_s(self, value: Value, source: Layouts, target: Layouts, gather: bool) -> float:
        if source == target:
            return 0.0
        if not self._may_change(value, source, target, gather):
            return float("inf")
        moves = transfers(source, target, value.size_bytes, self.axes, gradient=value.has_gradient)
        back = 1.0 if self.block.backward else _UNSENT
        return sum(
            self.collective_s(t.op, t.size_bytes, axis) * (back if backward else 1.0)
            for axis, backward, t in moves
        )

    def _may_change(self, value: Value, source: Layouts, target: Layouts, gather: bool) -> bool:
        """Whether the rules let a value go from one layout to another."""
        pairs = list(zip(source, target, strict=True))
        if value.of_parameter:
            return self.rules.gather_parameters or all(s.forward == t.forward for s, t in pairs)
        if any(isinstance(t.forward, Partial) and not isinstance(s.forward, Partial) for s, t in pairs):
            return False
        plain = self.rules.insist and self.rules.sequence is None
        if plain and any(isinstance(s.forward, Partial) and isinstance(t.forward, Shard) for s, t in pairs):
            return (
                False  # tensor parallelism without sequence parallelism sums where it meets a partial result
            )
        if self.rules.local_modules and not self._at_border(source, target, gather):
            return False
        return not self._must_scatter(value, source, target)

    def _at_border(self, source: Layouts, target: Layouts, gather: bool) -> bool:
        """Whether a run of styled modules makes this change: sums, and gathers behind a split nn.Linear."""
        for s, t in zip(source, target, strict=True):
            if s.forward == t.forward or isinstance(s.forward, Partial):
                continue
            if not (gather and isinstance(s.forward, Shard) and isinstance(t.forward, Replicate)):
                return False
        return True

    def _must_scatter(self, value: Value, source: Layouts, target: Layouts) -> bool:
        """With sequence parallelism insisted on, a sequence is scattered, not all-reduced."""
        if not self.rules.insist or self.rules.sequence is None:
            return False
        for axis, s, t in zip(self.axes, source, target, strict=True):
            forward = isinstance(s.forward, Partial) and isinstance(t.forward, Replicate)
            backward = isinstance(t.gradient, Partial) and isinstance(s.gradient, Replicate)
            if (forward or (backward and value.has_gradient)) and sequence_shards(
                value.info.shape, self.rules, axis.n
            ):
                return True
        return False


@cache
def _name(layouts: Layouts) -> str:
    return str(layouts)


def _unique(layouts: tuple[Layouts, ...]) -> tuple[list[Layouts], list[int]]:
    numbers: dict[Layouts, int] = {}
    index = [numbers.setdefault(x, len(numbers)) for x in layouts]
    return list(numbers), index
