"""The actions of a step as they are issued: helpers that know streams, kinds and what each rank did last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from costmodel.engine import Action
from costmodel.stage_costs import CostParts, StageCosts
from costmodel.step.options import Options

__all__ = ["ActionBuilder", "with_host"]


class ActionBuilder:
    """Collects actions; every method returns the position of what it added."""

    def __init__(self, stages: Sequence[StageCosts], options: Options) -> None:
        self.stages = stages
        self.options = options
        self.actions: list[Action] = []
        self.last_compute: dict[int, int] = {}
        """Newest action on each rank's compute stream."""
        self.open_data: defaultdict[int, dict[str, int]] = defaultdict(dict)
        """Newest data-parallel action per stream of each rank: what its optimizer waits for."""

    def add(self, action: Action) -> int:
        self.actions.append(action)
        return len(self.actions) - 1

    def compute(
        self,
        rank: int,
        name: str,
        kind: str,
        parts_s: Mapping[str, float],
        after: Iterable[int],
        *,
        holds_bytes: int = 0,
        link: str = "",
    ) -> int:
        """Work on the rank's compute stream."""
        seconds = sum(parts_s.values())
        index = self.add(
            Action(rank, "compute", seconds, name, tuple(after), kind, parts_s, link, holds_bytes)
        )
        self.last_compute[rank] = index
        return index

    def data(
        self,
        rank: int,
        name: str,
        kind: str,
        duration_s: float,
        after: Iterable[int],
        *,
        takes: float = 0.0,
    ) -> int:
        """A data-parallel collective; gathers and reductions have a stream each, as FSDP2 gives them."""
        options = self.options
        overlaps = options.overlap_dp and (kind != "reduce" or options.overlap_reduce)
        parts = {"dp_comm": duration_s}
        link = f"network {rank}" if options.share_network else ""
        if not overlaps:
            return self.compute(rank, name, kind, parts, after, link=link)
        stream = f"data {kind}"
        index = self.add(Action(rank, stream, duration_s, name, tuple(after), kind, parts, link, takes=takes))
        self.open_data[rank][stream] = index
        return index

    def transfer(
        self, sender: int, receiver: int, direction: str, duration_s: float, name: str, after: Iterable[int]
    ) -> int:
        """A point-to-point transfer between pipeline ranks, in order with those of its pair and direction."""
        link = f"network {sender}" if self.options.share_network else ""
        parts = {"pp_comm": duration_s}
        stream = f"pipeline {direction} {receiver}"
        return self.add(Action(sender, stream, duration_s, name, tuple(after), "transfer", parts, link))

    def copy(
        self, rank: int, stream: str, size_bytes: float, rate: float, name: str, after: Iterable[int]
    ) -> int:
        """A copy between device, host and storage (stream h2d, d2h or storage)."""
        seconds = size_bytes / rate
        return self.add(Action(rank, stream, seconds, name, tuple(after), "copy", {"offload": seconds}))

    def host(self, rank: int, duration_s: float, name: str, after: Iterable[int]) -> int:
        """Work of the rank's host processor."""
        parts = {"offload": duration_s}
        return self.add(Action(rank, "host", duration_s, name, tuple(after), "update", parts))

    def start_of(self, rank: int, after: Sequence[int]) -> list[int]:
        """What the first unit of a pass waits for: its inputs, and the rank's own work before it."""
        last = self.last_compute.get(rank)
        return [*after, *([] if last is None else [last])]

    def take_open_data(self, rank: int) -> list[int]:
        """The data-parallel actions not waited for so far; they count as waited for from here."""
        return sorted(self.open_data.pop(rank, {}).values())


def with_host(cost: CostParts, action_s: float) -> Mapping[str, float]:
    """Parts of a cost with the host time of issuing it."""
    if not action_s:
        return cost.parts_s
    return {**cost.parts_s, "host": cost.parts_s.get("host", 0.0) + action_s}
