"""Peak memory of many plans with the same number of stages at once; the same account as `predict.peak`.

Arrays of stages have shape [n, v, p] as in `closed_form.step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.offload import two_largest
from costmodel.estimate import FloatArray, IntArray
from costmodel.predict.optimizer_costs import optimizer_variant, state_bytes_per_parameter

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.step import Offload

__all__ = ["Levels", "StageBytes", "held_bytes", "levels_of", "peak_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """What each stage holds, shape [n, v, p]: activations of one micro-batch from forward to backward, the
    highest level while one passes (see `closed_form.stages`), elements of trained parameters (copies of tied
    ones included), of the experts among them, of frozen ones and their experts, of the two largest units, and
    the most trained ones of a unit."""

    saved: FloatArray
    appearing: FloatArray
    standing: FloatArray
    elements: FloatArray
    experts: FloatArray
    frozen: FloatArray
    frozen_experts: FloatArray
    largest: FloatArray
    second: FloatArray
    largest_trained: FloatArray


def held_bytes(saved: FloatArray, kind: str, num_microbatches: IntArray) -> FloatArray:
    """Most activation bytes that each rank holds between forwards and backwards, shape [n, p].

    flow shop: all m. alternate, one chunk: min(m, p - r) on rank r (arXiv 2006.09503, section 2.2). lagging:
    the W that frees them comes r passes late, so min(m, p). Several chunks: (v - 1) p + 2 (p - 1 - r) passes
    and one more, whatever chunks they are of.
    """
    _, v, p = saved.shape
    m = num_microbatches[:, None].astype(np.float64)
    rank = np.arange(p)
    if kind in ("flow shop", "any"):
        return np.asarray(m * saved.sum(axis=1))
    if v == 1:
        most = np.full(p, p) if kind == "lagging" else p - rank
        return np.asarray(np.minimum(m, most) * saved[:, 0, :])
    return _interleaved(saved, num_microbatches, lagging=kind == "lagging")


def _interleaved(saved: FloatArray, m: IntArray, *, lagging: bool) -> FloatArray:
    """Rounds of `q` micro-batches pass through the chunks, forwards first chunk first, backwards last chunk
    first; what is held is piecewise linear in time, so it is highest where a round changes chunks."""
    n, v, p = saved.shape
    most = np.zeros((n, p))
    for count in np.unique(m):
        rows = np.flatnonzero(m == count)
        held = _held_passes(int(count), v, p, lagging)
        most[rows] = np.matmul(saved[rows].transpose(2, 0, 1), held.transpose(0, 2, 1)).max(axis=2).T
    return most


@lru_cache(maxsize=4096)
def _held_passes(m: int, v: int, p: int, lagging: bool) -> FloatArray:
    """Passes of each chunk that a rank holds at the moments it may hold most, shape [p, moments, v]."""
    q, total = m // max(1, m // p), m * v
    rank = np.arange(p)[:, None]
    late = rank if lagging else 0 * rank
    warm_up = np.minimum((v - 1) * q + (p - 1 - rank if lagging else 2 * (p - 1 - rank)), total)
    turns = np.arange(0, 2 * v + 2)[None, :] * q
    moments = np.concatenate([turns + 0 * late, turns - warm_up, turns + late], axis=1)
    moments = np.concatenate([moments - 1, moments], axis=1)
    moments = _distinct(np.clip(moments, 0, np.minimum(total, 2 * q * v + late)))
    forwards = np.minimum(warm_up + moments + 1, total)
    freed = np.maximum(0, moments - late)
    held = [_of_chunk(forwards, c, q, v) - _of_chunk(freed, v - 1 - c, q, v) for c in range(v)]
    return np.stack(held, axis=2).astype(np.float64)


def _distinct(moments: IntArray) -> IntArray:
    """The different numbers of every row; rows that have fewer end in repeats."""
    ascending = np.sort(moments, axis=1)
    place = np.zeros_like(ascending)
    place[:, 1:] = np.cumsum(ascending[:, 1:] > ascending[:, :-1], axis=1)
    found = np.repeat(ascending[:, -1:], int(place.max()) + 1, axis=1)
    np.put_along_axis(found, place, ascending, axis=1)
    return found


def _of_chunk(passes: IntArray, c: int, q: int, v: int) -> IntArray:
    """How many of the first `passes` passes are the c-th chunk of their round's order."""
    return passes // (q * v) * q + np.clip(passes % (q * v) - c * q, 0, q)


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What holds memory beside the activations of other micro-batches; shape [n, p] unless said."""

    lasting: FloatArray
    """Parameters, gradients, optimizer state and buffers of communication."""
    gradients: FloatArray
    resting: FloatArray
    """Gradients that are there while a micro-batch passes."""
    passing: FloatArray
    """Highest level while one micro-batch passes each stage, [n, v, p]."""
    saved: FloatArray
    """Activations that it keeps there, [n, v, p]."""
    update: FloatArray
    """Gradients and temporaries of the update."""
    fixed: float


def levels_of(
    stages: StageBytes,
    *,
    framework: FrameworkProfile,
    optimizer: str,
    zero_stage: IntArray,
    dp: IntArray,
    shard: IntArray,
    ep: IntArray,
    num_microbatches: IntArray,
    looped: bool,
    offload: Offload | None = None,
) -> Levels:
    """The levels of plans of any schedule; `zero_stage`, `dp`, `shard`, `ep`, `num_microbatches`: shape [n].

    `shard`: ranks that divide what ZeRO divides, of `ep` of which each holds other experts.
    `looped`: the optimizer updates tensor by tensor; its temporary is left out then (it is small).
    """
    elements = stages.elements.sum(axis=1)
    zero, parts = zero_stage[:, None], shard[:, None].astype(np.float64)
    experts = stages.experts.sum(axis=1)

    def shares(elements: FloatArray, experts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Whole, and what one of the ranks has that divide them."""
        each = np.maximum(1.0, parts // ep[:, None])
        whole = np.ceil(elements - experts) + np.ceil(experts)
        return whole, np.ceil((elements - experts) / parts) + np.ceil(experts / each)

    def divided(needed: int, of: tuple[FloatArray, FloatArray]) -> FloatArray:
        whole, part = of
        return np.asarray(np.where(zero >= needed, part, whole))

    trained = stored = shares(elements, experts)
    if stages.frozen.any():
        stored = shares(elements + stages.frozen.sum(axis=1), experts + stages.frozen_experts.sum(axis=1))
    parameters = divided(3, stored) * framework.parameter_bytes
    gradients = divided(2, trained) * framework.gradient_bytes
    kept = state_bytes_per_parameter(optimizer, framework)
    state = divided(1, trained) * kept
    if offload is not None:
        two = two_largest(stages.largest, stages.second)  # as `predict.peak` counts what stays on the device
        state = 0.0 * state
        gradients = np.minimum(gradients, np.rint(two * framework.gradient_bytes))
        if offload.stream_weights:
            parameters = np.minimum(parameters, np.rint(two * framework.parameter_bytes))
    traffic = optimizer_variant(optimizer)
    stay = np.full(len(dp), framework.gradients_persist or not traffic.updates)
    if framework.gradient_as_bucket_view:
        stay |= dp > 1
    appear = (~stay & (num_microbatches == 1) & (zero_stage < 2) & (offload is None))[:, None]
    rooted = traffic.rooted and not framework.fused_optimizer and not looped
    each = framework.update_copy_bytes + (4.0 if rooted else 0.0)
    temporary = np.zeros_like(elements)
    if each and traffic.updates:
        temporary = np.floor(each * elements / np.where(zero >= 1, parts, 1.0))
    buffers = _communication(stages, elements, framework, zero, dp[:, None])
    return Levels(
        lasting=parameters + gradients + state + buffers,
        gradients=gradients,
        resting=np.where(appear, 0.0, gradients),
        passing=np.where(appear[:, :, None], stages.appearing, stages.standing),
        saved=stages.saved,
        update=gradients + temporary,
        fixed=framework.workspace_bytes + framework.memory_overhead_bytes,
    )


def peak_bytes(levels: Levels, most_held: FloatArray) -> FloatArray:
    """Bytes on the fullest rank, shape [n]. `most_held`: as `held_bytes` says, [n, p]."""
    others = np.maximum(0.0, most_held[:, None, :] - levels.saved)
    highest = np.maximum((others + levels.passing).max(axis=1) + levels.resting, levels.update)
    above = np.maximum(0.0, highest - levels.gradients)
    return np.asarray((levels.lasting + above).max(axis=1) + levels.fixed)


def _communication(
    stages: StageBytes, elements: FloatArray, framework: FrameworkProfile, zero: IntArray, dp: IntArray
) -> FloatArray:
    """Buffers of data parallelism, as `predict.memory.communication_bytes`."""
    gathered = 2 * framework.parameter_comm_bytes * stages.largest.max(axis=1)
    gathered = gathered + framework.gradient_comm_bytes * stages.largest_trained.max(axis=1)
    copied = elements * framework.gradient_comm_bytes
    if framework.gradient_as_bucket_view:
        buckets: FloatArray = np.zeros_like(copied)
    else:
        buckets = np.where(zero == 0, copied, np.minimum(copied, 2.0 * framework.bucket_bytes))
    return np.where(dp == 1, 0.0, np.where(zero == 3, gathered, buckets))
