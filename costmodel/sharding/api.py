"""`shard`: a traced model and degrees of parallelism -> what one rank runs, holds and communicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod

from costmodel.errors import InfeasibleError, PlanError
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.sharding.block import read_block, tensor_bytes
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.context import split_context
from costmodel.sharding.cost import ShardingCost, reference_cost
from costmodel.sharding.expert import Routing, expert_tensors, split_experts
from costmodel.sharding.localise import localise
from costmodel.sharding.placements import REPLICATED, Placement, sharded
from costmodel.sharding.sharded import CollectiveCall, ShardedGraph, ShardedSegment, unsharded_segment
from costmodel.sharding.solver import solve_segment
from costmodel.sharding.strategies import has_rule
from costmodel.sharding.tp_plan import assignment_from_tp_plan

__all__ = ["shard", "vocabulary_sizes"]


def shard(
    graph: ModelGraph,
    *,
    tp: int,
    sequence_parallel: bool = False,
    cp: int = 1,
    ep: int = 1,
    cost: ShardingCost | None = None,
    parameters: Mapping[str, Placement] | None = None,
    styles: Mapping[str, str] | None = None,
    cp_exchange: str = "ring",
    routing: Routing | None = None,
    use_tp_plan: bool = True,
) -> ShardedGraph:
    """One rank's part of the model under tensor (tp), context (cp) and expert (ep) parallelism.

    Every weighted product that can be split is split (that is what the degree asks for); among those ways the
    one of least time under `cost` is taken. The model's own `tp_plan` is followed where it fits. `parameters`
    (name -> placement) fixes the choice; `styles` (module path -> style, see `module_plan`) prices exactly
    what torch's parallelize_module runs with them. Degrees of 1 return the graph unchanged.

    Raises PlanError with the formula where a degree leaves nothing to split.
    """
    for name, degree in (("tp", tp), ("cp", cp), ("ep", ep)):
        if degree < 1:
            raise PlanError(f"{name}({degree}): must be at least 1")
    if tp == cp == ep == 1:
        return ShardedGraph(graph=graph, segments=tuple(unsharded_segment(s) for s in graph.segments))
    prices = cost or reference_cost()
    notes: list[str] = []
    whole = list(graph.segments)
    parts: list[ShardedSegment] = []
    for number, segment in enumerate(whole):
        if cp > 1:
            parts.append(
                split_context(graph, segment, cp=cp, exchange=cp_exchange, cost=prices, is_first=number == 0)
            )
        else:
            parts.append(unsharded_segment(segment))
    if tp > 1:
        parts = _tensor_parallel(
            graph, parts, tp, sequence_parallel, cp, prices, parameters, styles, use_tp_plan, notes
        )
    if ep > 1:
        if not any(expert_tensors(s) for s in whole):
            raise PlanError(f"ep({ep}): the model has no expert weights to divide; use ep 1")
        slices = tp if sequence_parallel else 1
        parts = [split_experts(p, ep=ep, routing=routing or Routing(), slices=slices) for p in parts]
    unruled = sum(
        s.count * (not has_rule(op.target))
        for s in whole
        for op in s.phase(Phase.FORWARD)
        if op.kind != "host"
    )
    return ShardedGraph(
        graph=graph,
        segments=tuple(parts),
        tp=tp,
        cp=cp,
        ep=ep,
        sequence_parallel=sequence_parallel,
        notes=tuple(notes),
        unruled_operators=unruled,
    )


def vocabulary_sizes(graph: ModelGraph) -> frozenset[int]:
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


def _tensor_parallel(
    graph: ModelGraph,
    parts: list[ShardedSegment],
    tp: int,
    sequence_parallel: bool,
    cp: int,
    cost: ShardingCost,
    parameters: Mapping[str, Placement] | None,
    styles: Mapping[str, str] | None,
    use_tp_plan: bool,
    notes: list[str],
    whole: frozenset[str] = frozenset(),
) -> list[ShardedSegment]:
    """Segments of one rank, the one with most work first; `whole`: parameters that are not to be split."""
    length = graph.seq_len // cp
    if sequence_parallel and (not length or length % tp):
        raise PlanError(
            f"seq_len({graph.seq_len}) / cp({cp}) % tp({tp}) != 0: sequence parallelism splits the "
            "sequence over the tensor-parallel ranks; choose a tp that divides it or leave it out"
        )
    axis = Axis(name="tp", n=tp)
    rules = Rules(
        sequence=(length, graph.micro_batch_size) if sequence_parallel else None,
        insist=parameters is None and styles is None,
        merge_gradients=styles is None,
        local_modules=styles is not None,
        styles=styles,
        uneven=vocabulary_sizes(graph),
    )
    boundary = (sharded(1) if sequence_parallel else REPLICATED,)
    fixed: dict[str, Placement] = dict(parameters or dict.fromkeys(whole, _WHOLE))
    result: dict[int, ShardedSegment] = {}
    flop = [sum(op.flop for op in part.local.phase(Phase.FORWARD)) for part in parts]
    for number in sorted(range(len(parts)), key=lambda i: -flop[i]):
        segment = parts[number].local
        if parameters is not None:
            shared = own = {t.name: fixed.get(t.name, _WHOLE) for t in segment.parameters}
        elif styles is not None:
            shared = own = {}
        else:
            shared = {t.name: fixed[t.name] for t in segment.parameters if t.name in fixed}
            planned = assignment_from_tp_plan(segment, graph.tp_plan) if use_tp_plan else {}
            own = {**planned, **shared}
        block = read_block(segment, is_first=number == 0)
        solve = partial(solve_segment, block, (axis,), cost=cost, boundary=boundary)
        try:
            found = solve(rules=replace(rules, parameters=own))
        except InfeasibleError as error:
            if parameters is not None or not own:
                raise
            try:
                if own == shared:
                    raise error
                notes.append(f"{segment.name}: the model's tp_plan does not fit tp({tp}); searched instead")
                found = solve(rules=replace(rules, parameters=shared))
            except InfeasibleError:
                if set(shared) <= whole:
                    raise
                # how another segment splits what both use does not fit here: it stays whole in all of them
                return _tensor_parallel(
                    graph,
                    parts,
                    tp,
                    sequence_parallel,
                    cp,
                    cost,
                    parameters,
                    styles,
                    use_tp_plan,
                    notes,
                    whole | set(shared),
                )
        result[number] = _merge(parts[number], localise(block, found))
        fixed.update((p.name, p.placement) for p in result[number].parameters)
    ordered = [result[number] for number in range(len(parts))]
    split = [p for part in ordered for p in part.parameters if p.is_sharded]
    if (
        parameters is None
        and styles is None
        and all(prod(p.local_shape) * tp != prod(p.shape) for p in split)
    ):
        raise PlanError(_nothing_to_shard(graph, tp))
    _note_whole(ordered, tp, notes)
    return ordered


_WHOLE = REPLICATED.forward


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


def _note_whole(parts: list[ShardedSegment], tp: int, notes: list[str]) -> None:
    whole = [p.name for part in parts for p in part.parameters if len(p.shape) > 1 and not p.is_sharded]
    if whole:
        notes.append(
            f"tp({tp}): kept whole on every rank: {', '.join(whole[:6])}{' ...' if len(whole) > 6 else ''}"
        )
