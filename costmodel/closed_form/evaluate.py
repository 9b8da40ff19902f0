"""Prices the rows of a space: micro-batch by micro-batch, all plans with one number of stages together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.data_parallel import Tails, sharded_step, tails
from costmodel.closed_form.memory import StageBytes, held_bytes, peak_bytes
from costmodel.closed_form.stages import STAGE_COLUMNS, stage_rows
from costmodel.closed_form.step import Stages, kind_of, step_bound_s
from costmodel.closed_form.units import UnitTable, unit_table
from costmodel.errors import PlanError
from costmodel.estimate import FloatArray
from costmodel.predict.placement import axis_groups
from costmodel.predict.pricing import host_cost_s

if TYPE_CHECKING:
    from costmodel.closed_form.space import Evaluated
    from costmodel.hardware.kinds import CollectiveGroup
    from costmodel.predict.forecaster import Forecaster

__all__ = ["Pricer"]

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

_SPLITTING = ("tp", "cp", "ep", "sp", "recompute", "wide")
"""With the micro-batch size: what decides how a unit costs. `wide`: experts lie over several replicas."""
_CONFIG = ("zero", "dp_shard", "inside")
_AT_ONCE = 1 << 21
"""Stages of plans held in one array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configs:
    """Plans with the same numbers of ranks and chunks, orders of micro-batches aside; arrays over them."""

    key: IntArray
    """Which unit table each has."""
    num_microbatches: IntArray
    dp: IntArray
    replicas: IntArray
    """Ranks that hold the same parameters: dp * cp."""
    zero: IntArray
    shard: IntArray
    groups: list[dict[str, CollectiveGroup]]
    """Groups of the axes; `group` numbers the one of each config."""
    group: IntArray
    tp: IntArray
    sp: IntArray

    def collective_s(self, forecaster: Forecaster, op: str, size_bytes: FloatArray, axis: str) -> FloatArray:
        """Seconds for each config's sizes [n, ...] over its own group of the axis."""
        times = np.zeros_like(size_bytes)
        for number, groups in enumerate(self.groups):
            rows = self.group == number
            if rows.any():
                times[rows] = forecaster.collective_s(op, size_bytes[rows], groups[axis])
        return times


class Pricer:
    """Fills in the bound, the estimate and the memory of a space's rows."""

    def __init__(self, forecaster: Forecaster, space: Evaluated) -> None:
        self._forecaster = forecaster
        self._space = space
        at = space.columns
        self._columns = {**at, "wide": (at["ep"] > at["dp"] * at["cp"]).astype(np.int64)}
        self._tables: list[UnitTable] = []
        self._stages: dict[tuple[int, int, int], FloatArray] = {}
        profile = forecaster.profile
        self._step_s = host_cost_s(profile, "step_s") + forecaster.framework.step_overhead_s
        self._looped = profile.device.kind == "cpu"

    def run(self) -> None:
        """Smaller micro-batches first: a way of splitting that fits with no plan is not tried with larger
        ones, whose activations are larger."""
        at = self._columns
        if not len(self._space):
            return
        ways = np.stack([at[name] for name in _SPLITTING])
        _, way = np.unique(ways, axis=1, return_inverse=True)
        way = way.reshape(-1)
        full: set[int] = set()
        capacity = self._forecaster.profile.device.memory_bytes
        persists = self._forecaster.framework.gradients_persist
        for mbs in np.unique(at["mbs"]):
            rows = np.flatnonzero(at["mbs"] == mbs)
            if full:
                closed = np.isin(way[rows], list(full))
                one = self._space.choices.global_batch_size == at["dp"][rows] * mbs
                rows = rows[~closed | (one & (not persists))]
            if not len(rows):
                continue
            key = self._price(rows, way[rows])
            priced = rows[key >= 0]
            self._evaluate(priced, key[key >= 0])
            for number in np.unique(way[priced]):
                mine = priced[way[priced] == number]
                if self._space.memory_bytes[mine].min() > capacity:
                    full.add(int(number))

    def _price(self, rows: IntArray, way: IntArray) -> IntArray:
        """Number of each row's unit table, -1 where the model cannot be split so (its reason is counted)."""
        self._tables, self._stages = [], {}
        key = np.full(len(rows), -1, dtype=np.int64)
        for number in np.unique(way):
            mine = np.flatnonzero(way == number)
            try:
                table = unit_table(self._forecaster, self._space.plan(int(rows[mine[0]])))
            except PlanError as error:
                self._space.n_excluded[str(error).split(":")[0]] += len(mine)
                continue
            key[mine] = len(self._tables)
            self._tables.append(table)
        return key

    def _evaluate(self, rows: IntArray, key: IntArray) -> None:
        at = self._columns
        cuts = at["pp"][rows] * 100_000 + at["vpp"][rows]
        for cut in np.unique(cuts):
            mine = np.flatnonzero(cuts == cut)
            pp, vpp = divmod(int(cut), 100_000)
            largest = max(1, _AT_ONCE // (pp * vpp))
            for start in range(0, len(mine), largest):
                part = mine[start : start + largest]
                self._one_cut(rows[part], key[part], pp, vpp)

    def _one_cut(self, rows: IntArray, key: IntArray, pp: int, vpp: int) -> None:
        at, space = self._columns, self._space
        names = np.stack([key, *(at[name][rows] for name in _CONFIG)])
        _, first, config = np.unique(names, axis=1, return_index=True, return_inverse=True)
        config = config.reshape(-1)
        configs = self._configs(rows[first], key[first])
        columns = self._columns_of(configs.key, pp * vpp, pp)
        shape = (len(first), vpp, pp)
        stage = {name: columns[:, i, :].reshape(shape) for i, name in enumerate(STAGE_COLUMNS)}
        stages = self._work(configs, stage)
        ends = tails(self._forecaster, configs, stage, stages.backward_s)
        held = stage["elements"] + stage["copied_on_rank"]
        sizes = StageBytes(
            saved=stage["saved_bytes"],
            appearing=stage["appearing_bytes"],
            standing=stage["standing_bytes"],
            elements=held,
            largest=stage["largest_elements"],
        )
        for schedule in np.unique(at["schedule"][rows]):
            kind = kind_of(space.choices.schedules[schedule], vpp)
            mine = np.flatnonzero(at["schedule"][rows] == schedule)
            bound, estimate = self._times(configs, stages, ends, kind)
            memory = peak_bytes(
                sizes,
                held_bytes(stage["saved_bytes"], kind, configs.num_microbatches),
                framework=self._forecaster.framework,
                optimizer=self._forecaster.optimizer,
                zero_stage=configs.zero,
                dp=configs.dp,
                shard=configs.shard,
                num_microbatches=configs.num_microbatches,
                looped=self._looped,
            )
            space.bound_s[rows[mine]] = bound[config[mine]] + self._step_s
            space.estimate_s[rows[mine]] = estimate[config[mine]] + self._step_s
            space.memory_bytes[rows[mine]] = memory[config[mine]]

    def _times(
        self, configs: Configs, stages: Stages, ends: Tails, kind: str
    ) -> tuple[FloatArray, FloatArray]:
        bound = step_bound_s(stages, kind, ends.bound_s, ends.before_s)
        estimate = step_bound_s(stages, kind, ends.estimate_s, ends.before_s)
        sharded = np.flatnonzero((configs.zero == 3) & (configs.dp > 1))
        if len(sharded):
            found = sharded_step(self._forecaster, configs, sharded, self._tables, ends)
            bound[sharded] = estimate[sharded] = found
        return bound, estimate

    def _configs(self, rows: IntArray, key: IntArray) -> Configs:
        at, choices = self._columns, self._space.choices
        ranks = self._forecaster.profile.network
        per_node = 1 if ranks is None else ranks.ranks_per_node
        layouts = np.stack([at[name][rows] for name in ("tp", "cp", "ep", "dp", "dp_shard", "inside")])
        _, first, group = np.unique(layouts, axis=1, return_index=True, return_inverse=True)
        dp, zero, dp_shard = at["dp"][rows], at["zero"][rows], at["dp_shard"][rows]
        return Configs(
            key=key,
            num_microbatches=choices.global_batch_size // (dp * at["mbs"][rows]),
            dp=dp,
            replicas=dp * at["cp"][rows],
            zero=zero,
            shard=np.where(zero > 0, np.where(dp_shard > 0, dp_shard, dp), 1),
            groups=[axis_groups(self._space.plan(int(rows[i])), per_node) for i in first],
            group=group.reshape(-1),
            tp=at["tp"][rows],
            sp=at["sp"][rows],
        )

    def _columns_of(self, keys: IntArray, n_stages: int, n_ranks: int) -> FloatArray:
        """Stage columns of each config, shape [n, n_columns, n_stages]."""
        framework = self._forecaster.framework
        used, where = np.unique(keys, return_inverse=True)
        found = []
        for key in used:
            at = (int(key), n_stages, n_ranks)
            if at not in self._stages:
                self._stages[at] = stage_rows(self._tables[at[0]], n_stages, n_ranks, framework.stages)
            found.append(self._stages[at])
        return np.stack(found)[where.reshape(-1)]

    def _work(self, configs: Configs, stage: dict[str, FloatArray]) -> Stages:
        forecaster = self._forecaster
        pp = stage["forward_s"].shape[2]
        action_s = host_cost_s(forecaster.profile, "pipeline_action_s") if pp > 1 else 0.0
        several = (configs.num_microbatches > 1)[:, None, None]
        return Stages(
            forward_s=stage["forward_s"] + action_s,
            input_s=stage["input_s"] + action_s,
            weight_s=stage["weight_s"],
            again_s=np.where(several, stage["accumulate_s"], 0.0),
            send_s=self._send_s(configs, stage["send_bytes"])
            if pp > 1
            else np.zeros_like(stage["send_bytes"]),
            num_microbatches=configs.num_microbatches,
            p2p_overlap=forecaster.framework.overlap_p2p,
        )

    def _send_s(self, configs: Configs, send_bytes: FloatArray) -> FloatArray:
        """As `predict.assemble` prices handing activations on: in slices that the next stage gathers."""
        forecaster = self._forecaster
        sliced = (configs.sp == 0) & forecaster.framework.scatter_p2p & (configs.tp > 1)
        slices = np.where(sliced, configs.tp, 1)[:, None, None]
        send_s = configs.collective_s(forecaster, "p2p", send_bytes / slices, "pp")
        gathered = np.where(sliced[:, None, None], send_bytes, 0.0)
        return send_s + configs.collective_s(forecaster, "all_gather", gathered, "tp")
