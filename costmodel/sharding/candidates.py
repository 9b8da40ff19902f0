"""Which strategies each forward operator of a block may take on one mesh axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel.graph.model_graph import TensorRole
from costmodel.sharding.block import Block, Value
from costmodel.sharding.executable import executable_strategies
from costmodel.sharding.local import PRODUCT_KINDS
from costmodel.sharding.placements import (
    BROADCAST,
    REPLICATED,
    Layout,
    Partial,
    Placement,
    Replicate,
    Shard,
    sharded,
)
from costmodel.sharding.strategies import Call, Strategy, strategies_for
from costmodel.sharding.strategies.call import rule_name

__all__ = ["Axis", "Rules", "candidates", "sequence_shards"]

_SWEEPS = 4
_CHOICE = "aten.topk"
"""How routers choose experts."""

_Chunks = dict[tuple[int, int], frozenset[int]]
"""(input or output, dimension) -> chunk counts above one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of the device mesh."""

    name: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the search may do.

    `allow_batch` False keeps products from being split by their rows (tokens or samples): only dimensions of
    weights are split, which is tensor parallelism. `sequence` lists (sequence length, micro-batch size): then
    partial results may be scattered along the sequence (Megatron's sequence parallelism). `gather_parameters`
    lets a parameter be stored sharded and used whole (ZeRO-3). `merge_gradients` False makes every user of a
    tensor reduce its own gradient, as modules parallelised one by one do. `insist`: a weighted product (and
    the look-up of a vocabulary) stays whole only where nothing else is possible, whatever it costs; without
    it the search may answer that a small block is better not split. `parameters` fixes placements by name.
    """

    allow_batch: bool = False
    sequence: tuple[int, int] | None = None
    gather_parameters: bool = False
    context: bool = False
    """Split the sequence and nothing else: weights stay whole (context parallelism)."""
    merge_gradients: bool = True
    insist: bool = False
    parameters: Mapping[str, Placement] = field(default_factory=dict)
    local_modules: bool = False
    """Only what modules parallelised one by one can run (see `costmodel.sharding.executable`)."""
    styles: Mapping[str, str] | None = None
    """Module path -> style, where exactly these modules are parallelised."""
    uneven: frozenset[int] = frozenset()
    """Dimension sizes that may be cut unevenly (vocabularies)."""


def sequence_shards(shape: tuple[int, ...], rules: Rules, n: int) -> list[Shard]:
    """Sequence dimensions of a tensor: of the sequence's size, or batch x sequence flattened."""
    if rules.sequence is None:
        return []
    length, batch = rules.sequence
    if length % n or length < n:
        return []
    found = [Shard(d) for d, size in enumerate(shape) if size == length and len(shape) > 2]
    if shape == (batch, length):
        found = [Shard(1)]
    if shape and shape[0] == batch * length and len(shape) <= 2:
        found.append(Shard(0, batch))
    return found


def candidates(block: Block, axis: Axis, rules: Rules) -> list[list[Strategy]]:
    """Strategies per forward operator, with packed shards spread through the block and, unless the batch may
    be split, without what cannot be reached from sharded weights."""
    key = axis.n, frozenset() if rules.local_modules else rules.uneven
    if key not in block.strategies:
        block.strategies[key] = _every(block, *key)
    found = block.strategies[key]
    if rules.local_modules:
        found = [executable_strategies(block, p, found[p], rules.styles) for p in range(len(found))]
    if rules.allow_batch:
        return found
    return _reachable(block, axis, rules, found)


def _every(block: Block, n: int, uneven: frozenset[int]) -> list[list[Strategy]]:
    """Strategies per forward operator on n ranks, whatever the rules."""
    packed = _Packed()
    found: list[list[Strategy]] = [[] for _ in block.forward]
    known: list[object] = [None] * len(block.forward)
    for _ in range(_SWEEPS):
        changed = []
        for p in range(len(block.forward)):
            packing = packed.at(block.inputs[p]), packed.at(block.outputs[p])
            if packing != known[p]:
                found[p], known[p] = list(strategies_for(_call(block, p, n, uneven, *packing))), packing
                changed.append(p)
        if not packed.learn(block, found, changed):
            break
    return found


class _Packed:
    """Chunk counts above one seen at each value's dimensions."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[int, frozenset[int]]] = {}
        """Value -> dimension -> chunk counts."""

    def learn(self, block: Block, found: list[list[Strategy]], positions: list[int]) -> bool:
        changed = False
        for position in positions:
            values = (*block.inputs[position], *block.outputs[position])
            for strategy in found[position]:
                for v, layout in zip(values, (*strategy.inputs, *strategy.outputs), strict=True):
                    shard = layout.forward
                    if isinstance(shard, Shard) and shard.chunks > 1:
                        dims = self.seen.setdefault(v, {})
                        known = dims.get(shard.dim, frozenset())
                        if shard.chunks not in known:
                            dims[shard.dim] = known | {shard.chunks}
                            changed = True
        return changed

    def at(self, values: tuple[int, ...]) -> _Chunks:
        seen = self.seen
        return {(i, d): c for i, v in enumerate(values) if v in seen for d, c in seen[v].items()}


def _call(
    block: Block, position: int, n: int, uneven: frozenset[int], packed_in: _Chunks, packed_out: _Chunks
) -> Call:
    return Call(
        op=block.forward[position],
        inputs=tuple(block.values[v].info.shape for v in block.inputs[position]),
        outputs=tuple(block.values[v].info.shape for v in block.outputs[position]),
        n=n,
        packed_in=packed_in,
        packed_out=packed_out,
        uneven=uneven,
    )


def _reachable(block: Block, axis: Axis, rules: Rules, found: list[list[Strategy]]) -> list[list[Strategy]]:
    reach: dict[int, set[Placement]] = {}

    def at(v: int) -> set[Placement]:
        if v not in reach:
            value = block.values[v]
            reach[v] = {Replicate()}
            if value.producer is None and not value.is_parameter and (value.has_gradient or rules.context):
                reach[v].update(sequence_shards(value.info.shape, rules, axis.n))
        return reach[v]

    def takes(value: Value, v: int, placement: Placement) -> bool:
        if rules.context and value.is_parameter:
            return isinstance(placement, Replicate)
        if rules.context and not value.has_gradient and isinstance(placement, Shard):
            return True  # masks and positions are cut for nothing
        if v in block.asides and isinstance(placement, Shard) and not rules.local_modules:
            return True
        if value.is_parameter or (value.producer is None and value.info.role is TensorRole.BUFFER):
            return not isinstance(placement, Partial)
        return placement in at(v)

    def cuts(position: int, v: int, placement: Placement) -> bool:
        """Under sequence parallelism a product takes its columns of what every rank has computed whole (heads
        that the ranks do not divide), for else its result could not be scattered along the sequence."""
        return (
            rules.sequence is not None
            and not (rules.context or rules.local_modules)
            and block.forward[position].kind in PRODUCT_KINDS
            and isinstance(placement, Shard)
            and block.values[v].has_gradient
            and at(v) == {Replicate()}
        )

    routed = _routed(block) if rules.context else frozenset()
    kept: list[list[Strategy]] = []
    for position, strategies in enumerate(found):
        ins = block.inputs[position]
        good = []
        if position in routed and (by_tokens := _by_tokens(block, position, rules, axis.n)):
            strategies = [*strategies, by_tokens]
        for strategy in strategies:
            pairs = list(zip(ins, strategy.inputs, strict=True))
            if not all(
                takes(block.values[v], v, layout.forward) or cuts(position, v, layout.forward)
                for v, layout in pairs
            ):
                continue
            if not rules.context and _by_rows(block, position, strategy):
                continue
            good.append(strategy)
            for v, layout in zip(block.outputs[position], strategy.outputs, strict=True):
                at(v).add(layout.forward)
        for v in block.outputs[position]:
            value = block.values[v]
            if Partial() in at(v) and value.has_gradient:
                at(v).update(sequence_shards(value.info.shape, rules, axis.n))
        kept.append(good)
    return kept


def _routed(block: Block) -> frozenset[int]:
    """Forward operators that follow from a router's choice of experts, with the choice."""
    found: set[int] = set()
    made: set[int] = set()
    for position, op in enumerate(block.forward):
        if rule_name(op.target) == _CHOICE or made.intersection(block.inputs[position]):
            found.add(position)
            made.update(block.outputs[position])
    return frozenset(found)


def _by_tokens(block: Block, position: int, rules: Rules, n: int) -> Strategy | None:
    """Each rank routes its own tokens: the tensors that count tokens, or their copies for experts, are split
    along them, and what sums up over tokens holds a rank's own. None where no tensor counts them."""
    assert rules.sequence is not None
    length, batch = rules.sequence
    if length % n:
        return None

    def layout(v: int) -> Layout:
        value = block.values[v]
        shape = value.info.shape
        if value.of_parameter:
            return BROADCAST
        if len(shape) > 2 and shape[:2] == (batch, length):
            return sharded(1)
        return sharded(0, batch) if shape and shape[0] and shape[0] % (length * batch) == 0 else REPLICATED

    ins, outs = (tuple(map(layout, vs)) for vs in (block.inputs[position], block.outputs[position]))
    if not any(isinstance(found.forward, Shard) for found in (*ins, *outs)):
        return None
    splits = ("m",) if "m" in block.forward[position].dims else ()
    return Strategy(name="tokens", inputs=ins, outputs=outs, splits=splits)


def _by_rows(block: Block, position: int, strategy: Strategy) -> bool:
    """Whether a strategy splits a weighted product or look-up by tokens or samples, its weight whole."""
    op = block.forward[position]
    if not strategy.splits and op.kind != "embedding":
        return False
    matrices = [
        layout
        for v, layout in zip(block.inputs[position], strategy.inputs, strict=True)
        if block.values[v].of_parameter and len(block.values[v].info.shape) > 1
    ]
    return bool(matrices) and all(layout == BROADCAST for layout in matrices)
