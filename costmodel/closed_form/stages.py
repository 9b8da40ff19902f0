"""Units summed up into pipeline stages: seconds, bytes and elements of each stage, as arrays."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.units import COLUMNS, UnitTable, keep_table, unit_table
from costmodel.estimate import FloatArray, IntArray
from costmodel.predict.twin import answers_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from costmodel.errors import PlanError
    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.twin import Twin

__all__ = ["STAGE_COLUMNS", "Cuts", "cut_tables", "stage_rows"]

Cuts = tuple[tuple[int, int], ...]
"""(stages, ranks) that a pipeline is cut into."""
_SUMS = (
    "forward_s",
    "input_s",
    "weight_s",
    "accumulate_s",
    "saved_bytes",
    "elements",
    "n_tensors",
    "expert_elements",
    "frozen_elements",
    "frozen_expert_elements",
    "unused_elements",
)
_SUMMED = np.array([COLUMNS.index(name) for name in _SUMS])
STAGE_COLUMNS = (
    *_SUMS,
    "send_bytes",
    "appearing_bytes",
    "standing_bytes",
    "largest_elements",
    "second_elements",
    "largest_trained",
    "loose_elements",
    "block_elements",
    "pair_elements",
    "pair_trained",
    "copied_elements",
    "copied_on_rank",
    "frozen_copied_on_rank",
)
"""Sums over a stage's units, and: `send_bytes` to the next stage; the highest level while one micro-batch
passes, where gradients appear (`appearing_bytes`) and where they stand already (`standing_bytes`), see
`predict.peak.walk_stage`; elements of the two largest units, and the most trained ones of a unit;
elements outside blocks, of the largest block, the largest two in a row, their most trained ones; elements of
copies of parameters that another stage owns (`copied_elements`), or another rank, counted with the first
stage of the rank that uses them (`copied_on_rank`, and those of frozen ones)."""


def cut_tables(
    forecaster: Forecaster, ways: Sequence[tuple[Plan, Cuts]], twin: Twin | None
) -> list[UnitTable | PlanError]:
    """The unit table of each plan with the stage columns of some cuts, or why there is none; shared with the
    twin. Plans that split the model alike stand one after another."""
    if twin is None:
        return answers_to(forecaster, _cut_table, ways)
    groups = [list(group) for _, group in groupby(ways, _split)]
    tables = [table for group in twin.share(_cut_table, groups) for table in group]
    for (plan, _), table in zip(ways, tables, strict=True):
        if isinstance(table, UnitTable):
            keep_table(forecaster, plan, table)
    return tables


def _split(way: tuple[Plan, Cuts]) -> tuple[int | bool, ...]:
    plan = way[0]
    return (plan.micro_batch_size, plan.tp, plan.sequence_parallel, plan.cp, plan.ep, plan.experts_over)


def _cut_table(forecaster: Forecaster, way: tuple[Plan, Cuts]) -> UnitTable:
    plan, cuts = way
    table = unit_table(forecaster, plan)
    _add_stages(table, cuts, forecaster.framework.stages)
    return table


def stage_rows(table: UnitTable, n_stages: int, n_ranks: int, stages: str) -> FloatArray:
    """Columns of every stage, shape [n_columns, n_stages]; stage s lies on rank s % n_ranks."""
    _add_stages(table, ((n_stages, n_ranks),), stages)
    return table.stages[n_stages, n_ranks]


def _add_stages(table: UnitTable, cuts: Cuts, stages: str) -> None:
    """Fill in the table's stage columns of some cuts; those into as many stages share all but two."""
    ranks_of: dict[int, list[int]] = {}
    for n_stages, n_ranks in cuts:
        if (n_stages, n_ranks) not in table.stages:
            ranks_of.setdefault(n_stages, []).append(n_ranks)
    for n_stages, among in ranks_of.items():
        starts = np.array(table.starts(n_stages, stages))
        stage_of = np.searchsorted(starts, np.arange(table.n_units), side="right") - 1
        shared = _rows(table, starts, stage_of)
        for n_ranks in among:
            copied = [
                _copied(tied, stage_of, stage_of % n_ranks, n_stages)
                for tied in (table.tied, table.tied_frozen)
            ]
            table.stages[n_stages, n_ranks] = np.array([*shared, *copied])


def _rows(table: UnitTable, starts: IntArray, stage_of: IntArray) -> list[FloatArray]:
    """All columns but the last two, which depend on the ranks too."""
    ends = np.append(starts[1:], table.n_units)
    rows = [*np.add.reduceat(table.alone[_SUMMED], starts, axis=1)]
    send = table["output_bytes"][ends - 1].copy()
    send[-1] = 0.0
    rows.append(send)
    rows += _peaks(table, starts, ends)
    trained = table["elements"]
    rows += _largest(trained + table["frozen_elements"], stage_of, starts, ends)
    rows.append(np.maximum.reduceat(trained, starts))
    stored = trained + table["frozen_elements"]
    rows.append(np.add.reduceat(np.where(table.is_block, 0.0, stored), starts))
    blocks, gradients = (np.where(table.is_block, of, 0.0) for of in (stored, trained))
    rows.append(np.maximum.reduceat(blocks, starts))
    rows += [np.maximum.reduceat(_with_previous(of, starts), starts) for of in (blocks, gradients)]
    rows.append(_copied(table.tied, stage_of, stage_of, len(starts)))
    return rows


def _with_previous(elements: FloatArray, starts: IntArray) -> FloatArray:
    """Of each unit and the one before it in its stage together."""
    previous = np.concatenate([[0.0], elements[:-1]])
    previous[starts] = 0.0
    return np.asarray(elements + previous)


def _largest(elements: FloatArray, stage_of: IntArray, starts: IntArray, ends: IntArray) -> list[FloatArray]:
    """The largest and the second largest value of every stage; 0 where a stage has one unit."""
    descending = elements[np.lexsort((-elements, stage_of))]
    second = np.where(ends - starts > 1, descending[np.minimum(starts + 1, len(elements) - 1)], 0.0)
    return [descending[starts], second]


def _copied(
    tied: Sequence[tuple[str, int, int, int]], stage_of: IntArray, place_of: IntArray, n_stages: int
) -> FloatArray:
    """Elements of tied parameters, once for every place (stage or rank) of users that is not the owner's."""
    copied = np.zeros(n_stages)
    seen: set[tuple[str, int]] = set()
    for name, user, owner, elements in tied:
        place = int(place_of[user])
        if (owner < 0 or place_of[owner] != place) and (name, place) not in seen:
            seen.add((name, place))
            copied[stage_of[user]] += elements
    return copied


def _peaks(table: UnitTable, starts: IntArray, ends: IntArray) -> list[FloatArray]:
    """Highest levels of each stage, as `predict.peak.walk_stage` walks them."""
    saved = np.concatenate([[0.0], np.cumsum(table["saved_bytes"])])
    gradients = np.concatenate([[0.0], np.cumsum(table["gradient_bytes"])])
    up = np.maximum.reduceat(saved[:-1] + table["forward_bytes"], starts)
    appearing = saved[1:] - gradients[1:] + table["backward_bytes"]
    appearing = np.maximum.reduceat(appearing, starts) + gradients[ends]
    standing = np.maximum.reduceat(saved[1:] + table["accumulating_bytes"], starts)
    below = saved[starts]
    return [np.maximum(up, appearing) - below, np.maximum(up, standing) - below]
