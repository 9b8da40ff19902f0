"""What pipeline stages cost on pools of devices of one kind each: the prices a partition is searched by.

A stage of r replicas takes 1/r of each micro-batch on every one of them (DAPPLE, arXiv 2007.01045, section
4.1), so that units are priced at that size on the pool's own profile. A device here is a tensor-parallel
group. What the search sees are sums over units; `staged` prices the pipelines found as the forecasts do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.partition import Placement, Stage, StageTime, crossings, cut_bytes
from costmodel.predict.assemble import send_s
from costmodel.predict.peak import memory_of_rank
from costmodel.predict.stage_sums import StageSums, updates_s
from costmodel.predict.units import Unit, expand, unit_costs

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster

__all__ = ["Interlink", "Pool", "StagePricer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Nodes of one kind. `memory_limit_bytes`: of one device; 0: all that it has."""

    name: str
    forecaster: Forecaster
    n_nodes: int
    devices_per_node: int
    memory_limit_bytes: float = 0.0

    @property
    def memory_bytes(self) -> float:
        """What one device may hold."""
        has = self.forecaster.profile.device.memory_bytes
        return min(self.memory_limit_bytes or has, has)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interlink:
    """What joins two pools: bytes/s between one node of each, one direction, and latency."""

    bytes_per_s: float
    latency_s: float = 0.0


class _Table(StageSums):
    """Sums over the units of one pool, for stages of so many replicas on so many nodes."""

    def __init__(self, pricer: StagePricer, pool: int, replicas: int, spread: int) -> None:
        plan = pricer.plan_of(replicas)
        forecaster = pricer.placed(pool, replicas, spread)
        super().__init__(
            plan,
            unit_costs(forecaster, plan, pricer.units(pool, replicas), utilisation=1.0, waiting=0.0),
            pricer.updates_s(pool, plan.dp if plan.zero_stage else 1),
            overlap_dp=forecaster.framework.overlap_dp,
        )


class StagePricer:
    """Prices stages on pools (a `costmodel.partition.StageModel`).

    `template`: a plan whose tp, recomputation, ZeRO stage and schedule all stages share; `micro_batch_size`
    samples pass a stage at a time, over all its replicas. `links`: {pool, pool} -> what joins them, where it
    is slower than either pool's own network.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        template: Plan,
        *,
        micro_batch_size: int,
        global_batch_size: int,
        links: Mapping[frozenset[int], Interlink] | None = None,
    ) -> None:
        if global_batch_size % micro_batch_size:
            raise PlanError(
                f"global_batch_size({global_batch_size}) is not a multiple of the micro-batch "
                f"({micro_batch_size}); change one of them"
            )
        self.pools = tuple(pools)
        self.template = template
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.links = dict(links or {})
        self.pool_of = tuple(i for i, pool in enumerate(pools) for _ in range(pool.n_nodes))
        """Pool of each node."""
        for pool in pools:
            if pool.devices_per_node % template.tp:
                raise PlanError(
                    f"tp({template.tp}) does not divide the {pool.devices_per_node} devices of a node of "
                    f"{pool.name!r}; a tensor-parallel group stays inside a node"
                )
        self.nodes = tuple(pools[i].devices_per_node // template.tp for i in self.pool_of)
        """Tensor-parallel groups on each node."""
        most = max(p.n_nodes * p.devices_per_node // template.tp for p in pools)
        self.replicas = tuple(r for r in range(1, most + 1) if micro_batch_size % r == 0)
        """Replicas a stage can have: each takes a whole number of samples."""
        self._units: dict[tuple[int, int], list[Unit]] = {}
        self._tables: dict[tuple[int, int, int], _Table] = {}
        self._updates: dict[tuple[int, int], list[float]] = {}
        self._sends: dict[tuple[int, ...], float] = {}
        self._memory: dict[tuple[int, ...], float] = {}
        self._spots: dict[Placement, tuple[int, int, int]] = {}

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of a step."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def blocking(self) -> bool:
        """Whether stages wait for their transfers instead of computing beside them."""
        framework = self.pools[0].forecaster.framework
        return not framework.overlaps_p2p(self.template.schedule, self.template.vpp)

    @cached_property
    def n_units(self) -> int:
        """Pieces that the model can be cut into."""
        return len(self.units(0, 1))

    def plan_of(self, replicas: int, n_stages: int = 0) -> Plan:
        """The plan of a stage: its replicas as data parallelism, of `n_stages` (0: unknown) stages."""
        return self.template.with_(
            dp=replicas,
            pp=n_stages or (2 if sum(self.nodes) > 1 else 1),
            micro_batch_size=self.micro_batch_size // replicas,
            global_batch_size=self.global_batch_size,
        )

    def units(self, pool: int, replicas: int) -> list[Unit]:
        """The model's units on a pool, at a replica's share of a micro-batch."""
        key = (pool, replicas)
        if key not in self._units:
            self._units[key] = expand(self.pools[pool].forecaster, self.plan_of(replicas))
        return self._units[key]

    def spot(self, placement: Placement) -> tuple[int, int, int]:
        """(pool, replicas, nodes) of a placement."""
        if placement not in self._spots:
            taken = [n for n, count in enumerate(placement) if count]
            self._spots[placement] = self.pool_of[taken[0]], sum(placement), len(taken)
        return self._spots[placement]

    def placed(self, pool: int, replicas: int, n_nodes: int) -> Forecaster:
        """The pool's forecaster with a stage's replicas on so many nodes."""
        local = math.ceil(replicas / n_nodes)
        sharing = max(1, self.pools[pool].devices_per_node // local) if n_nodes > 1 else 1
        group = CollectiveGroup(n_ranks=local * n_nodes, n_nodes=n_nodes, nic_sharing=sharing)
        return self.pools[pool].forecaster.placed({"dp": group, "dp_shard": group})

    def updates_s(self, pool: int, shard: int) -> list[float]:
        """Seconds of each unit's update where `shard` replicas share it."""
        if (pool, shard) not in self._updates:
            self._updates[pool, shard] = updates_s(self.pools[pool].forecaster, self.units(pool, 1), shard)
        return self._updates[pool, shard]

    def _table(self, placement: Placement) -> _Table:
        spot = self.spot(placement)
        if spot not in self._tables:
            self._tables[spot] = _Table(self, *spot)
        return self._tables[spot]

    def stage(self, start: int, stop: int, placement: Placement) -> StageTime | None:
        """Times of these units on these devices."""
        return self._table(placement).stage_time(start, stop)

    def time(self, stage: Stage) -> StageTime:
        """Times of a stage without its transfers."""
        return self._table(stage.placement).stage_time(stage.start, stage.stop)

    def least_work_s(self, start: int) -> float:
        """Device-seconds of the units from `start` on, where each takes the least."""
        return float(self._least_work[start])

    @cached_property
    def _least_work(self) -> FloatArray:
        least = np.full(self.n_units, np.inf)
        for pool in range(len(self.pools)):
            per_node = self.pools[pool].devices_per_node // self.template.tp
            for replicas in (r for r in self.replicas if r <= self.pools[pool].n_nodes * per_node):
                table = self._tables.setdefault(
                    (pool, replicas, -(-replicas // per_node)),
                    _Table(self, pool, replicas, -(-replicas // per_node)),
                )
                least = np.minimum(least, replicas * np.diff(table.forward + table.backward))
        return np.append(np.cumsum(least[::-1])[::-1], 0.0)

    def crossing_bytes(self, cut: int, pool: int, replicas: int) -> float:
        """Bytes that a replica of a stage ending before unit `cut` hands on per micro-batch."""
        return self.units(pool, replicas)[cut - 1].shard.output_bytes * self._alive_fraction[cut - 1]

    @cached_property
    def _alive_fraction(self) -> list[float]:
        """Per cut: bytes alive there over those its segment says, which are those behind its last unit."""
        graph = self.pools[0].forecaster.graph(self.micro_batch_size)
        said = [segment.output_bytes for segment in graph.segments for _ in range(segment.count)]
        alive = cut_bytes(crossings(graph), len(said))
        return [a / b if b else 1.0 for a, b in zip(alive, said[:-1], strict=True)]

    def send_s(self, cut: int, sender: Placement, receiver: Placement) -> float:
        """Handing on what crosses before unit `cut`, one way; replicas send to replicas side by side.

        The side with fewer replicas sets the size of a message.
        """
        pool, replicas, _ = self.spot(sender)
        fewer = min(replicas, self.spot(receiver)[1])
        key = (cut, pool, fewer, *self._way(sender, receiver))
        if key not in self._sends:
            size = self.crossing_bytes(cut, pool, fewer)
            self._sends[key] = self.transfer_s(size, fewer, sender, receiver)
        return self._sends[key]

    def _way(self, sender: Placement, receiver: Placement) -> tuple[int, int, int]:
        """(pool, pool, messages at once from a node; 0 where all stay on one node)."""
        ends = [{n for n, count in enumerate(p) if count} for p in (sender, receiver)]
        fewer = min(sum(sender), sum(receiver))
        near = len(ends[0] | ends[1]) == 1
        at_once = 0 if near else math.ceil(fewer / min(len(ends[0]), len(ends[1]))) * self.template.tp
        return self.spot(sender)[0], self.spot(receiver)[0], at_once

    def transfer_s(self, size_bytes: float, replicas: int, sender: Placement, receiver: Placement) -> float:
        """A message of so many bytes between each pair of replicas; between pools at the slowest of both
        networks and the declared link, which the messages of a node share."""
        a, b, at_once = self._way(sender, receiver)
        n_nodes = 2 if at_once else 1
        group = CollectiveGroup(n_ranks=2, n_nodes=n_nodes, nic_sharing=max(1, at_once))
        plan = self.plan_of(replicas)
        link = self.links.get(frozenset((a, b))) if a != b else None
        times = []
        for pool in sorted({a, b}):
            forecaster = self.pools[pool].forecaster
            network = forecaster.profile.network
            if link is None or (network is not None and network.inter):
                times.append(send_s(forecaster.placed({"pp": group}), plan, size_bytes))
        if link is not None:
            times.append(link.latency_s + max(1, at_once) * size_bytes / link.bytes_per_s)
        return max(times)

    def memory_bytes(self, start: int, stop: int, placement: Placement, in_flight: int) -> float:
        """Peak of a device of the stage with so many micro-batches in flight."""
        pool, replicas, _ = self.spot(placement)
        key = (start, stop, pool, replicas, in_flight)
        if key not in self._memory:
            units = self.units(pool, replicas)[start:stop]
            held = in_flight * sum(unit.costs.memory.saved_bytes for unit in units)
            found = memory_of_rank(
                self.pools[pool].forecaster, self.plan_of(replicas), 0, [units], held_bytes=held
            )
            self._memory[key] = float(found.peak_memory_bytes)
        return self._memory[key]

    def fits(self, start: int, stop: int, placement: Placement, in_flight: int) -> bool:
        """Whether the pool's devices hold the stage. One micro-batch is priced, the others at most add what
        they keep."""
        table = self._table(placement)
        limit = self.pools[self.spot(placement)[0]].memory_bytes
        least = self.memory_bytes(start, stop, placement, 1)
        if least > limit:
            return False
        if least + (in_flight - 1) * (table.saved[stop] - table.saved[start]) <= limit:
            return True
        return self.memory_bytes(start, stop, placement, in_flight) <= limit
