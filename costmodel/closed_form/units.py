"""What every unit of a model costs under one way of splitting it, as arrays over units in forward order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from costmodel.estimate import FloatArray, expected_max
from costmodel.partition.balanced import Partitions, even_partition
from costmodel.predict.placement import axis_groups
from costmodel.predict.units import Unit, accumulate_s, expand, expert_elements, two_ways

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster

__all__ = ["COLUMNS", "UnitTable", "keep_table", "unit_table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTable:
    """Seconds, bytes and elements of one micro-batch on one rank; every array has shape [n_units].

    `alone` holds columns of `COLUMNS` in that order, shape [n_columns, n_units].
    """

    alone: FloatArray
    kind: np.ndarray[tuple[int], np.dtype[np.int64]]
    """Number of the segment that each unit is an instance of."""
    is_block: np.ndarray[tuple[int], np.dtype[np.bool_]]
    tied: tuple[tuple[str, int, int, int], ...]
    """(name, unit that uses it, unit that owns it or -1, elements) of every use of a tied parameter that
    is trained."""
    tied_frozen: tuple[tuple[str, int, int, int], ...]
    """The same of those without gradients."""
    partitions: Partitions
    stages: dict[tuple[int, int], FloatArray] = field(default_factory=dict)
    """Stage columns by (stages, ranks), filled by `closed_form.stages`."""

    def __getitem__(self, name: str) -> FloatArray:
        return np.asarray(self.alone[COLUMNS.index(name)])

    @property
    def n_units(self) -> int:
        """Pieces a pipeline can be cut into."""
        return int(self.alone.shape[1])

    def starts(self, n_stages: int, stages: str) -> tuple[int, ...]:
        """First unit of each stage, as a forecast cuts them."""
        even = even_partition(np.flatnonzero(self.is_block).tolist(), n_stages, stages)
        return even or self.partitions.starts(n_stages)


COLUMNS = (
    "forward_s",
    "input_s",
    "weight_s",
    "accumulate_s",
    "saved_bytes",
    "forward_bytes",
    "backward_bytes",
    "accumulating_bytes",
    "gradient_bytes",
    "elements",
    "n_tensors",
    "expert_elements",
    "frozen_elements",
    "frozen_expert_elements",
    "unused_elements",
    "output_bytes",
)
"""`input_s` and `weight_s`: gradients of inputs (recomputation included) and of weights; `accumulate_s`:
adding a further micro-batch's gradients; the rest as in
`UnitCosts`, `SegmentMemory` and `Unit`."""


_TABLES: WeakKeyDictionary[Forecaster, dict[tuple[Any, ...], UnitTable]] = WeakKeyDictionary()


def unit_table(forecaster: Forecaster, plan: Plan) -> UnitTable:
    """Price every unit under the plan's tensor, sequence, context and expert axes, micro-batch and
    recomputation; once for each of these. Raises PlanError where the model cannot be split so."""
    known, key = _known(forecaster, plan)
    if key not in known:
        known[key] = _table(forecaster, plan)
    return known[key]


def keep_table(forecaster: Forecaster, plan: Plan, table: UnitTable) -> None:
    """Let the forecaster know a plan's table that another copy of it has made."""
    known, key = _known(forecaster, plan)
    known.setdefault(key, table)


def _known(forecaster: Forecaster, plan: Plan) -> tuple[dict[tuple[Any, ...], UnitTable], tuple[Any, ...]]:
    """The forecaster's tables, and the plan's key among them."""
    network = forecaster.profile.network
    groups = axis_groups(plan, 1 if network is None else network.ranks_per_node)
    key = (
        *(plan.micro_batch_size, plan.tp, plan.sequence_parallel, plan.cp, plan.ep, plan.recompute),
        plan.experts_over,
        *(groups[axis] for axis in ("tp", "cp", "ep")),
        plan.world_size if forecaster.profile.rank_log_sigma else 0,
    )
    return _TABLES.setdefault(forecaster, {}), key


def _table(forecaster: Forecaster, plan: Plan) -> UnitTable:
    units = expand(forecaster, plan)
    alone = plan.world_size == 1
    waiting = forecaster.profile.rank_log_sigma * expected_max(plan.world_size)
    keys = [(unit.segment, id(unit.costs)) for unit in units]
    one = dict(zip(keys, units, strict=True))
    rows = {key: _row(forecaster, unit, 0.0, 0.0 if alone else waiting) for key, unit in one.items()}
    seconds_of = {key: unit.seconds(1.0) for key, unit in one.items()}
    columns = np.array([rows[key] for key in keys]).T
    owners = {p.name: i for i, unit in enumerate(units) for p in unit.shard.parameters if not p.tied}
    tied: dict[bool, list[tuple[str, int, int, int]]] = {False: [], True: []}
    for i, unit in enumerate(units):
        for p in unit.shard.parameters:
            if p.tied:
                use = (p.name, i, owners.get(p.name, -1), int(np.prod(p.local_shape)))
                tied[not unit.trains(p)].append(use)
    return UnitTable(
        alone=columns,
        kind=np.array([unit.segment for unit in units]),
        is_block=np.array([unit.shard.local.is_block for unit in units]),
        tied=tuple(tied[False]),
        tied_frozen=tuple(tied[True]),
        partitions=Partitions([seconds_of[key] for key in keys]),
    )


def _row(forecaster: Forecaster, unit: Unit, utilisation: float, waiting: float) -> FloatArray:
    forward, backward = two_ways(unit.costs, utilisation, waiting)
    memory = unit.costs.memory
    elements = unit.elements
    found = {
        "forward_s": forward["forward"].total_s + forward["host"].total_s,
        "input_s": sum(backward[part].total_s for part in ("recompute", "backward_input", "host")),
        "weight_s": backward["backward_weight"].total_s,
        "accumulate_s": accumulate_s(forecaster, sum(elements)),
        "saved_bytes": memory.saved_bytes,
        "forward_bytes": memory.forward_bytes,
        "backward_bytes": memory.backward_bytes,
        "accumulating_bytes": memory.accumulating_bytes,
        "gradient_bytes": memory.gradient_bytes,
        "elements": sum(elements),
        "n_tensors": len(elements),
        "expert_elements": expert_elements([unit]),
        "frozen_elements": unit.stored_elements - sum(elements),
        "frozen_expert_elements": expert_elements([unit], frozen=True),
        "unused_elements": unit.unused_elements,
        "output_bytes": unit.shard.output_bytes,
    }
    return np.array([float(found[name]) for name in COLUMNS])
