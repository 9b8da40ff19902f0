"""Printable pipeline actions: `2F0` = stage 2, forward, micro-batch 0.

F forward, B full backward, I gradient of the inputs, W gradient of the weights.

>>> Step.parse("2F0")
Step(stage=2, kind='F', micro_batch=0)
>>> str(Step(stage=1, kind="W", micro_batch=3))
'1W3'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.errors import PlanError
from costmodel.registry import Registry

__all__ = [
    "SCHEDULES",
    "Builder",
    "Order",
    "Step",
    "parse_csv",
    "register_schedule",
    "schedule",
    "stage_rank",
]


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One action of a rank."""

    stage: int
    kind: str
    micro_batch: int

    def __post_init__(self) -> None:
        if self.kind not in ("F", "B", "I", "W"):
            raise PlanError(f"action kind {self.kind!r}: must be F, B, I or W")

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"

    @classmethod
    def parse(cls, text: str) -> Step:
        """Read the printed form. Raises PlanError."""
        match = re.fullmatch(r"\s*(\d+)(F|B|I|W)(\d+)\s*", text)
        if match is None:
            raise PlanError(f"action {text!r}: must look like 2F0 (stage, F/B/I/W, micro-batch)")
        return cls(int(match[1]), match[2], int(match[3]))


Order = list[list[Step]]
"""Actions of each rank, in order."""

Builder = Callable[[int, int, int], Order]

SCHEDULES: Registry[Builder] = Registry("schedule")


def register_schedule(*names: str) -> Callable[[Builder], Builder]:
    """File a builder (n_ranks, chunks per rank, num_microbatches) -> Order under its names."""
    return SCHEDULES.register(*names)


def schedule(name: str, n_ranks: int, n_chunks: int, num_microbatches: int) -> Order:
    """The actions of a named schedule. Raises PlanError where it cannot take these numbers."""
    if min(n_ranks, n_chunks, num_microbatches) < 1:
        raise PlanError(
            f"schedule {name}: pp={n_ranks}, vpp={n_chunks}, micro-batches={num_microbatches}: not positive"
        )
    return SCHEDULES[name](n_ranks, n_chunks, num_microbatches)


def stage_rank(stage: int, n_ranks: int) -> int:
    """Rank of a virtual stage where chunks loop over the ranks (interleaved, looped)."""
    return stage % n_ranks


def parse_csv(text: str) -> Order:
    """A schedule from torch's action CSV: one row per rank; compute actions only, empty cells left out."""
    order: Order = []
    for line in text.strip().splitlines():
        cells: Sequence[str] = [cell.strip() for cell in line.split(",")]
        order.append([Step.parse(cell) for cell in cells if re.fullmatch(r"\d+[FBIW]\d+", cell)])
    return order
