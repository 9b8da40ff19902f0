"""Peak memory of many plans with the same number of stages at once; the same account as `predict.peak`.

Arrays of stages have shape [n, v, p] as in `closed_form.step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.offload import two_largest
from costmodel.estimate import FloatArray, IntArray
from costmodel.predict.memory import UnitBuffers, keeps_own_shares
from costmodel.predict.optimizer_costs import optimizer_variant, state_bytes_per_parameter

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.step import Offload

__all__ = ["HELD_ORDERS", "Levels", "StageBytes", "held_bytes", "held_order", "levels_of", "peak_bytes"]

HELD_ORDERS = ("all", "alternate", "lagging")
"""Orders of forwards and backwards that differ in what they hold."""


def held_order(kind: str) -> str:
    """Which of them a closed form of `closed_form.step` follows: where all forwards come before all
    backwards, all micro-batches are held."""
    return "all" if kind in ("flow shop", "any") else kind


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBytes:
    """What each stage holds, shape [c, v, p] for c models split and cut into stages alike: activations of one
    micro-batch from forward to backward, the highest level while one passes (see `closed_form.stages`),
    elements of trained parameters (copies of tied ones included), of the experts among them, of frozen ones
    and their experts, of the two largest units, and the most trained ones of a unit."""

    saved: FloatArray
    held: FloatArray
    """`saved`, and what else stays while other micro-batches pass."""
    appearing: FloatArray
    standing: FloatArray
    elements: FloatArray
    experts: FloatArray
    frozen: FloatArray
    frozen_experts: FloatArray
    unused: FloatArray
    """Of those frozen here, the ones that a reducer has room for."""
    largest: FloatArray
    second: FloatArray
    largest_trained: FloatArray
    loose: FloatArray
    """Elements outside blocks; of the largest block, the largest two in a row, their most trained ones:"""
    block: FloatArray
    pair: FloatArray
    pair_trained: FloatArray

    def of_ranks(self, *, with_two_largest: bool) -> FloatArray:
        """Elements of each rank, shape [13, c, p]: trained, experts, trained and frozen, experts of both, the
        largest unit, the most trained ones of a unit, frozen, the two largest units (0 where not asked),
        those in buckets without a gradient, those outside blocks, the largest block, the largest two in a
        row, their most trained ones."""
        elements, experts = self.elements.sum(axis=1), self.experts.sum(axis=1)
        frozen = self.frozen.sum(axis=1)
        return np.stack(
            [
                elements,
                experts,
                elements + frozen,
                experts + self.frozen_experts.sum(axis=1),
                self.largest.max(axis=1),
                self.largest_trained.max(axis=1),
                frozen,
                two_largest(self.largest, self.second) if with_two_largest else np.zeros_like(frozen),
                self.unused.sum(axis=1),
                self.loose.sum(axis=1),
                self.block.max(axis=1),
                self.pair.max(axis=1),
                self.pair_trained.max(axis=1),
            ]
        )

    def passing(self, order: str, num_microbatches: IntArray, *, appearing: bool) -> FloatArray:
        """Highest level of each rank while a micro-batch passes, beside the activations of others that an
        order of them has it hold, shape [c, p]: where gradients appear, or where they stand already."""
        others = held_bytes(self.held, order, num_microbatches)[:, None, :] - self.saved
        np.maximum(0.0, others, out=others)
        others += self.appearing if appearing else self.standing
        return np.asarray(others.max(axis=1))


def held_bytes(saved: FloatArray, order: str, num_microbatches: IntArray) -> FloatArray:
    """Most activation bytes that each rank holds between forwards and backwards, shape [n, p].

    all: all m. alternate, one chunk: min(m, p - r) on rank r (arXiv 2006.09503, section 2.2). lagging:
    the W that frees them comes r passes late, so min(m, p). Several chunks: (v - 1) p + 2 (p - 1 - r) passes
    and one more, whatever chunks they are of.
    """
    _, v, p = saved.shape
    m = num_microbatches[:, None].astype(np.float64)
    rank = np.arange(p)
    if order == "all":
        return np.asarray(m * saved.sum(axis=1))
    if v == 1:
        most = np.full(p, p) if order == "lagging" else p - rank
        return np.asarray(np.minimum(m, most) * saved[:, 0, :])
    return _interleaved(saved, num_microbatches, lagging=order == "lagging")


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
    """What holds memory beside activations; shape [n, p] unless said."""

    lasting: FloatArray
    """Parameters, gradients, optimizer state and buffers of communication."""
    gradients: FloatArray
    appear: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    """Whether gradients appear while a micro-batch passes, [n]; else they are there before."""
    update: FloatArray
    """Gradients and temporaries of the update."""
    resting: FloatArray
    """What is there in the place of gradients while micro-batches pass, unless they appear."""
    at_peak: FloatArray
    in_backward: FloatArray
    """Of single units that are whole, see `predict.memory.UnitBuffers`."""
    fixed: float


def levels_of(
    of_ranks: FloatArray,
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
    """The levels of plans of any schedule; `of_ranks` [13, n, p] as `StageBytes.of_ranks` says; `zero_stage`,
    `dp`, `shard`, `ep`, `num_microbatches`: shape [n].

    `shard`: ranks that divide what ZeRO divides, of `ep` of which each holds other experts.
    `looped`: the optimizer updates tensor by tensor; its temporary is left out then (it is small).
    """
    elements, experts, all_elements, all_experts, largest, largest_trained, frozen, two = of_ranks[:8]
    unused, loose, block, pair, pair_trained = of_ranks[8:]
    zero, parts = zero_stage[:, None], shard[:, None].astype(np.float64)
    expert_parts = np.maximum(1.0, parts // ep[:, None])

    def shares(elements: FloatArray, experts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Whole, and what one of the ranks has that divide them."""
        others = elements - experts
        whole = np.ceil(others) + np.ceil(experts)
        return whole, np.ceil(others / parts) + np.ceil(experts / expert_parts)

    def divided(needed: int, of: tuple[FloatArray, FloatArray]) -> FloatArray:
        whole, part = of
        return np.asarray(np.where(zero >= needed, part, whole))

    trained = stored = shares(elements, experts)
    if frozen.any():
        stored = shares(all_elements, all_experts)
    parameters = divided(3, stored) * framework.parameter_bytes
    bucketed = np.where(zero < 2, unused, 0.0)
    gradients = divided(2, trained) * framework.gradient_bytes
    if framework.gradient_as_bucket_view:
        gradients = gradients + np.where(dp[:, None] > 1, bucketed, 0.0) * framework.gradient_bytes
    if offload is None:
        state = divided(1, trained) * state_bytes_per_parameter(optimizer, framework)
    else:  # as `predict.peak` counts what stays on the device
        state = np.zeros_like(elements)
        gradients = np.minimum(gradients, np.rint(two * framework.gradient_bytes))
        if offload.stream_weights:
            parameters = np.minimum(parameters, np.rint(two * framework.parameter_bytes))
    traffic = optimizer_variant(optimizer)
    stay = np.full(len(dp), framework.gradients_persist or not traffic.updates)
    if framework.gradient_as_bucket_view:
        stay |= dp > 1
    rooted = traffic.rooted and not framework.fused_optimizer and not looped
    each = framework.update_copy_bytes + (4.0 if rooted else 0.0)
    update = gradients
    if each and traffic.updates and offload is None:
        update = gradients + np.floor(each * elements / np.where(zero >= 1, parts, 1.0))
    gathered = 2 * framework.parameter_comm_bytes * largest + framework.gradient_comm_bytes * largest_trained
    by_unit = (zero >= 2) & (dp[:, None] > 1) & (offload is None and not framework.updates_unused)
    buffers = _communication(elements + bucketed, gathered, framework, zero, dp[:, None])
    buffers = np.where(by_unit, 0.0, buffers)
    several = (num_microbatches > 1)[:, None]
    own = stored[1] * framework.parameter_bytes if keeps_own_shares(framework) else 0.0
    standing = np.where(
        zero == 3,
        np.where(several, gradients, 0.0),
        own + np.where(several, trained[0] * framework.gradient_bytes, 0.0),
    )
    whole = UnitBuffers.of(
        loose_elements=loose,
        block_elements=block,
        pair_elements=pair,
        pair_trained=pair_trained,
        framework=framework,
        gathers=zero == 3,
    )
    return Levels(
        lasting=parameters + gradients + state + buffers,
        gradients=gradients,
        appear=~stay & (num_microbatches == 1) & (zero_stage < 2) & (offload is None),
        update=update,
        resting=np.where(by_unit, standing, gradients),
        at_peak=np.where(by_unit, whole.at_peak, 0.0),
        in_backward=np.where(by_unit, whole.in_backward, 0.0),
        fixed=framework.workspace_bytes + framework.memory_overhead_bytes,
    )


def peak_bytes(
    levels: Levels, passing: Callable[[bool], FloatArray], kept: Callable[[], FloatArray], of: IntArray
) -> FloatArray:
    """Bytes on the fullest rank, shape [n]. `passing`: whether gradients appear -> [c, p] as
    `StageBytes.passing` says, `kept`: what is held between passes, for the `of`-th of their c each."""
    highest = passing(False)[of] + levels.resting + levels.at_peak
    if levels.in_backward.any():
        between = kept()[of] + levels.resting + levels.in_backward
        highest = np.where(levels.in_backward > 0.0, np.maximum(highest, between), highest)
    if levels.appear.any():
        highest = np.where(levels.appear[:, None], passing(True)[of], highest)
    above = np.maximum(0.0, np.maximum(highest, levels.update) - levels.gradients)
    return np.asarray((levels.lasting + above).max(axis=1) + levels.fixed)


def _communication(
    elements: FloatArray, gathered: FloatArray, framework: FrameworkProfile, zero: IntArray, dp: IntArray
) -> FloatArray:
    """Buffers of data parallelism, as `predict.memory.communication_bytes`."""
    copied = elements * framework.gradient_comm_bytes
    if framework.gradient_as_bucket_view:
        buckets: FloatArray = np.zeros_like(copied)
    else:
        buckets = np.where(zero < 2, copied, np.minimum(copied, 2.0 * framework.bucket_bytes))
    return np.where(dp == 1, 0.0, np.where(zero == 3, gathered, buckets))
