"""The engine. Streams are FIFO in issue order; an action starts when its stream is free and what it depends
on has ended. Equal times keep issue order, so runs are bit-reproducible.

>>> done = run([
...     Action(rank=0, stream="compute", duration_s=2.0, name="a"),
...     Action(rank=1, stream="compute", duration_s=1.0, name="b", after=(0,)),
... ])
>>> done.end_s
[2.0, 3.0]

Without slow-down and shared links the end times are longest paths, taken in one pass over the list (so too
where collectives take a share of the device and none starts beside work listed before it); with them an
event simulation keeps the work that is left of each running action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from costmodel.engine.events import Rates, simulate_events
from costmodel.engine.one_pass import communicates, longest_paths, slowed_paths
from costmodel.errors import PlanError

__all__ = ["STREAMS", "Action", "Run", "run"]

STREAMS = ("compute", "tensor", "data", "pipeline", "h2d", "d2h", "host", "storage")
"""Names of streams; a further word sets streams of one kind apart ("data gather", "data reduce")."""

_NO_PARTS: Mapping[str, float] = MappingProxyType({})


class Action(NamedTuple):
    """One piece of work (a tuple: a step has 1e5 of them).

    `after`: positions of actions in the issue list. `parts_s`: what the duration is spent on. `kind`:
    F, B, I, W, transfer, gather, reduce, optimizer, copy, update. `link`: actions that run at one time on the
    same link share its bandwidth; their durations are those of the link alone.
    """

    rank: int
    stream: str
    duration_s: float
    name: str = ""
    after: tuple[int, ...] = ()
    kind: str = "compute"
    parts_s: Mapping[str, float] = _NO_PARTS
    link: str = ""
    holds_bytes: int = 0
    """Activations: held from the start of this action (positive), or freed at its end (negative)."""
    takes: float = 0.0
    """Share of its rank's device that a collective keeps from computation while it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """When each action started and ended, by position in the issue list."""

    actions: Sequence[Action]
    start_s: list[float]
    end_s: list[float]

    @property
    def makespan_s(self) -> float:
        """End of the last action."""
        return max(self.end_s, default=0.0)


def run(
    actions: Sequence[Action],
    *,
    compute_slowdown: float = 1.0,
    comm_slowdown: float = 1.0,
    speed: Mapping[int, float] | None = None,
) -> Run:
    """Simulate.

    `compute_slowdown`: factor on a rank's compute stream while the rank takes part in a collective, beside
    what that `takes`; `comm_slowdown`: on its collectives while it computes; `speed[rank]`: relative speed
    of a rank's compute stream (1 where absent).

    Raises ValueError on a factor below 1 or a speed that is not positive, PlanError on a deadlock, naming the
    actions that wait for each other.
    """
    for name, factor in (("compute_slowdown", compute_slowdown), ("comm_slowdown", comm_slowdown)):
        if factor < 1.0:
            raise ValueError(f"{name}={factor}: must be at least 1")
    durations = [a.duration_s for a in actions]
    if speed:
        if min(speed.values()) <= 0:
            raise ValueError(f"speed={dict(speed)}: speeds must be positive")
        durations = [
            seconds / speed.get(a.rank, 1.0) if a.stream == "compute" else seconds
            for a, seconds in zip(actions, durations, strict=True)
        ]
    if compute_slowdown == comm_slowdown == 1.0 and not _shares(actions):
        one_pass = slowed_paths if any(a.takes for a in actions) else longest_paths
        if (in_order := one_pass(actions, durations)) is not None:
            return Run(actions=actions, start_s=in_order[0], end_s=in_order[1])
    follows, waits = _edges(actions)
    rates = Rates(
        compute=[a.rank if a.stream == "compute" else -1 for a in actions],
        comm=[a.rank if communicates(a.stream) else -1 for a in actions],
        takes=[a.takes for a in actions],
        link=[a.link for a in actions],
        compute_slowdown=compute_slowdown,
        comm_slowdown=comm_slowdown,
    )
    start, end, done = simulate_events(durations, follows, waits, rates)
    if done < len(actions):
        raise PlanError(_deadlock(actions, waits, follows))
    return Run(actions=actions, start_s=start, end_s=end)


def _shares(actions: Sequence[Action]) -> bool:
    """Whether two actions of different streams name the same link."""
    used: dict[str, tuple[int, str]] = {}
    return any(a.link and used.setdefault(a.link, (a.rank, a.stream)) != (a.rank, a.stream) for a in actions)


def _edges(actions: Sequence[Action]) -> tuple[list[list[int]], list[int]]:
    """Successors of each action and the number of its predecessors, streams' order included."""
    n = len(actions)
    follows: list[list[int]] = [[] for _ in range(n)]
    waits = [0] * n
    last: dict[tuple[int, str], int] = {}
    for i, action in enumerate(actions):
        lane = (action.rank, action.stream)
        before = last.get(lane)
        if before is not None:
            follows[before].append(i)
            waits[i] += 1
        last[lane] = i
        for j in action.after:
            follows[j].append(i)
        waits[i] += len(action.after)
    return follows, waits


def _deadlock(actions: Sequence[Action], waits: Sequence[int], follows: Sequence[Sequence[int]]) -> str:
    import networkx as nx

    stuck = {i for i, count in enumerate(waits) if count}
    graph = nx.DiGraph([(i, j) for i in stuck for j in follows[i] if j in stuck])
    cycle = [edge[0] for edge in nx.find_cycle(graph)]
    names = " -> ".join(f"{actions[i].name or i} (rank {actions[i].rank})" for i in cycle)
    return (
        f"the schedule deadlocks: {names} -> {actions[cycle[0]].name or cycle[0]} wait for each other; "
        "an action may only wait for what its own stream issues earlier or another stream can reach"
    )
