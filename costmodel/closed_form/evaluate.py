"""Prices the rows of a space: micro-batch by micro-batch, all plans with one number of stages together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.configs import Configs, distinct, groups_by, parts_of
from costmodel.closed_form.data_parallel import Tails, sharded_step, tails
from costmodel.closed_form.memory import (
    HELD_ORDERS,
    StageBytes,
    held_bytes,
    held_order,
    levels_of,
    peak_bytes,
)
from costmodel.closed_form.offload import host_need, host_work
from costmodel.closed_form.stages import STAGE_COLUMNS, cut_tables, stage_rows
from costmodel.closed_form.step import Stages, chains_end_s, kind_of
from costmodel.closed_form.units import UnitTable
from costmodel.errors import PlanError
from costmodel.estimate import FloatArray, IntArray
from costmodel.plan import Plan
from costmodel.predict.assemble import action_s
from costmodel.predict.placement import axis_groups
from costmodel.predict.pricing import host_cost_s
from costmodel.strategies.offload import offload_of

if TYPE_CHECKING:
    from costmodel.closed_form.memory import Levels
    from costmodel.closed_form.space import Evaluated
    from costmodel.closed_form.stages import Cuts
    from costmodel.hardware.kinds import CollectiveGroup
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.twin import Twin
    from costmodel.step import Offload

__all__ = ["Pricer"]

_Mask = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

_SPLITTING = ("tp", "cp", "ep", "over", "sp", "recompute")
"""With the micro-batch size: what decides how a unit costs. `over`: `Plan.experts_over`."""
_CHUNKS = 100_000
"""More chunks than a rank can have."""
_LAYOUT = ("tp", "cp", "ep", "etp", "pp", "dp", "dp_shard", "inside")
"""What decides where the groups of the axes lie."""
_HELD_COLUMNS = (
    "saved_bytes",
    "send_bytes",
    "appearing_bytes",
    "standing_bytes",
    "elements",
    "expert_elements",
    "largest_elements",
    "second_elements",
    "largest_trained",
    "loose_elements",
    "block_elements",
    "pair_elements",
    "pair_trained",
    "frozen_elements",
    "frozen_expert_elements",
    "unused_elements",
    "copied_on_rank",
    "frozen_copied_on_rank",
)
"""What memory depends on."""
_HOST_TOO_SMALL = "what is offloaded does not fit the host's memory"
_AT_ONCE = 1 << 21
"""Stages of plans held in one array."""


def _experts_over(space: Evaluated) -> IntArray:
    """`Plan.experts_over` of every row."""
    at = space.columns
    if not len(space):
        return at["ep"]
    first, which = distinct(at["ep"], at["etp"], at["tp"], at["dp"] * at["cp"])
    return np.array([space.plan(int(row)).experts_over for row in first], dtype=np.int64)[which]


class Pricer:
    """Fills in the bound, the estimate and the memory of a space's rows."""

    def __init__(self, forecaster: Forecaster, space: Evaluated, twin: Twin | None = None) -> None:
        self._forecaster = forecaster
        self._twin = twin
        self._space = space
        at = space.columns
        self._columns = {**at, "over": _experts_over(space)}
        self._cut = at["pp"] * _CHUNKS + at["vpp"]
        self._key = np.full(len(space), -1, dtype=np.int64)
        self._tables: list[UnitTable] = []
        self._groups: dict[tuple[int, ...], dict[str, CollectiveGroup]] = {}
        profile = forecaster.profile
        self._step_s = host_cost_s(profile, "step_s") + forecaster.framework.step_overhead_s
        self._looped = profile.device.kind == "cpu"
        per_node = 1 if profile.network is None else profile.network.ranks_per_node
        self._ranks_of_node = min(per_node, space.choices.n_devices)
        names = space.choices.schedules
        self._held_order = np.array(
            [[HELD_ORDERS.index(held_order(kind_of(name, vpp))) for vpp in (1, 2)] for name in names]
        )

    def run(self) -> None:
        """Memory first, smaller micro-batches first: a way of splitting that fits with no plan is not tried
        with larger ones, whose activations are larger. Then the time of every plan that fits."""
        at = self._columns
        if not len(self._space):
            return
        way, n_ways = self._ways()
        capacity = self._forecaster.profile.device.memory_bytes
        persists = self._forecaster.framework.gradients_persist
        full = np.zeros(n_ways, dtype=bool)
        for rows in groups_by(at["mbs"]):
            mbs = int(at["mbs"][rows[0]])
            one = self._space.choices.global_batch_size == at["dp"][rows] * mbs
            rows = rows[~full[way[rows]] | (one & (not persists))]
            self._price(rows, way[rows], self._helper(mbs) if len(rows) else None)
            rows = rows[self._key[rows] >= 0]
            for some in groups_by(at["pp"], rows):
                pp = int(at["pp"][some[0]])
                for part in parts_of(some, _AT_ONCE // pp):
                    self._memory(part, pp)
            least = np.full(n_ways, np.inf)
            np.minimum.at(least, way[rows], self._space.memory_bytes[rows])
            full |= (least > capacity) & np.isfinite(least)
        self._leave_out_idle_offload(capacity)
        for part, pp, vpp in self._cuts(np.flatnonzero(self._space.fits(capacity))):
            self._time(part, pp, vpp)

    def _helper(self, micro_batch_size: int) -> Twin | None:
        """The twin, but not before the traces that it takes are there and it knows the other ones."""
        graphs = self._forecaster.graphs
        if self._twin is None or (graphs.expected and micro_batch_size == 1):
            return None
        if graphs.expected:
            for size in graphs.expected:
                self._forecaster.graph(size)
            self._twin.renew()
        return self._twin

    def _leave_out_idle_offload(self, capacity: float) -> None:
        """Offload pays for memory with time: a plan that fits without it is not tried with it, and none that
        a host cannot hold. The rows of a plan with each word follow the one without."""
        words, memory = self._columns["offload"], self._space.memory_bytes
        idle = (words > 0) & (memory[np.arange(len(words)) - words] <= capacity)
        if idle.any():
            memory[idle] = np.inf
            self._space.n_excluded["offload of a plan that fits without it"] += int(idle.sum())
        if short := int(np.sum((memory <= capacity) & ~self._space.host_fits)):
            self._space.n_excluded[_HOST_TOO_SMALL] += short

    def _ways(self) -> tuple[IntArray, int]:
        """Number of each row's way of splitting, and how many numbers there are."""
        code, count = np.zeros(len(self._space), dtype=np.int64), 1
        for name in _SPLITTING:
            there = np.bincount(self._columns[name]) > 0
            n = int(there.sum())
            code = code * n + (np.cumsum(there) - 1)[self._columns[name]]
            count *= n
        return code, count

    def _cuts(self, rows: IntArray) -> Iterator[tuple[IntArray, int, int]]:
        """Rows with the same numbers of ranks and chunks, as many as are worked on at once."""
        for mine in groups_by(self._cut, rows):
            pp, vpp = divmod(int(self._cut[mine[0]]), _CHUNKS)
            for part in parts_of(mine, _AT_ONCE // (pp * vpp)):
                yield part, pp, vpp

    def _price(self, rows: IntArray, way: IntArray, twin: Twin | None) -> None:
        """The unit table of every row; where the model cannot be split so, the reason is counted."""
        mine = [rows[places] for places in groups_by(way)]
        ways = [(self._space.plan(int(some[0])), self._stage_counts(some)) for some in mine]
        for some, table in zip(mine, cut_tables(self._forecaster, ways, twin), strict=True):
            if isinstance(table, PlanError):
                self._space.n_excluded[str(table).split(":")[0]] += len(some)
                continue
            self._key[some] = len(self._tables)
            self._tables.append(table)

    def _stage_counts(self, rows: IntArray) -> Cuts:
        """(stages, ranks) of the rows."""
        cuts = [divmod(cut, _CHUNKS) for cut in np.unique(self._cut[rows]).tolist()]
        return tuple((pp * vpp, pp) for pp, vpp in cuts)

    def _memory(self, rows: IntArray, pp: int) -> None:
        """Memory of plans with the same number of ranks. What stages hold is worked out once for every cut of
        a split model, and what the states of training leave beside it once for every config."""
        at, space = self._columns, self._space
        cut_of_row = at["vpp"][rows] * len(self._tables) + self._key[rows]
        first, config = distinct(cut_of_row, at["zero"][rows], at["dp_shard"][rows])
        chosen = rows[first]
        first, cut = distinct(cut_of_row[first])
        cuts = [self._stage_bytes(some, pp) for some in groups_by(at["vpp"], chosen[first])]
        words = len(space.choices.offload)
        of_ranks = np.concatenate([stages.of_ranks(with_two_largest=words > 1) for stages, _ in cuts], axis=1)
        dp, zero, over = at["dp"][chosen], at["zero"][chosen], at["over"][chosen]
        shard = _shard(zero, dp, at["dp_shard"][chosen]) * np.where(zero > 0, at["cp"][chosen], 1)
        framework = self._forecaster.framework

        @cache
        def levels(word: int) -> Levels:
            return levels_of(
                of_ranks[:, cut],
                framework=framework,
                optimizer=self._forecaster.optimizer,
                zero_stage=zero,
                dp=dp,
                shard=shard,
                ep=over,
                num_microbatches=self._num_microbatches(chosen),
                looped=self._looped,
                offload=self._offload(word, rows),
            )

        @cache
        def host_fits(word: int) -> _Mask:
            offload, host = self._offload(word, rows), self._forecaster.host
            assert offload is not None
            size = framework.parameter_bytes
            need = host_need(offload, of_ranks[:, cut], parameter_bytes=size, zero=zero, shard=shard, ep=over)
            return np.asarray(self._ranks_of_node * need <= host.memory_bytes)

        @cache
        def passing(order: int, appearing: bool) -> FloatArray:
            name = HELD_ORDERS[order]
            return np.concatenate([stages.passing(name, m, appearing=appearing) for stages, m in cuts])

        @cache
        def kept(order: int) -> FloatArray:
            return np.concatenate([held_bytes(stages.held, HELD_ORDERS[order], m) for stages, m in cuts])

        order = self._held_order[at["schedule"][rows], (at["vpp"][rows] > 1).astype(np.int64)]
        code = order * words + at["offload"][rows]
        for number in np.flatnonzero(np.bincount(code)):
            which, word = divmod(int(number), words)
            mine = np.flatnonzero(code == number)
            peaks = peak_bytes(levels(word), partial(passing, which), partial(kept, which), cut)
            space.memory_bytes[rows[mine]] = peaks[config[mine]]
            if word:
                space.host_fits[rows[mine]] = host_fits(word)[config[mine]]

    def _stage_bytes(self, rows: IntArray, pp: int) -> tuple[StageBytes, IntArray]:
        """What the stages of the rows' cuts hold, all of as many chunks, and their micro-batches."""
        found = self._stacked(self._key[rows], pp, int(self._columns["vpp"][rows[0]]))
        stage = {name: found[:, STAGE_COLUMNS.index(name)] for name in _HELD_COLUMNS}
        held = stage["saved_bytes"]
        if self._forecaster.framework.keeps_stage_outputs:
            held = held + stage["send_bytes"]
        sizes = StageBytes(
            saved=stage["saved_bytes"],
            held=held,
            appearing=stage["appearing_bytes"],
            standing=stage["standing_bytes"],
            elements=stage["elements"] + stage["copied_on_rank"],
            experts=stage["expert_elements"],
            frozen=stage["frozen_elements"] + stage["frozen_copied_on_rank"],
            frozen_experts=stage["frozen_expert_elements"],
            unused=stage["unused_elements"],
            largest=stage["largest_elements"],
            second=stage["second_elements"],
            largest_trained=stage["largest_trained"],
            loose=stage["loose_elements"],
            block=stage["block_elements"],
            pair=stage["pair_elements"],
            pair_trained=stage["pair_trained"],
        )
        return sizes, self._num_microbatches(rows)

    def _num_microbatches(self, rows: IntArray) -> IntArray:
        at = self._columns
        return np.asarray(self._space.choices.global_batch_size // (at["dp"][rows] * at["mbs"][rows]))

    def _time(self, rows: IntArray, pp: int, vpp: int) -> None:
        space = self._space
        columns = (self._columns[name][rows] for name in ("zero", "dp_shard", "inside"))
        first, config = distinct(self._key[rows], *columns)
        configs = self._layouts(rows[first])
        stage = self._stage(configs, pp, vpp)
        first, path = distinct(configs.table, configs.inside)
        work = self._work(configs.take(first), stage)
        ends = tails(self._forecaster, configs, stage, work.backward_s[path, 0])
        sharded = _sharded(configs)
        found = (
            sharded_step(self._forecaster, configs, sharded, self._tables, ends)
            if len(sharded)
            else (0.0, 0.0)
        )

        @cache
        def chains(kind: str, action_s: float, p2p_overlap: bool) -> FloatArray:
            return chains_end_s(_with_schedule(work, action_s, p2p_overlap), kind, ends.before_s, path)

        for schedule, word, mine in self._orders(rows):
            name = space.choices.schedules[schedule]
            seconds = action_s(self._forecaster, name, vpp) if pp > 1 else 0.0
            overlap = self._forecaster.framework.overlaps_p2p(name, vpp)
            done = chains(kind_of(name, vpp), seconds, overlap)
            if (offload := self._offload(word, rows)) is not None:
                bound = self._offloaded(offload, configs, stage, done, ends)
                space.bound_s[rows[mine]] = bound[config[mine]] + self._step_s
                space.estimate_s[rows[mine]] = space.bound_s[rows[mine]]
                continue
            bound, estimate = ((done + end_s).max(axis=1) for end_s in (ends.bound_s, ends.estimate_s))
            bound[sharded], estimate[sharded] = found
            space.bound_s[rows[mine]] = bound[config[mine]] + self._step_s
            space.estimate_s[rows[mine]] = estimate[config[mine]] + self._step_s

    def _orders(self, rows: IntArray) -> Iterator[tuple[int, int, _Mask]]:
        """(schedule, offload, which of the rows) of what is the rows' own beside their config."""
        at = self._columns
        code = at["schedule"][rows] * len(self._space.choices.offload) + at["offload"][rows]
        for number in np.flatnonzero(np.bincount(code)):
            schedule, word = divmod(int(number), len(self._space.choices.offload))
            yield schedule, word, code == number

    def _offload(self, word: int, rows: IntArray) -> Offload | None:
        """What a word of the choices asks of the host; the rows' plans are all on the same devices."""
        if not word:
            return None
        forecaster, choices = self._forecaster, self._space.choices
        plan = Plan(dp=choices.n_devices, global_batch_size=choices.n_devices, flags=(choices.offload[word],))
        return offload_of(plan, forecaster.profile, forecaster.host, forecaster.framework)

    def _offloaded(
        self,
        offload: Offload,
        configs: Configs,
        stage: dict[str, FloatArray],
        done_s: FloatArray,
        ends: Tails,
    ) -> FloatArray:
        """A step whose update the host makes is no shorter. `done_s` [n, p]: the end of ranks' backwards."""
        work = host_work(
            offload,
            stage["elements"][configs.table],
            frozen=stage["frozen_elements"][configs.table],
            parameter_bytes=self._forecaster.framework.parameter_bytes,
            shard=np.where(configs.zero > 0, configs.replicas, 1),
            streamed_by=np.where(configs.zero == 3, configs.replicas, 1),
            num_microbatches=configs.num_microbatches,
        )
        end_s = ends.bound_s - ends.update_s + work.after_s
        bound = (done_s + end_s).max(axis=1)
        sharded = _sharded(configs)
        if len(sharded):
            ends = replace(ends, update_s=work.after_s)
            bound[sharded], _ = sharded_step(self._forecaster, configs, sharded, self._tables, ends)
        return np.asarray(np.maximum(bound, work.at_least_s.max(axis=1)))

    def _layouts(self, rows: IntArray) -> Configs:
        at = self._columns
        first, group = distinct(*(at[name][rows] for name in _LAYOUT))
        dp, zero = at["dp"][rows], at["zero"][rows]
        return Configs(
            table=np.unique(self._key[rows], return_inverse=True)[1].reshape(-1),
            key=self._key[rows],
            num_microbatches=self._num_microbatches(rows),
            dp=dp,
            replicas=dp * at["cp"][rows],
            zero=zero,
            shard=_shard(zero, dp, at["dp_shard"][rows]),
            groups=[self._groups_of(int(row)) for row in rows[first]],
            group=group,
            inside=at["inside"][rows],
            tp=at["tp"][rows],
            sp=at["sp"][rows],
            over=at["over"][rows],
        )

    def _groups_of(self, row: int) -> dict[str, CollectiveGroup]:
        """Groups of the axes of a row's plan."""
        layout = tuple(int(self._columns[name][row]) for name in _LAYOUT)
        if layout not in self._groups:
            network = self._forecaster.profile.network
            per_node = 1 if network is None else network.ranks_per_node
            self._groups[layout] = axis_groups(self._space.plan(row), per_node)
        return self._groups[layout]

    def _stacked(self, keys: IntArray, pp: int, vpp: int) -> FloatArray:
        """Stage columns of unit tables, shape [n, columns, vpp, pp]."""
        stages = self._forecaster.framework.stages
        found = [stage_rows(self._tables[key], pp * vpp, pp, stages) for key in keys.tolist()]
        return np.stack(found).reshape(len(found), len(STAGE_COLUMNS), vpp, pp)

    def _stage(self, configs: Configs, pp: int, vpp: int) -> dict[str, FloatArray]:
        """Stage columns of each unit table, shape [t, vpp, pp]; a config has the `table`-th of them."""
        found = self._stacked(np.unique(configs.key), pp, vpp)
        return {name: found[:, i] for i, name in enumerate(STAGE_COLUMNS)}

    def _work(self, configs: Configs, stage: dict[str, FloatArray]) -> Stages:
        names = ("forward_s", "input_s", "weight_s", "accumulate_s", "send_bytes")
        forward_s, input_s, weight_s, again_s, send_bytes = (stage[name][configs.table] for name in names)
        several = (configs.num_microbatches > 1)[:, None, None]
        return Stages(
            forward_s=forward_s,
            input_s=input_s,
            weight_s=weight_s,
            again_s=np.where(several, again_s, 0.0),
            send_s=self._send_s(configs, send_bytes)
            if send_bytes.shape[2] > 1
            else np.zeros_like(send_bytes),
            num_microbatches=configs.num_microbatches,
            p2p_overlap=False,
        )

    def _send_s(self, configs: Configs, send_bytes: FloatArray) -> FloatArray:
        """As `predict.assemble` prices handing activations on: in slices that the next stage gathers."""
        forecaster = self._forecaster
        sliced = (configs.sp == 0) & forecaster.framework.scatter_p2p & (configs.tp > 1)
        slices = np.where(sliced, configs.tp, 1)[:, None, None]
        send_s = configs.collective_s(forecaster, "p2p", send_bytes / slices, "pp")
        gathered = np.where(sliced[:, None, None], send_bytes, 0.0)
        return send_s + configs.collective_s(forecaster, "all_gather", gathered, "tp")


def _with_schedule(work: Stages, action_s: float, p2p_overlap: bool) -> Stages:
    """The work with what a schedule costs by itself for each forward and backward."""
    forward_s, input_s = work.forward_s + action_s, work.input_s + action_s
    return replace(work, forward_s=forward_s, input_s=input_s, p2p_overlap=p2p_overlap)


def _sharded(configs: Configs) -> IntArray:
    """Configs whose ranks gather parameters unit by unit."""
    return np.flatnonzero((configs.zero == 3) & (configs.dp > 1))


def _shard(zero: IntArray, dp: IntArray, dp_shard: IntArray) -> IntArray:
    """Ranks that divide model state between them."""
    return np.where(zero > 0, np.where(dp_shard > 0, dp_shard, dp), 1)
