"""The engine. Streams are FIFO in issue order; an action starts when its stream is free and what it depends
on has ended. Equal times keep issue order, so runs are bit-reproducible.

>>> done = run([
...     Action(rank=0, stream="compute", duration_s=2.0, name="a"),
...     Action(rank=1, stream="compute", duration_s=1.0, name="b", after=(0,)),
... ])
>>> done.end_s
[2.0, 3.0]
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from costmodel.errors import PlanError

__all__ = ["Action", "Run", "run"]


@dataclass(frozen=True, slots=True)
class Action:
    """One piece of work. `after` are positions of actions in the issue list; `parts_s` says what the
    duration is spent on; `kind` is forward, backward, ..., transfer, gather, reduce, optimizer."""

    rank: int
    stream: str
    duration_s: float
    name: str = ""
    after: tuple[int, ...] = ()
    kind: str = "compute"
    parts_s: Mapping[str, float] = field(default_factory=dict)


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
    """Simulate. `compute_slowdown`: factor on a rank's compute stream while another stream of the rank is
    busy; `comm_slowdown`: on its other streams while it computes; `speed[rank]`: relative speed of a rank's
    compute stream (1 where absent).

    Raises PlanError on a deadlock, naming the actions that wait for each other.
    """
    if min(compute_slowdown, comm_slowdown) < 1.0:
        raise ValueError(f"slow-downs ({compute_slowdown}, {comm_slowdown}) must be at least 1")
    durations = [
        a.duration_s / (speed.get(a.rank, 1.0) if speed and a.stream == "compute" else 1.0) for a in actions
    ]
    follows, waits = _edges(actions)
    if compute_slowdown == comm_slowdown == 1.0:
        return _longest_path(actions, durations, follows, waits)
    return _with_slowdown(actions, durations, follows, waits, compute_slowdown, comm_slowdown)


def _edges(actions: Sequence[Action]) -> tuple[list[list[int]], list[int]]:
    """Successors of each action and the number of its predecessors, streams' order included."""
    n = len(actions)
    follows: list[list[int]] = [[] for _ in range(n)]
    waits = [0] * n
    last: dict[tuple[int, str], int] = {}
    for i, action in enumerate(actions):
        key = (action.rank, action.stream)
        before = last.get(key)
        if before is not None:
            follows[before].append(i)
            waits[i] += 1
        last[key] = i
        for j in action.after:
            follows[j].append(i)
        waits[i] += len(action.after)
    return follows, waits


def _longest_path(
    actions: Sequence[Action], durations: list[float], follows: list[list[int]], waits: list[int]
) -> Run:
    n = len(actions)
    start = [0.0] * n
    end = [0.0] * n
    ready = [i for i in range(n) if not waits[i]]
    done = 0
    while ready:
        i = ready.pop()
        done += 1
        finish = end[i] = start[i] + durations[i]
        for j in follows[i]:
            if finish > start[j]:
                start[j] = finish
            waits[j] -= 1
            if not waits[j]:
                ready.append(j)
    if done < n:
        raise PlanError(_deadlock(actions, waits, follows))
    return Run(actions=actions, start_s=start, end_s=end)


def _with_slowdown(
    actions: Sequence[Action],
    durations: list[float],
    follows: list[list[int]],
    waits: list[int],
    compute_slowdown: float,
    comm_slowdown: float,
) -> Run:
    """Event simulation: computation and communication of a rank progress slower while both run."""
    n = len(actions)
    start = [0.0] * n
    end = [0.0] * n
    left = list(durations)
    since = [0.0] * n
    pace = [1.0] * n
    version = [0] * n
    running: defaultdict[int, list[int]] = defaultdict(list)
    events: list[tuple[float, int, int]] = []
    done = 0

    def settle(rank: int, now: float) -> None:
        """Account for what the rank's actions did so far, and set their pace from here on."""
        mine = running[rank]
        computing = any(actions[i].stream == "compute" and durations[i] > 0 for i in mine)
        moving = any(actions[i].stream != "compute" and durations[i] > 0 for i in mine)
        for i in mine:
            left[i] = max(0.0, left[i] - (now - since[i]) / pace[i])
            since[i] = now
            if actions[i].stream == "compute":
                pace[i] = compute_slowdown if moving else 1.0
            else:
                pace[i] = comm_slowdown if computing else 1.0
            version[i] += 1
            heapq.heappush(events, (now + left[i] * pace[i], i, version[i]))

    def begin(i: int, now: float) -> None:
        start[i] = since[i] = now
        running[actions[i].rank].append(i)
        settle(actions[i].rank, now)

    for i in [i for i in range(n) if not waits[i]]:
        begin(i, 0.0)
    while events:
        now, i, made = heapq.heappop(events)
        if made != version[i]:
            continue
        done += 1
        end[i] = now
        version[i] += 1
        rank = actions[i].rank
        running[rank].remove(i)
        settle(rank, now)
        for j in follows[i]:
            waits[j] -= 1
            if not waits[j]:
                begin(j, now)
    if done < n:
        raise PlanError(_deadlock(actions, waits, follows))
    return Run(actions=actions, start_s=start, end_s=end)


def _deadlock(actions: Sequence[Action], waits: Sequence[int], follows: Sequence[Sequence[int]]) -> str:
    import networkx as nx

    stuck = {i for i, count in enumerate(waits) if count}
    graph = nx.DiGraph([(i, j) for i in stuck for j in follows[i] if j in stuck])
    cycle = [edge[0] for edge in nx.find_cycle(graph)]
    names = " -> ".join(f"{actions[i].name or i} (rank {actions[i].rank})" for i in cycle)
    return f"the schedule deadlocks: {names} -> {actions[cycle[0]].name or cycle[0]} wait for each other"
