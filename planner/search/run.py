"""The search: all plans by closed forms, the promising ones by the event engine, best first."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form import Evaluated, evaluate
from costmodel.errors import InfeasibleError, PlanError
from costmodel.predict import Prediction
from planner.certainty import probability_faster
from planner.search.compare import pareto_front, why_slower
from planner.search.nearest import nearest_change
from planner.search.result import RankedPlan, SearchResult
from planner.search.space import SearchOptions, choices_of

if TYPE_CHECKING:
    from costmodel.predict import Forecaster

__all__ = ["search"]

_MOST = 256
"""Plans given to the event engine at most."""
_FRONT = 4
"""Plans of the front of time and memory that are given to it besides."""
_MOST_ACTIONS = 30_000
"""A step of more actions takes the engine long; the front leaves it out."""
_ROUNDING = 1e-9


def search(
    forecaster: Forecaster,
    *,
    n_devices: int,
    global_batch_size: int,
    options: SearchOptions | None = None,
    top: int = 12,
) -> SearchResult:
    """Rank the feasible plans of the space; the first `top` are certain to be priced by the event engine.

    Every plan has a time that it cannot beat. Plans are priced in the order of those bounds until the next
    bound lies above the best time found: then no plan left can be the first.

    Raises InfeasibleError with the nearest feasible change where nothing fits.
    """
    with _collector_paused():
        return _search(forecaster, n_devices, global_batch_size, options or SearchOptions(), top)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A search makes millions of objects that live until it ends; looking for cycles among them takes a sixth
    of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _search(
    forecaster: Forecaster, n_devices: int, global_batch_size: int, options: SearchOptions, top: int
) -> SearchResult:
    start = time.perf_counter()
    space = evaluate(forecaster, choices_of(forecaster, n_devices, global_batch_size, options))
    capacity = forecaster.profile.device.memory_bytes
    fits = space.memory_bytes <= capacity
    excluded = dict(space.n_excluded)
    if too_large := space.n_runnable - int(fits.sum()):
        excluded["does not fit the device's memory"] = too_large
    if not fits.any():
        raise InfeasibleError(nearest_change(forecaster, space, options, excluded))
    rows = np.flatnonzero(fits)
    every = len(rows) <= options.exhaustive_below
    checked, proven = _best_first(forecaster, space, rows, top, every)
    front = _front(space, rows)
    for row in front:
        if row not in checked:
            _check(forecaster, space, row, checked)
    found = sorted(
        (p for p in checked.values() if p is not None and p.fits),
        key=lambda p: (p.step_time_s, p.peak_memory_bytes, str(p.plan)),
    )
    if not found:
        raise InfeasibleError(nearest_change(forecaster, space, options, excluded))
    best = found[0]
    return SearchResult(
        n_considered=space.n_considered,
        n_excluded=excluded,
        n_feasible=len(rows),
        n_skipped=len(rows) - len(checked),
        proven=proven,
        search_time_s=time.perf_counter() - start,
        ranked=tuple(
            RankedPlan(
                prediction=p,
                probability_best=0.5 if p is best else probability_faster(p, best),
                why="" if p is best else why_slower(best, p),
            )
            for p in found
        ),
        pareto=pareto_front(found),
        space=space,
    )


def _best_first(
    forecaster: Forecaster, space: Evaluated, rows: np.ndarray, top: int, every: bool
) -> tuple[dict[int, Prediction | None], bool]:
    """Predictions of the rows whose bound is low enough, and whether no other can be the first."""
    order = rows[np.lexsort((space.memory_bytes[rows], space.bound_s[rows]))]
    checked: dict[int, Prediction | None] = {}
    times: list[float] = []
    for position, row in enumerate(order):
        if not every and len(times) >= top:
            bound = float(space.bound_s[row])
            if bound > min(times) * (1.0 + _ROUNDING):
                return checked, True
            if position >= _MOST:
                return checked, False
        prediction = _check(forecaster, space, int(row), checked)
        if prediction is not None and prediction.fits:
            times.append(prediction.step_time_s)
    return checked, True


def _check(
    forecaster: Forecaster, space: Evaluated, row: int, checked: dict[int, Prediction | None]
) -> Prediction | None:
    try:
        checked[row] = forecaster.forecast(space.plan(row)).prediction
    except PlanError as error:
        space.n_excluded[str(error).split(":")[0]] += 1
        checked[row] = None
    return checked[row]


def _front(space: Evaluated, rows: np.ndarray) -> list[int]:
    """Rows that no other beats in both estimate and memory, thinned out evenly, without the longest."""
    order = rows[np.lexsort((space.memory_bytes[rows], space.estimate_s[rows]))]
    memory = space.memory_bytes[order]
    lowest = np.minimum.accumulate(memory)
    on_front = order[np.concatenate([[True], memory[1:] < lowest[:-1]])]
    on_front = on_front[space.n_actions(on_front) <= _MOST_ACTIONS]
    if len(on_front) > _FRONT:
        on_front = on_front[np.unique(np.linspace(0, len(on_front) - 1, _FRONT).round().astype(int))]
    return [int(row) for row in on_front]
