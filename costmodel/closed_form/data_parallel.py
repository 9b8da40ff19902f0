"""What data parallelism and the optimizer add to a step, for many plans at once.

`tails`: what each rank does after its last backward: gradients that are still being reduced, the update, and
ZeRO's gather of updated parameters. `sharded_step`: ZeRO-3 without a pipeline, unit by unit as FSDP runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.configs import Configs, alike, distinct
from costmodel.closed_form.units import UnitTable
from costmodel.estimate import FloatArray, IntArray
from costmodel.hardware.collectives import bus_factor
from costmodel.hardware.overlap import share_taken
from costmodel.hardware.pricing import operator_times
from costmodel.predict.optimizer_costs import optimizer_variant
from costmodel.predict.pricing import host_cost_s

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster

__all__ = ["Tails", "sharded_step", "tails"]

_PARAMETERS = ("elements", "expert_elements", "copied_elements", "n_tensors", "unused_elements")
"""Stage columns that reductions and updates depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """Seconds after a rank's last backward, shape [n, p]: at least, and about; `update_s` is in both."""

    bound_s: FloatArray
    estimate_s: FloatArray
    update_s: FloatArray
    before_s: FloatArray
    """Reductions of other chunks on the rank's own stream, some time before its last backward."""


def tails(
    forecaster: Forecaster, configs: Configs, stage: dict[str, FloatArray], backward_s: FloatArray
) -> Tails:
    """Stage arrays have shape [t, v, p]; `backward_s` [n, p]: of each rank's first chunk.

    Gradients go out in buckets as they are made. One bucket cannot start before the last gradient is there;
    of several, all but the last may hide behind the backward of the last micro-batch. Configs that divide the
    same parameters alike are priced once.
    """
    framework = forecaster.framework
    parameters = np.stack([stage[name] for name in _PARAMETERS], axis=1)
    first, which = distinct(alike(parameters)[1][configs.table], configs.zero, configs.group)
    configs = configs.take(first)
    stage = {name: stage[name][configs.table] for name in _PARAMETERS}
    update = _update_s(forecaster, configs, stage).sum(axis=1)
    plain = ((configs.replicas > 1) & ~((configs.zero == 3) & (configs.dp > 1)))[:, None, None]
    experts = stage["expert_elements"]
    told = np.where((configs.zero < 2)[:, None, None], stage["unused_elements"], 0.0)
    parts = [
        _buckets(forecaster, configs, np.where(plain, elements, 0.0), axis, ranks)
        for elements, axis, ranks in (
            (stage["elements"] - experts + told, "dp", configs.replicas),
            (experts, "expert_dp", configs.expert_replicas),
        )
        if axis == "dp" or elements.any()
    ]
    n_buckets, whole, all_of_them, gather, moved = (sum(found) for found in zip(*parts, strict=True))
    if framework.overlap_dp:
        n_last, whole_last, all_last = (values[which, 0] for values in (n_buckets, whole, all_of_them))
        one = n_last <= 1.0
        least = np.where(one, whole_last, np.maximum(0.0, whole_last - backward_s))
        n_last = np.maximum(1.0, n_last)
        hidden = backward_s * (1.0 - 1.0 / n_last)
        about = np.where(one, whole_last, np.maximum(0.5 * all_last / n_last, all_last - hidden))
        about = about + _slowed_s(forecaster, moved[which, 0], all_last, about)
        before = np.zeros_like(least)
    else:
        least, about = whole[which, 0], all_of_them[which, 0]
        before = whole[:, 1:, :].sum(axis=1)[which]
    gather = gather.sum(axis=1)
    if framework.overlap_dp and framework.overlap_gather:
        gather = np.zeros_like(gather)  # beside the next forward
    tied = _tied_s(forecaster, configs, stage)
    update, gather, tied = (values[which] for values in (update, gather, tied))
    return Tails(
        bound_s=least + update + gather + tied,
        estimate_s=about + update + gather + tied,
        update_s=update,
        before_s=before,
    )


def _moved(op: str, size_bytes: FloatArray, ranks: IntArray) -> FloatArray:
    """Bytes that each rank moves in collectives of these sizes [n, ...] among `ranks` [n]."""
    factors = np.array([bus_factor(op, int(n)) if n > 1 else 0.0 for n in ranks])
    return np.asarray(size_bytes * factors.reshape(-1, *[1] * (size_bytes.ndim - 1)))


def _slowed_s(
    forecaster: Forecaster, moved_bytes: FloatArray, seconds: FloatArray, exposed_s: FloatArray
) -> FloatArray:
    """What collectives that take `seconds` cost the computation beside which they are not exposed."""
    return np.asarray(
        share_taken(forecaster.profile, moved_bytes, seconds) * np.maximum(0.0, seconds - exposed_s)
    )


def _buckets(
    forecaster: Forecaster, configs: Configs, elements: FloatArray, axis: str, ranks: IntArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """(buckets, seconds of reducing all in one, of reducing each, of gathering what was updated, bytes that
    reducing moves) of stages' parameters [n, v, p], of which so many `ranks` of an axis have the same."""
    framework = forecaster.framework
    elements = np.where((ranks > 1)[:, None, None], elements, 0.0)
    size = elements * framework.gradient_comm_bytes
    smallest = framework.bucket_bytes_per_rank * ranks
    cap = np.maximum(framework.bucket_bytes, smallest)[:, None, None].astype(np.float64)
    first_cap = np.maximum(framework.first_bucket_bytes, smallest)[:, None, None].astype(np.float64)
    n_buckets = np.where(size < first_cap, 1.0, 1.0 + np.maximum(1.0, np.round((size - first_cap) / cap)))
    scattered = (configs.zero > 0)[:, None, None]
    whole = _reduce_s(forecaster, configs, size, scattered, axis)
    each = _reduce_s(forecaster, configs, size / n_buckets, scattered, axis)
    updated = np.where(scattered, elements * framework.parameter_comm_bytes, 0.0)
    gather = configs.collective_s(forecaster, "all_gather", updated, axis)
    moved = np.where(scattered, _moved("reduce_scatter", size, ranks), _moved("all_reduce", size, ranks))
    return np.where(size > 0, n_buckets, 0.0), whole, n_buckets * each, gather, moved


def _reduce_s(
    forecaster: Forecaster, configs: Configs, size_bytes: FloatArray, scattered: np.ndarray, axis: str
) -> FloatArray:
    whole = configs.collective_s(forecaster, "all_reduce", np.where(scattered, 0.0, size_bytes), axis)
    return whole + configs.collective_s(
        forecaster, "reduce_scatter", np.where(scattered, size_bytes, 0.0), axis
    )


def _tied_s(forecaster: Forecaster, configs: Configs, stage: dict[str, FloatArray]) -> FloatArray:
    """First and last stage adding up the gradient of what both hold; on rank 0, which ends last."""
    copied = stage["copied_elements"][:, -1, -1]
    pp = stage["copied_elements"].shape[2]
    found = np.zeros((len(copied), pp))
    if pp > 1:
        size = copied * forecaster.framework.gradient_comm_bytes
        found[:, 0] = configs.collective_s(forecaster, "p2p", size, "pp")
    return found


def _update_s(forecaster: Forecaster, configs: Configs, stage: dict[str, FloatArray]) -> FloatArray:
    """Optimizer's update of every stage's parameters, as `optimizer_costs.optimizer_s` prices tensors of one
    size; the host's part and matrix products of Muon left out."""
    traffic = optimizer_variant(forecaster.optimizer)
    elements = stage["elements"] + stage["copied_elements"]
    if not traffic.updates:
        return np.zeros_like(elements, dtype=np.float64)
    n = np.maximum(1.0, stage["n_tensors"])
    sharing = np.where(configs.zero > 0, configs.shard * (configs.replicas // configs.dp), 1)
    cols = np.maximum(1.0, elements / sharing[:, None, None] / n)
    first, which = alike(np.stack([n.ravel(), cols.ravel()], axis=1))
    rows, cols = n.ravel()[first], cols.ravel()[first]
    dims = {"rows": rows, "cols": cols, "bytes": 4.0 * rows * cols * (traffic.read + traffic.written)}
    times = operator_times(forecaster.profile, "optimizer", traffic.variant, "fp32", dims)
    alone: FloatArray = times.median_s[which].reshape(n.shape)
    return np.where(elements > 0, alone, 0.0)


def sharded_step(
    forecaster: Forecaster, configs: Configs, rows: IntArray, tables: list[UnitTable], ends: Tails
) -> tuple[FloatArray, FloatArray]:
    """Seconds of a step with parameters gathered unit by unit: at least, and about (with what collectives
    take from computation beside them), shape [len(rows)], `rows` out of the configs.

    A unit's gather starts when the one `ahead` before it starts, and the unit when its parameters are there;
    its gradients are reduced beside the next units.
    """
    used, where = np.unique(configs.key[rows], return_inverse=True)
    tabled = [tables[int(key)] for key in used]
    which = where.reshape(-1)

    def column(name: str) -> FloatArray:
        return np.stack([table[name] for table in tabled])[which]

    framework = forecaster.framework
    elements = column("elements")
    part = configs.take(rows)
    experts, frozen_experts = column("expert_elements"), column("frozen_expert_elements")
    stored = elements + column("frozen_elements") - experts - frozen_experts
    gather, reduce, copied, moved = (np.zeros_like(elements) for _ in range(4))
    for trained, held, prefix, among, divided in (
        (elements - experts, stored, "", part.shard * (part.replicas // part.dp), part.shard),
        (experts, experts + frozen_experts, "expert_", part.expert_shard, part.expert_shard),
    ):
        if not held.any():
            continue
        alone = (among == 1)[:, None]
        gathered = np.where(alone, 0.0, held * framework.parameter_comm_bytes)
        reduced = trained * framework.gradient_comm_bytes
        replicated = np.where((part.shard < part.dp)[:, None], reduced / divided[:, None], 0.0)
        scattered = np.where(alone, 0.0, reduced)
        gather = gather + part.collective_s(forecaster, "all_gather", gathered, f"{prefix}dp_shard")
        gather = gather + _copy_s(forecaster, gathered)
        reduce = reduce + part.collective_s(forecaster, "reduce_scatter", scattered, f"{prefix}dp_shard")
        reduce = reduce + part.collective_s(forecaster, "all_reduce", replicated, f"{prefix}dp_replicate")
        copied = copied + _copy_s(forecaster, scattered)
        moved = moved + _moved("reduce_scatter", 2.0 * gathered + scattered, among)
    host = 0.5 * host_cost_s(forecaster.profile, "fsdp_unit_s")
    forward = column("forward_s") + host
    backward = column("input_s") + column("weight_s") + host + copied
    cpu = forecaster.profile.device.kind == "cpu"
    m = part.num_microbatches.astype(np.float64)
    down, _ = _pass(forward, gather, None, ahead=0 if cpu else 1, overlap=framework.overlap_dp)
    again = np.where((m > 1.0)[:, None], column("accumulate_s"), 0.0)

    def back(seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _pass(
            seconds[:, ::-1],
            gather[:, ::-1],
            reduce[:, ::-1],
            ahead=1,
            overlap=framework.overlap_dp,
            overlap_reduce=framework.overlap_dp and not cpu,
        )

    first, _ = back(backward)
    later, left = back(backward + again)  # what adds gradients up hides beside collectives like the rest
    passes = m * down + first + (m - 1.0) * later
    least = np.asarray(passes + left + ends.update_s[rows].sum(axis=1))
    if not framework.overlap_dp:
        return least, least
    exchanged = m * (2.0 * gather + reduce).sum(axis=1)
    computed = m * (forward + backward).sum(axis=1) + (m - 1.0) * again.sum(axis=1)
    exposed = passes - computed + left
    return least, least + _slowed_s(forecaster, m * moved.sum(axis=1), exchanged, exposed)


def _pass(
    work: FloatArray,
    gather: FloatArray,
    reduce: FloatArray | None,
    *,
    ahead: int,
    overlap: bool,
    overlap_reduce: bool = True,
) -> tuple[FloatArray, FloatArray]:
    """(seconds of one pass over units [n, n_units], seconds that reductions go on after it)."""
    n, n_units = work.shape
    if not overlap:
        total = work.sum(axis=1) + gather.sum(axis=1)
        return total + (0.0 if reduce is None else reduce.sum(axis=1)), np.zeros(n)
    ended = np.zeros((n, n_units + 1))
    arrived, sent = np.zeros(n), np.zeros(n)
    for i in range(n_units):
        gate = max(0, i - ahead)
        arrived = np.where(gather[:, i] > 0, np.maximum(arrived, ended[:, gate]) + gather[:, i], arrived)
        waits = np.where(gather[:, i] > 0, arrived, 0.0)
        ended[:, i + 1] = np.maximum(ended[:, i], waits) + work[:, i]
        if reduce is not None:
            if overlap_reduce:
                sent = np.maximum(sent, ended[:, i + 1]) + reduce[:, i]
            else:
                ended[:, i + 1] += reduce[:, i]
    return ended[:, -1], np.maximum(0.0, sent - ended[:, -1]) if overlap_reduce else np.zeros(n)


def _copy_s(forecaster: Forecaster, size_bytes: FloatArray) -> FloatArray:
    """As `predict.data_parallel.copy_s` for an array of sizes; what FSDP's copies took where measured."""
    per_byte = host_cost_s(forecaster.profile, "fsdp_copy_s_per_byte") / 3.0
    if "fsdp_copy_s_per_byte" in forecaster.profile.host:
        return size_bytes * per_byte
    cols = np.maximum(size_bytes, 4.0).ravel() / 4.0
    dims = {"rows": np.ones_like(cols), "cols": cols, "bytes": 8.0 * cols}
    times = operator_times(forecaster.profile, "elementwise", "copy", "fp32", dims).median_s
    return np.where(size_bytes > 0, times.reshape(size_bytes.shape), 0.0)
