"""Offload in closed forms: what the host's work adds to a step at least, and what it leaves on the device.

The words are those of `strategies.offload`; `cotrain`, whose split is found by trying steps, has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodel.estimate import FloatArray, IntArray
from costmodel.step import Offload
from costmodel.strategies.offload import host_bytes

__all__ = ["SEARCHABLE", "HostWork", "host_need", "host_work", "two_largest"]

SEARCHABLE = ("zero-offload", "zero-offload-delayed", "zero-infinity", "zero-infinity-nvme", "cpu-update")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """Seconds of each rank, shape [n, p]."""

    after_s: FloatArray
    """Follows the last gradient."""
    at_least_s: FloatArray
    """No step of the rank is shorter, whatever else it does."""


def host_work(
    offload: Offload,
    elements: FloatArray,
    *,
    frozen: FloatArray,
    parameter_bytes: float,
    shard: IntArray,
    streamed_by: IntArray,
    num_microbatches: IntArray,
) -> HostWork:
    """Work of the host and its link for stages of `elements` parameters [n, v, p] and `frozen` ones beside.

    A host that updates when all gradients are there works after them; one that updates a step late, or unit
    by unit beside the backward, may hide all of it but is busy as long. Streamed parameters come in once for
    every forward and every backward, a part each for `streamed_by` ranks that gather them.
    """
    whole = (elements + frozen).sum(axis=1) * parameter_bytes
    share = elements.sum(axis=1) * parameter_bytes / shard[:, None]
    update_s = share / offload.host_update_bytes_per_s
    state_s = 0.0 * share
    if offload.storage_bytes_per_s:
        state_s = share * offload.state_per_parameter_byte / offload.storage_bytes_per_s
    streamed_s = 0.0 * share
    if offload.stream_weights:
        passes = 2.0 * num_microbatches[:, None]
        streamed_s = passes * whole / streamed_by[:, None] / offload.h2d_bytes_per_s
    beside = offload.delayed_update or offload.eager_update
    return HostWork(
        after_s=0.0 * share if beside else update_s,
        at_least_s=np.maximum(np.maximum(update_s, state_s), streamed_s),
    )


def host_need(
    offload: Offload,
    of_ranks: FloatArray,
    *,
    parameter_bytes: float,
    zero: IntArray,
    shard: IntArray,
    ep: IntArray,
) -> FloatArray:
    """Bytes that the host holds for the rank which offloads most, shape [n]; `of_ranks` as
    `closed_form.memory.levels_of` takes it."""
    elements, experts, stored, stored_experts = of_ranks[:4]
    ranks, among = shard[:, None], np.maximum(1, shard // ep)[:, None]
    updated = (elements - experts) / ranks + experts / among
    own = np.where((zero == 3)[:, None], (stored - stored_experts) / ranks + stored_experts / among, stored)
    held = host_bytes(offload, updated_bytes=updated * parameter_bytes, own_bytes=own * parameter_bytes)
    return np.asarray(held.max(axis=1))


def two_largest(largest: FloatArray, second: FloatArray) -> FloatArray:
    """Elements of a rank's two largest units, shape [n, p], from those of its chunks [n, v, p]."""
    both = np.concatenate([largest, second], axis=1)
    return np.asarray(np.sort(both, axis=1)[:, -2:, :].sum(axis=1))
