"""What is kept of one rank's trace. Times are seconds since the trace's first event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Event", "Kind", "RankTrace", "is_communication", "is_host_copy", "is_point_to_point"]


class Kind(StrEnum):
    """What an event is."""

    OPERATOR = "operator"
    """A host call that the profiler records (aten::addmm, an autograd node, c10d::allreduce_)."""
    RANGE = "range"
    """A user annotation: record_function, ProfilerStep#3, Optimizer.step#AdamW.step."""
    MODULE = "module"
    """A call of a module, by path (`foreshard::module PATH`) or by class (`nn.Module: Linear_0`)."""
    LAUNCH = "launch"
    """A call of the CUDA runtime or driver."""
    COLLECTIVE = "collective"
    """A collective or point-to-point in flight, waiting included; overlaps what else its thread does."""
    KERNEL = "kernel"
    COPY = "copy"
    """A copy or fill on the device."""


_COMMUNICATION = (
    "nccl",
    "gloo:",
    "c10d::",
    "_c10d_functional::",
    "fsdp::",
    "FSDP::",
    "torch::distributed::",
    "torch.distributed.",
    "record_param_comms",
    "rccl",
)
"""How the names of communication begin, on host and device (nccl:all_reduce, ncclDevKernel_AllReduce_...)."""
_POINT_TO_POINT = ("send", "recv")
_HOST_COPIES = ("Memcpy HtoD", "Memcpy DtoH")


def is_communication(name: str) -> bool:
    """Whether an operator, range or kernel of this name communicates (or packs what is communicated)."""
    return name.startswith(_COMMUNICATION)


def is_host_copy(event: Event) -> bool:
    """Whether device work moves data to or from the host: no kernel of a module, whoever asked for it."""
    return event.kind is Kind.COPY and event.name.startswith(_HOST_COPIES)


def is_point_to_point(name: str) -> bool:
    """Whether a communication of this name is between two ranks: gloo:recv, ncclDevKernel_SendRecv."""
    return any(word in name.lower() for word in _POINT_TO_POINT)


@dataclass(frozen=True, slots=True)
class Event:
    """One timed event. `thread`: of the host, or the stream of a device."""

    kind: Kind
    name: str
    thread: int
    start_s: float
    end_s: float
    sequence: int | None = None
    """Autograd's number: of a forward operator the node it makes, of a backward one its own node."""
    forward_thread: int | None = None
    """Profiler's number of the forward thread; positive on backward events only."""
    correlation: int | None = None
    """Joins a launch and the device work it started."""
    external: int | None = None
    """Of an operator its own number, of device work that of the operator that started it."""
    shapes: tuple[Any, ...] = ()

    @property
    def duration_s(self) -> float:
        """Length of the event."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrace:
    """One file: the trace of one rank.

    `host` holds everything that happens on host threads but communication in flight; `device` kernels and
    copies; `in_flight` collectives as the host records them (gloo:all_reduce). `links`: position of a
    backward event in `host` -> position of its forward operator, as the profiler drew it.
    """

    path: str
    rank: int
    world_size: int | None
    host: tuple[Event, ...]
    device: tuple[Event, ...]
    in_flight: tuple[Event, ...]
    links: Mapping[int, int]
    run: Mapping[str, Any] | None = None
    """The run that recorded it (`RunSpec.to_dict`, `step_time_s`), where foreshard did."""
    notes: tuple[str, ...] = field(default=())
    """What the file lacks or what of it could not be used."""

    @property
    def on_device(self) -> bool:
        """Whether the step ran on an accelerator: kernels were recorded."""
        return bool(self.device)
