"""Context parallelism: the sequence is split for every operator; attention exchanges keys and values.

The assignment is found in the same language as any other: every value is sharded along its sequence, weights
are whole, and attention's queries are split by rows, which asks for whole keys and values. That all-gather is
then carried out as

    ring        cp - 1 steps, each passing one rank's keys and values on beside the attention of the block at
                hand; backward passes keys, values and their gradients (Liu et al., Ring Attention, arXiv
                2310.01889; Megatron-LM's context parallelism)
    all_gather  as it stands (Llama 3, arXiv 2407.21783 section 3.3.2)
    all_to_all  heads instead of sequence inside attention: queries, keys, values and the result change from
                sequence to head shards (DeepSpeed-Ulysses, arXiv 2309.14509)

Every rank has as many pairs of queries and keys before them as any other: it takes two stretches of the
sequence, one from each end (Megatron-LM, torch; Llama 3, the same section), or whole heads.

Gradients of the whole weights are reduced with the data-parallel group (dp x cp), so they are left out.
"""

from __future__ import annotations

from dataclasses import replace

from costmodel.errors import PlanError
from costmodel.graph.model_graph import ModelGraph, Operator, Phase, Segment
from costmodel.sharding.block import read_block, tensor_bytes
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.cost import ShardingCost
from costmodel.sharding.localise import localise
from costmodel.sharding.placements import sharded
from costmodel.sharding.sharded import CollectiveCall, ShardedSegment
from costmodel.sharding.solver import solve_segment

__all__ = ["CP_EXCHANGES", "split_context"]

CP_EXCHANGES = ("ring", "all_gather", "all_to_all")


def split_context(
    graph: ModelGraph, segment: Segment, *, cp: int, exchange: str, cost: ShardingCost, is_first: bool
) -> ShardedSegment:
    """The segment with its sequence split over cp ranks. Raises PlanError where it does not divide."""
    if exchange not in CP_EXCHANGES:
        raise PlanError(f"cp exchange {exchange!r}: must be one of {', '.join(CP_EXCHANGES)}")
    length = graph.seq_len
    if not length:
        raise PlanError(
            f"cp({cp}): the model names no sequence to split (images have none, and example inputs do not "
            "say which dimension it is); give a transformers configuration with one, or leave cp out"
        )
    if length % cp:
        raise PlanError(
            f"seq_len({length}) % cp({cp}) != 0: context parallelism splits the sequence evenly; choose a cp "
            "that divides it (passes of one token, which answers are made of, take none)"
        )
    axis = Axis(name="cp", n=cp)
    rules = Rules(sequence=(length, graph.micro_batch_size), context=True)
    block = read_block(segment, is_first=is_first)
    assignment = solve_segment(block, (axis,), rules=rules, cost=_Insist(cost), boundary=(sharded(1),))
    local = localise(block, assignment)
    calls = [c for c in local.collectives if c.what != "gradient"]
    if exchange == "ring":
        calls = [part for call in calls for part in _ring(call, cp)]
    elif exchange == "all_to_all":
        calls = _ulysses(calls, local, cp)
    operators = tuple(_balanced(op) for op in local.local.operators)
    return replace(local, local=replace(local.local, operators=operators), collectives=tuple(calls))


def _balanced(op: Operator) -> Operator:
    """Causal attention of a rank's queries to the keys before them, the mean over ranks.

    The last q of kv rows would see q (kv - (q - 1)/2) keys; of all rows 1/cp see q (kv + 1)/2, which is what
    the last q of (kv + q)/2 rows see.
    """
    q, kv = op.dims.get("q_len", 0), op.dims.get("kv_len", 0)
    if op.kind != "attention" or not op.dims.get("causal") or q >= kv:
        return op
    return replace(op, dims={**op.dims, "kv_len": (kv + q) // 2})


class _Insist:
    """Work weighs far more than communication: context parallelism is asked for to split the work."""

    def __init__(self, cost: ShardingCost) -> None:
        self._cost = cost

    def operator_s(self, op: object) -> float:
        return _WORK_WEIGHT * self._cost.operator_s(op)  # type: ignore[arg-type]

    def collective_s(self, op: str, size_bytes: int, n: int, axis: str) -> float:
        return self._cost.collective_s(op, size_bytes * _MANY, n, axis) / _MANY


_WORK_WEIGHT = 1e3
_MANY = 1000
"""Collectives are priced by their bytes alone: joining two exchanges in a larger one is no gain here."""


def _ring(call: CollectiveCall, cp: int) -> list[CollectiveCall]:
    """An all-gather of keys or values as cp - 1 passes of one rank's part; backward carries gradients too."""
    part = replace(call, op="p2p", size_bytes=call.size_bytes // cp, overlapped=True)
    if call.phase is Phase.FORWARD and call.op == "all_gather":
        return [part] * (cp - 1)
    if call.phase is Phase.BACKWARD and call.op == "reduce_scatter":
        return [part] * (2 * (cp - 1))
    return [call]


def _ulysses(calls: list[CollectiveCall], local: ShardedSegment, cp: int) -> list[CollectiveCall]:
    """Gathers of keys and values replaced by all-to-alls of queries, keys, values and the result."""
    attention = [op for op in local.local.phase(Phase.FORWARD) if op.kind == "attention"]
    if (
        not attention
    ):  # attention written out: a pair of exchanges stands for each gather (k: q, k; v: v, result)
        return [part for call in calls for part in _exchange_pair(call, cp)]
    tensors = {t.index: t for t in local.local.tensors}
    kept = [c for c in calls if not (c.op in ("all_gather", "reduce_scatter") and c.what == "activation")]
    for op in attention:
        heads = op.dims.get("heads", 0)
        if heads % cp:
            raise PlanError(
                f"heads({heads}) % cp({cp}) != 0: all-to-all context parallelism splits heads; use ring"
            )
        for index in (*op.inputs[:3], *op.outputs[:1]):
            after = op.index - 1 if index in op.inputs else op.index
            call = CollectiveCall(
                op="all_to_all",
                size_bytes=tensor_bytes(tensors[index]),
                n_ranks=cp,
                axis="cp",
                phase=Phase.FORWARD,
                after_operator=after,
                module=op.module,
                tensor=index,
            )
            back = [b.index for b in local.local.phase(Phase.BACKWARD) if b.forward_index == op.index]
            kept += [call, replace(call, phase=Phase.BACKWARD, after_operator=back[-1] if back else -1)]
    return kept


def _exchange_pair(call: CollectiveCall, cp: int) -> list[CollectiveCall]:
    if call.op not in ("all_gather", "reduce_scatter") or call.what != "activation":
        return [call]
    return [replace(call, op="all_to_all", size_bytes=call.size_bytes // cp)] * 2
