"""Tensor parallelism of a whole model: segments split one after another, what they share alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

from costmodel.errors import InfeasibleError, PlanError
from costmodel.graph.model_graph import ModelGraph, Phase, Segment
from costmodel.sharding.block import read_block, tensor_bytes
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.cost import ShardingCost
from costmodel.sharding.localise import localise
from costmodel.sharding.placements import REPLICATED, Placement, sharded
from costmodel.sharding.sharded import CollectiveCall, ShardedSegment
from costmodel.sharding.solver import solve_segment
from costmodel.sharding.tp_plan import assignment_from_tp_plan

__all__ = ["TensorSplit"]

_WHOLE = REPLICATED.forward


def _vocabulary_sizes(graph: ModelGraph) -> frozenset[int]:
    """Row count of the largest embedding table: that dimension may be cut unevenly (frameworks pad it)."""
    rows = [
        tensor.shape[0]
        for segment in graph.segments
        for op in segment.phase(Phase.FORWARD)
        if op.kind == "embedding"
        for tensor in segment.parameters
        if tensor.index in op.inputs and len(tensor.shape) == 2
    ]
    return frozenset({max(rows)}) if rows else frozenset()


class _SharedDoNotFitError(Exception):
    """How another segment splits these parameters does not fit a segment that uses them too."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(names)))
        self.names = names


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSplit:
    """What tensor parallelism of degree `tp` is asked for; see `shard` for the rest."""

    graph: ModelGraph
    tp: int
    sequence_parallel: bool
    cp: int
    cost: ShardingCost
    parameters: Mapping[str, Placement] | None
    styles: Mapping[str, str] | None
    use_tp_plan: bool

    def of(self, parts: Sequence[ShardedSegment]) -> tuple[list[ShardedSegment], tuple[str, ...]]:
        """One rank's part of the segments (as context parallelism left them), and notes for the user.

        Raises PlanError where the degree leaves nothing to split.
        """
        whole: frozenset[str] = frozenset()
        while True:
            notes: list[str] = []
            try:
                found = self._split(parts, whole, notes)
            except _SharedDoNotFitError as clash:
                whole |= clash.names  # they stay whole in all segments
                continue
            split = [p for part in found for p in part.parameters if p.is_sharded]
            if self._searched and all(prod(p.local_shape) * self.tp != prod(p.shape) for p in split):
                raise PlanError(_nothing_to_shard(self.graph, self.tp))
            return found, (*notes, *_kept_whole(found, self.tp), *_whole_heads(parts, found, self.tp))

    @property
    def _searched(self) -> bool:
        """Whether the way of splitting is not given."""
        return self.parameters is None and self.styles is None

    def _rules(self) -> Rules:
        length = self.graph.seq_len // self.cp
        if self.sequence_parallel and not self.graph.seq_len:
            raise PlanError(
                "sp: the model names no sequence to split (images have none, and example inputs do not say "
                "which dimension it is); give a transformers configuration with one, or leave sp out"
            )
        if self.sequence_parallel and (not length or length % self.tp):
            raise PlanError(
                f"seq_len({self.graph.seq_len}) / cp({self.cp}) % tp({self.tp}) != 0: sequence "
                "parallelism splits the sequence over the tensor-parallel ranks; choose a tp that divides it "
                "or leave it out"
            )
        return Rules(
            sequence=(length, self.graph.micro_batch_size) if self.sequence_parallel else None,
            insist=self._searched,
            merge_gradients=self.styles is None,
            local_modules=self.styles is not None,
            styles=self.styles,
            uneven=_vocabulary_sizes(self.graph),
        )

    def _split(
        self, parts: Sequence[ShardedSegment], whole: frozenset[str], notes: list[str]
    ) -> list[ShardedSegment]:
        """The segments split, the one with most work first; `whole`: parameters that are not to be split."""
        rules = self._rules()
        boundary = (sharded(1) if self.sequence_parallel else REPLICATED,)
        fixed: dict[str, Placement] = dict(self.parameters or dict.fromkeys(whole, _WHOLE))
        result: dict[int, ShardedSegment] = {}
        flop = [sum(op.flop for op in part.local.phase(Phase.FORWARD)) for part in parts]
        for number in sorted(range(len(parts)), key=lambda i: -flop[i]):
            segment = parts[number].local
            shared, own = self._assigned(segment, fixed)
            block = read_block(segment, is_first=number == 0)
            solve = partial(
                solve_segment, block, (Axis(name="tp", n=self.tp),), cost=self.cost, boundary=boundary
            )
            try:
                found = solve(rules=replace(rules, parameters=own))
            except InfeasibleError:
                if self.parameters is not None or not own:
                    raise
                try:
                    if own == shared:
                        raise
                    notes.append(
                        f"{segment.name}: the model's tp_plan does not fit tp({self.tp}); searched instead"
                    )
                    found = solve(rules=replace(rules, parameters=shared))
                except InfeasibleError:
                    if set(shared) <= whole:
                        raise
                    raise _SharedDoNotFitError(frozenset(shared)) from None
            result[number] = _merge(parts[number], localise(block, found))
            fixed.update((p.name, p.placement) for p in result[number].parameters)
        return [result[number] for number in range(len(parts))]

    def _assigned(
        self, segment: Segment, fixed: Mapping[str, Placement]
    ) -> tuple[dict[str, Placement], dict[str, Placement]]:
        """Placements that other segments or the caller settled, and those with the model's own plan."""
        if self.parameters is not None:
            given = {t.name: fixed.get(t.name, _WHOLE) for t in segment.parameters}
            return given, given
        if self.styles is not None:
            return {}, {}
        shared = {t.name: fixed[t.name] for t in segment.parameters if t.name in fixed}
        planned = assignment_from_tp_plan(segment, self.graph.tp_plan) if self.use_tp_plan else {}
        return shared, {**planned, **shared}


def _merge(context: ShardedSegment, tensor: ShardedSegment) -> ShardedSegment:
    """Context-parallel exchanges move what tensor parallelism left of their tensors."""
    before = {t.index: tensor_bytes(t) for t in context.local.tensors}
    after = {t.index: tensor_bytes(t) for t in tensor.local.tensors}
    calls: list[CollectiveCall] = []
    for call in context.collectives:
        whole = before.get(call.tensor, 0)
        size = call.size_bytes * after[call.tensor] // whole if whole else call.size_bytes
        calls.append(replace(call, size_bytes=size))
    return replace(tensor, collectives=(*calls, *tensor.collectives))


def _nothing_to_shard(graph: ModelGraph, tp: int) -> str:
    terms: list[str] = []
    for segment in graph.segments:
        for op in segment.phase(Phase.FORWARD):
            heads = op.dims.get("heads", 0)
            if op.kind == "attention" and heads % tp:
                terms.append(f"heads({heads}) % tp({tp}) != 0")
        terms.extend(
            f"width({size}) % tp({tp}) != 0"
            for t in segment.parameters
            if len(t.shape) > 1
            for size in t.shape
            if size % tp
        )
    shown = list(dict.fromkeys(terms))
    terms = [t for t in shown if t.startswith("heads")] + [t for t in shown if not t.startswith("heads")]
    listed = ", ".join(terms[:5]) or "the model has no weighted product that can be split"
    return f"tp({tp}) leaves nothing to shard: {listed}; choose a tp that divides heads and widths"


def _kept_whole(parts: Sequence[ShardedSegment], tp: int) -> tuple[str, ...]:
    """A note on the weights that every rank has whole, where there are any."""
    whole = [p.name for part in parts for p in part.parameters if len(p.shape) > 1 and not p.is_sharded]
    if not whole:
        return ()
    return (f"tp({tp}): kept whole on every rank: {', '.join(whole[:6])}{' ...' if len(whole) > 6 else ''}",)


def _whole_heads(
    before: Sequence[ShardedSegment], after: Sequence[ShardedSegment], tp: int
) -> tuple[str, ...]:
    """A note on attention that every rank computes whole, as the ranks do not divide its heads."""
    found: dict[str, None] = {}
    for whole, part in zip(before, after, strict=True):
        heads = {op.index: op.dims["heads"] for op in whole.local.operators if op.kind == "attention"}
        for op in part.local.operators:
            if op.index in heads and op.dims["heads"] == heads[op.index]:
                counts = {op.dims.get("kv_heads", 0): "kv_heads", op.dims["heads"]: "heads"}
                found |= dict.fromkeys(f"{name}({n}) % tp({tp}) != 0" for n, name in counts.items() if n % tp)
    if not found:
        return ()
    return (
        f"{', '.join(found)}: every rank computes attention whole; frameworks that split it by heads refuse "
        "to; choose a tp that divides them",
    )
