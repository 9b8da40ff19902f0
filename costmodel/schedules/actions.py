"""Printable pipeline actions: `2F0` = stage 2, forward, micro-batch 0.

F forward, B full backward, I gradient of the inputs, W gradient of the weights. Two actions that run as one,
each computing while the other communicates, print as `(0F3;7B1)OVERLAP_F_B`, as torch prints them.

>>> Step.parse("2F0")
Step(stage=2, kind='F', micro_batch=0, joined=False)
>>> str(Step(stage=1, kind="W", micro_batch=3))
'1W3'
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from costmodel.errors import PlanError
from costmodel.registry import Registry

__all__ = [
    "SCHEDULES",
    "Builder",
    "Order",
    "Schedule",
    "Step",
    "format_csv",
    "in_flight",
    "parse_csv",
    "register_schedule",
    "schedule",
]

_ACTION = re.compile(r"(\d+)(F|B|I|W)(\d+)")
_PAIR = re.compile(r"\(([^;()]*);([^;()]*)\)OVERLAP_F_B")
_NOT_COMPUTE = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD|SEND_F|RECV_F|SEND_B|RECV_B)\d*")


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One action of a rank. `joined`: it runs as one with the action that follows it on the rank."""

    stage: int
    kind: str
    micro_batch: int
    joined: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in "FBIW" or len(self.kind) != 1:
            raise PlanError(f"action kind {self.kind!r}: must be F, B, I or W")

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read the printed form. Raises PlanError."""
        match = _ACTION.fullmatch(text.strip())
        if match is None:
            raise PlanError(f"action {text!r}: must look like 2F0 (stage, F/B/I/W, micro-batch)")
        return cls(int(match[1]), match[2], int(match[3]))


Order = list[list[Step]]
"""Actions of each rank, in order."""

Builder = Callable[[int, int, int], Order]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A builder of orders and what the step has to know about it."""

    build: Builder
    copies: int = 1
    """Ranks that hold each stage and reduce its gradients between them (2 where two pipelines cross)."""
    update_every: str = "step"
    """"step": optimizer after the flush. "window": after every num_microbatches, no flush.
    "micro_batch": after each backward, no flush."""
    overlap_dp: bool | None = None
    """Whether gradients are reduced beside the backward; None = as the framework does."""
    overlap_p2p: bool | None = None
    """Whether transfers run beside the receiver's computation; None = as the framework does."""
    splits_backward: bool = False
    """Whether weight gradients are actions of their own."""
    swaps: bool = False
    """Whether stages live on the host and are copied in for as long as they compute."""

    def __call__(self, n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
        return self.build(n_ranks, n_chunks, num_microbatches)

    def weight_versions(self, stage: int, n_ranks: int) -> int:
        """Versions of a stage's weights held at once.

        PipeDream: one per micro-batch in flight, p - stage (SOSP 2019, section 3.3); PipeDream-2BW: two
        (arXiv 2006.09503, section 3.1); others one.
        """
        if self.update_every == "micro_batch":
            return max(1, n_ranks - stage)
        return 2 if self.update_every == "window" else 1


SCHEDULES: Registry[Schedule] = Registry("schedule")


def register_schedule(
    *names: str,
    copies: int = 1,
    update_every: str = "step",
    overlap_dp: bool | None = None,
    overlap_p2p: bool | None = None,
    splits_backward: bool = False,
    swaps: bool = False,
) -> Callable[[Builder], Builder]:
    """File a builder (n_ranks, chunks per rank, num_microbatches) -> Order under its names."""

    def decorate(build: Builder) -> Builder:
        SCHEDULES.register(*names)(
            Schedule(
                build=build,
                copies=copies,
                update_every=update_every,
                overlap_dp=overlap_dp,
                overlap_p2p=overlap_p2p,
                splits_backward=splits_backward,
                swaps=swaps,
            )
        )
        return build

    return decorate


def schedule(name: str, n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """The actions of a named schedule. Raises PlanError where it cannot take these numbers."""
    if min(n_ranks, n_chunks, num_microbatches) < 1:
        raise PlanError(
            f"schedule {name}: pp={n_ranks}, vpp={n_chunks}, micro-batches={num_microbatches}: "
            "each must be at least 1"
        )
    return SCHEDULES[name](n_ranks, n_chunks, num_microbatches)


@lru_cache(maxsize=512)
def in_flight(name: str, n_stages: int, num_microbatches: int) -> tuple[int, ...]:
    """Micro-batches whose activations each stage holds at once under a schedule with one stage per rank."""
    most = []
    for steps in schedule(name, n_stages, 1, num_microbatches):
        held = highest = 0
        for step in steps:
            held += {"F": 1, "B": -1, "W": -1}.get(step.kind, 0)
            highest = max(highest, held)
        most.append(highest)
    return tuple(most)


def format_csv(order: Order) -> str:
    """One line per rank, actions separated by commas; `parse_csv` and torch read it back."""
    lines = []
    for steps in order:
        cells: list[str] = []
        pending: Step | None = None
        for step in steps:
            if pending is not None:
                cells.append(f"({pending};{step})OVERLAP_F_B")
                pending = None
            elif step.joined:
                pending = step
            else:
                cells.append(str(step))
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def parse_csv(text: str) -> Order:
    """A schedule from torch's action CSV: one row per rank.

    Empty cells and the communication that torch lowers a schedule to (SEND_F, UNSHARD, ...) are left out:
    the step adds its own. Raises PlanError on anything else.
    """
    order: Order = []
    for line in text.strip().splitlines():
        steps: list[Step] = []
        for cell in (cell.strip() for cell in line.split(",")):
            pair = _PAIR.fullmatch(cell)
            if pair is not None:
                steps += [replace(Step.parse(pair[1]), joined=True), Step.parse(pair[2])]
            elif cell and cell != "None" and not _NOT_COMPUTE.fullmatch(cell):
                steps.append(Step.parse(cell))
        order.append(steps)
    return order
