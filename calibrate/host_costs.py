"""Host costs and overlap of a profile, from differences of the raw timings of `benchmarks.host`.

A small piece's difference gives what a wrapper costs per piece; a wide one's, on the wall clock, what a
wrapper adds to the layer and the transfers that are measured alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from calibrate.benchmarks.chains import BLOCKS, PIECES
from calibrate.benchmarks.host import (
    DEFERRED_BYTES,
    PARAMETERS_PER_BLOCK,
    UPDATED,
    WIDE_BYTES,
    WIDE_OUTPUT_BYTES,
)
from calibrate.journal import Sample
from calibrate.timing import THREAD_TIME
from costmodel.errors import UsageError
from costmodel.hardware.schema import HostValue, Overlap

__all__ = ["CONTENTION", "OVERLAP", "host_costs", "overlap_of", "raw_cases"]

OVERLAP = "overlap"
CONTENTION = "contention_s_per_byte"
"""Names of constants that are no host cost."""
_SOURCE = "own measurement"
_OPS_PER_BLOCK = 7
"""Aten operators of a block of the training chain, both directions; see `benchmarks.host`."""
_DIFFERENTIATED_PER_BLOCK = 2
_FORWARD_PER_BLOCK = 3
_BOTH_DIRECTIONS = 2
_OVERLAP_CASES = ("compute_alone", "compute_beside", "comm_alone", "comm_beside")
_SMALL_BYTES = 64 << 10
"""Transfers up to this size take their latency."""
_MOST_SLOWDOWN = 10.0
"""A computation that hardly moves while communication runs: the two take the same core in turn."""
_COPIES_PER_GRADIENT = 2
"""DDP copies a gradient into its bucket and out of it."""


_TRAINING = ("training_chain", "plain_chain")
_RAW_HOST: dict[str, tuple[str, ...]] = {
    "dispatch_s": ("op",),
    "host_view_s": ("view",),
    "autograd_s": _TRAINING,
    "module_s": ("forward_chain", "plain_forward"),
    "kernel_launch_s": ("kernel",),
    "dtensor_dispatch_s": ("dtensor_chain", "training_chain"),
    "dtensor_update_s": ("dtensor_update", "plain_update"),
    "step_s": ("backward_step", "op", *_TRAINING),
    "dtensor_module_s": ("wide_tp", "wide_blocks", "tp", "layers"),
    "ddp_bucket_s": ("ddp", "blocks"),
    "fsdp_unit_s": ("fsdp", "blocks"),
    "fsdp_copy_s_per_byte": ("wide_fsdp", "wide_blocks", "fsdp", "blocks"),
    "pipeline_action_s": ("pipeline", "blocks"),
    "pipeline_listed_action_s": ("listed", "blocks"),
    "split_parameter_s": ("apart",),
    "split_s_per_byte": ("middle_apart", "apart"),
    OVERLAP: ("wide_ddp", "wide_blocks", "ddp", "blocks"),
}
"""Constant -> the host cases its difference is taken of; those of several pieces by their stem."""


def raw_cases(name: str) -> tuple[tuple[str, str], ...]:
    """(benchmark, variant) of the cases behind a constant. UsageError on one that is not measured so.

    Transfers of the wide layers' sizes are not among them: those of the samples there are count.
    """
    if name not in _RAW_HOST:
        raise UsageError(f"no constant {name!r}; there are: {', '.join(_RAW_HOST)}")
    found = [
        ("host", variant) for stem in _RAW_HOST[name] for variant in (stem, *(f"{stem}_{n}" for n in PIECES))
    ]
    if name == OVERLAP:
        found += [("overlap", v) for v in _OVERLAP_CASES] + [("memory", "copy")]
    return tuple(found)


def host_costs(samples: Sequence[Sample]) -> dict[str, HostValue]:
    """Host costs by name; a difference below zero is noise and counts 0, one not measured is left out."""
    raw = _Raw(samples)
    few, many = PIECES
    block_s = raw.time_s("training_chain") / BLOCKS
    autograd_s = (block_s - raw.time_s("plain_chain") / BLOCKS) / _DIFFERENTIATED_PER_BLOCK
    fsdp_unit_s = (
        raw.piece_s("fsdp", "blocks") - 2 * raw.latency_s("all_gather") - raw.latency_s("reduce_scatter")
    )
    fsdp_moved_s = 2 * raw.transfer_s("all_gather", WIDE_BYTES) + raw.transfer_s("reduce_scatter", WIDE_BYTES)
    found = {
        "dispatch_s": (raw.time_s("op"), "op"),
        "host_view_s": (raw.time_s("view"), "view"),
        "autograd_s": (autograd_s, "training_chain"),
        "module_s": (
            (raw.time_s("forward_chain") - raw.time_s("plain_forward")) / (BLOCKS * _FORWARD_PER_BLOCK),
            "forward_chain",
        ),
        "kernel_launch_s": (raw.time_s("kernel"), "kernel"),
        "dtensor_dispatch_s": (
            (raw.time_s("dtensor_chain") - raw.time_s("training_chain")) / (BLOCKS * _OPS_PER_BLOCK),
            "dtensor_chain",
        ),
        "dtensor_module_s": raw.tensor_parallel(),
        # the optimizer's operators on DTensors, per parameter tensor
        "dtensor_update_s": (
            (raw.time_s("dtensor_update") - raw.time_s("plain_update")) / UPDATED,
            "dtensor_update",
        ),
        "ddp_bucket_s": (raw.piece_s("ddp", "blocks") - raw.latency_s("all_reduce"), f"ddp_{many}"),
        "fsdp_unit_s": (fsdp_unit_s, f"fsdp_{many}"),
        "fsdp_copy_s_per_byte": (
            (raw.piece_s("wide_fsdp", "wide_blocks") - fsdp_moved_s - fsdp_unit_s) / WIDE_BYTES,
            f"wide_fsdp_{many}",
        ),
        "pipeline_action_s": (raw.piece_s("pipeline", "blocks") / _BOTH_DIRECTIONS, f"pipeline_{many}"),
        # what taking weight gradients apart costs: per parameter tensor, and per byte that they are made of
        "split_parameter_s": (raw.more_s("apart") / PARAMETERS_PER_BLOCK, f"apart_{many}"),
        "split_s_per_byte": (
            (raw.time_s(f"middle_apart_{few}") - raw.time_s(f"apart_{few}")) / (few * DEFERRED_BYTES),
            f"middle_apart_{few}",
        ),
        "pipeline_listed_action_s": (raw.piece_s("listed", "blocks") / _BOTH_DIRECTIONS, f"listed_{many}"),
        # a step of one linear layer: three products, and what a step does once
        "step_s": (raw.time_s("backward_step") - 3 * raw.time_s("op") - autograd_s, "backward_step"),
    }
    return {
        name: HostValue(value_s=max(0.0, value), spread=raw.spread(of), source=_SOURCE)
        for name, (value, of) in found.items()
        if math.isfinite(value)
    }


def overlap_of(samples: Sequence[Sample]) -> Overlap:
    """Slow-down of communication beside computation, and of computation beside communication.

    The second is such that DDP's wide layers come out as measured: what a bucket adds to a layer while its
    all-reduce (d alone, s_m * d beside computation) is covered is s_m * d * (1 - 1 / s_c). Where DDP was not
    measured it is the ratio of GEMMs beside all-reduces to GEMMs alone.
    """
    times = {s.variant: s.time_s for s in samples if s.kind == "overlap"}
    if any(name not in times for name in _OVERLAP_CASES):
        return Overlap()
    comm = max(1.0, times["comm_beside"] / times["comm_alone"])
    compute = max(1.0, times["compute_beside"] / times["compute_alone"])
    raw = _Raw(samples)
    bucket_s = max(0.0, raw.piece_s("ddp", "blocks"))
    added_s = (
        raw.piece_s("wide_ddp", "wide_blocks") - bucket_s - _COPIES_PER_GRADIENT * raw.copy_s(WIDE_BYTES)
    )
    hidden = added_s / (comm * raw.transfer_s("all_reduce", WIDE_BYTES))
    if math.isfinite(hidden):
        compute = 1.0 / (1.0 - min(max(hidden, 0.0), 1.0 - 1.0 / _MOST_SLOWDOWN))
    return Overlap(compute_slowdown=compute, comm_slowdown=comm, source=_SOURCE)


class _Raw:
    """Times of the host cases by name, and of the transfers beside them; NaN for what was not measured."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples
        self._host = {s.variant: s for s in samples if s.kind == "host"}

    def time_s(self, name: str) -> float:
        """A case's seconds."""
        return float(self._host[name].time_s) if name in self._host else math.nan

    def spread(self, name: str) -> float:
        """A case's spread."""
        return self._host[name].spread

    def piece_s(self, wrapped: str, plain: str) -> float:
        """What one more piece takes beyond the plain one."""
        return self.more_s(wrapped) - self.more_s(plain)

    def latency_s(self, kind: str) -> float:
        """A small transfer, over several sizes; 0 where the pieces' own clock does not see it."""
        if any(s.timing == THREAD_TIME for s in self._host.values()):
            return 0.0
        small = [s.time_s for s in self._samples if s.kind == kind and s.dims["size_bytes"] <= _SMALL_BYTES]
        return statistics.median(small) if small else 0.0

    def transfer_s(self, kind: str, size_bytes: int) -> float:
        """A transfer between all ranks, between the measured sizes on a straight line in logarithms."""
        points: dict[int, list[float]] = {}
        for s in self._samples:
            if s.kind == kind:
                points.setdefault(s.dims["size_bytes"], []).append(s.time_s)
        below = max((x for x in points if x <= size_bytes), default=None)
        above = min((x for x in points if x >= size_bytes), default=None)
        if below is None or above is None:
            return math.nan
        low, high = max(points[below]), max(points[above])
        share = math.log(size_bytes / below) / math.log(above / below) if above > below else 0.0
        return float(low * (high / low) ** share)

    def copy_s(self, size_bytes: int) -> float:
        """Copying so many bytes on the device; 0 where it was not measured."""
        rates = [
            s.dims["bytes"] / s.time_s for s in self._samples if s.kind == "memory" and s.variant == "copy"
        ]
        return 2.0 * size_bytes / max(rates) if rates else 0.0

    def tensor_parallel(self) -> tuple[float, str]:
        """One layer split by torch's styles, both directions, less the layer and its all-reduce; its case.

        On wide layers half of the computation is left; a pair reduces its output and its input's gradient.
        """
        many = PIECES[1]
        if f"wide_tp_{many}" in self._host:
            layer_s = self.more_s("wide_tp") - 0.5 * self.more_s("wide_blocks")
            return layer_s - self.transfer_s("all_reduce", WIDE_OUTPUT_BYTES), f"wide_tp_{many}"
        return 0.5 * self.piece_s("tp", "layers") - self.latency_s("all_reduce"), f"tp_{many}"

    def more_s(self, name: str) -> float:
        """What one more piece takes."""
        few, many = PIECES
        return (self.time_s(f"{name}_{many}") - self.time_s(f"{name}_{few}")) / (many - few)
