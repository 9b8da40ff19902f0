"""Unequal devices that share a batch: a CPU beside GPUs (coarse-grained CPU+GPU training), or several kinds
of device (HyScale, IPDPS 2023).

Every device trains its own share of the global batch on a replica of its own; gradients are reduced between
all of them. A step ends with the slowest:

    step  = max over devices of t_i(b_i) + reduction,   sum of b_i = global batch
    b_i   the largest shares with t_i(b_i) <= T, for the least T that holds the batch

Inputs are read from host memory and copied over the device's link. With a two-stage prefetch both run beside
the step (step = the longest of the three), without one they come before it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, UsageError
from costmodel.plan import Plan

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster

__all__ = ["DeviceGroup", "DeviceShare", "UnevenPrediction", "balanced_shares", "predict_uneven"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceGroup:
    """`count` devices of one kind, each with a forecaster of the model on it."""

    forecaster: Forecaster
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceShare:
    """What each device of a group does: samples of a step, seconds on them, input seconds, peak memory."""

    hardware: str
    count: int
    samples: tuple[int, ...]
    step_s: float
    load_s: float
    peak_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenPrediction:
    """One step of all devices together."""

    global_batch_size: int
    step_time_s: float
    samples_per_s: float
    reduction_s: float
    prefetch: bool
    shares: tuple[DeviceShare, ...]
    alone_s: tuple[tuple[str, float], ...]
    """Step of each group without the others, all of the batch on it; missing where that does not fit."""
    warnings: tuple[str, ...] = ()
    """Notes of the traces."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def balanced_shares(step_s: Sequence[Callable[[int], float]], total: int) -> list[int]:
    """Shares b_i >= 0 with sum `total` and the least maximum of step_s[i](b_i).

    `step_s`: samples -> seconds of each device, never falling; a device without samples costs nothing.
    Greedy: the next sample goes where it ends first, which is optimal for never-falling times.
    """
    shares = [0] * len(step_s)
    heap = [(step(1), i) for i, step in enumerate(step_s)]
    heapq.heapify(heap)
    for _ in range(total):
        ends, i = heapq.heappop(heap)
        if math.isinf(ends):
            raise InfeasibleError(f"the devices' memory holds {sum(shares)} of {total} samples; add devices")
        shares[i] += 1
        heapq.heappush(heap, (step_s[i](shares[i] + 1), i))
    return shares


class _Replica:
    """One device: seconds of a step on b samples, priced at a few sizes and between them on a line."""

    def __init__(self, forecaster: Forecaster, most: int, prefetch: bool) -> None:
        self.forecaster = forecaster
        self._prefetch = prefetch
        self._sizes = sorted({*(2**k for k in range(most.bit_length())), most})
        self._priced: dict[int, tuple[float, int]] = {}

    def step(self, size: int) -> tuple[float, int]:
        """(seconds, peak bytes) of exactly so many samples."""
        if size not in self._priced:
            plan = Plan(micro_batch_size=size)
            prediction = self.forecaster.forecast(plan).prediction
            seconds = prediction.step_time_s if prediction.fits else math.inf
            self._priced[size] = (seconds, prediction.peak_memory_bytes)
        return self._priced[size]

    def load_s(self, size: int) -> float:
        """Inputs of so many samples: read from host memory, then copied to the device."""
        graph, host = self.forecaster.graph(1), self.forecaster.host
        size_bytes = float(size * graph.input_bytes)
        seconds = size_bytes / host.memory_bytes_per_s
        link = self.forecaster.profile.device.host_bytes_per_s
        if link and self.forecaster.profile.device.kind != "cpu":
            seconds += size_bytes / (link * host.link_efficiency)
        return seconds

    def end_s(self, size: int) -> float:
        """When a device with so many samples is done."""
        if size > self._sizes[-1]:
            return math.inf
        above = next(s for s in self._sizes if s >= size)
        below = max(s for s in self._sizes if s <= size)
        high, low = self.step(above)[0], self.step(below)[0]
        if math.isinf(high) and above != size:
            high = self.step(size)[0] if math.isfinite(low) else math.inf
            above = size
        seconds = high if above == below else low + (high - low) * (size - below) / (above - below)
        return max(seconds, self.load_s(size)) if self._prefetch else seconds + self.load_s(size)


def _reduction_s(groups: Sequence[DeviceGroup], n: int) -> float:
    """Ring all-reduce of the gradients over the slowest link between any two of the devices.

    2 (n - 1) / n x bytes / link; a CPU's link is its memory.
    """
    if n == 1:
        return 0.0
    first = groups[0].forecaster
    size = first.graph(1).n_parameters * first.framework.gradient_comm_bytes
    rates = []
    for group in groups:
        device, host = group.forecaster.profile.device, group.forecaster.host
        if device.kind == "cpu":
            rates.append(device.memory_bytes_per_s)
        elif device.host_bytes_per_s:
            rates.append(device.host_bytes_per_s * host.link_efficiency)
        else:
            raise UsageError(f"{device.name} has no link to a host, so it cannot share a batch with others")
    return 2.0 * (n - 1) / n * size / min(rates)


def predict_uneven(
    groups: Sequence[DeviceGroup], global_batch_size: int, *, prefetch: bool = True
) -> UnevenPrediction:
    """The split of the batch with the shortest step, and that step.

    Raises UsageError where there is nothing to share, InfeasibleError where the batch fits nowhere.
    """
    if not groups or min(group.count for group in groups) < 1 or global_batch_size < 1:
        raise UsageError("give at least one device and a batch of at least 1")
    replicas = [_Replica(g.forecaster, global_batch_size, prefetch) for g in groups]
    owners = [i for i, group in enumerate(groups) for _ in range(group.count)]
    shares = balanced_shares([replicas[i].end_s for i in owners], global_batch_size)
    used = sum(b > 0 for b in shares)
    reduction = _reduction_s(groups, used)
    found = []
    for i, group in enumerate(groups):
        mine = tuple(b for b, owner in zip(shares, owners, strict=True) if owner == i)
        most = max(mine)
        step_s, peak = replicas[i].step(most) if most else (0.0, 0)
        found.append(
            DeviceShare(
                hardware=group.forecaster.profile.name,
                count=group.count,
                samples=mine,
                step_s=step_s,
                load_s=replicas[i].load_s(most),
                peak_memory_bytes=peak,
            )
        )
    ends = [replicas[i].end_s(b) for i, b in zip(owners, shares, strict=True) if b]
    step_time_s = max(ends) + reduction
    alone = []
    for group, replica in zip(groups, replicas, strict=True):
        each = math.ceil(global_batch_size / group.count)
        seconds = replica.end_s(each) + _reduction_s([group], group.count)
        if math.isfinite(seconds):
            alone.append((group.forecaster.profile.name, seconds))
    return UnevenPrediction(
        global_batch_size=global_batch_size,
        step_time_s=step_time_s,
        samples_per_s=global_batch_size / step_time_s,
        reduction_s=reduction,
        prefetch=prefetch,
        shares=tuple(found),
        alone_s=tuple(alone),
        warnings=tuple(dict.fromkeys(note for group in groups for note in group.forecaster.notes)),
    )
