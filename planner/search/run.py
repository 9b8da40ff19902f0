"""The search: all plans by closed forms, the promising ones by the event engine, best first."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.closed_form import Evaluated, evaluate
from costmodel.errors import InfeasibleError, PlanError
from costmodel.predict import Prediction
from costmodel.predict.twin import Twin, answers_to
from planner.certainty import probability_faster
from planner.search.compare import pareto_front, why_slower
from planner.search.nearest import nearest_change
from planner.search.result import RankedPlan, SearchResult
from planner.search.space import SearchOptions, choices_of

if TYPE_CHECKING:
    from costmodel.graph import ModelGraph
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster

__all__ = ["search"]

_MOST = 256
"""Plans given to the event engine at most."""
_FRONT = 4
"""Plans of the front of time and memory that are given to it besides."""
_MOST_ACTIONS = 30_000
"""A step of more actions takes the engine long; the front leaves it out."""
_ROUNDING = 1e-9
_TOO_LARGE = "does not fit the device's memory"


def search(
    forecaster: Forecaster,
    *,
    n_devices: int,
    global_batch_size: int,
    options: SearchOptions | None = None,
    top: int = 12,
    processes: int = 1,
) -> SearchResult:
    """Rank the feasible plans of the space; the first `top` are certain to be priced by the event engine.

    Every plan has a time that it cannot beat. Plans are priced in the order of those bounds until the next
    bound lies above the best time found: then no plan left can be the first.

    `processes`: above 1, a fork of this process takes a share of the work where that is safe (`Twin`); the
    result is the same. Raises InfeasibleError with the nearest feasible change where nothing fits.
    """
    options = options or SearchOptions()
    with _collector_paused(), Twin(forecaster, wanted=processes > 1) as twin:
        if twin.wanted:
            _trace_elsewhere(forecaster, twin, min(options.max_micro_batch_size, global_batch_size))
        return _search(forecaster, n_devices, global_batch_size, options, top, twin)


def _trace_elsewhere(forecaster: Forecaster, twin: Twin, most: int) -> None:
    """Have another process take the traces that micro-batches of up to `most` need: the one that knows the
    model alone, else the twin, all but that of one sample."""
    graphs = forecaster.graphs
    larger = graphs.untraced if most > 2 else graphs.untraced[: most - 1]
    if (first := graphs.elsewhere(1)) is not None:
        graphs.expect(1, first)
        for size in larger:
            graphs.expect(size, graphs.elsewhere(size))
        return
    for size in larger:
        graphs.expect(size, partial(_first, twin.ask_all(_traced, [size])))


def _first(take: Callable[[], Any]) -> Any:
    answers = take()
    return answers and answers[0]


def _traced(forecaster: Forecaster, size: int) -> ModelGraph:
    traced: ModelGraph = forecaster.graphs.traced(size)
    return traced


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
    forecaster: Forecaster,
    n_devices: int,
    global_batch_size: int,
    options: SearchOptions,
    top: int,
    twin: Twin,
) -> SearchResult:
    start = time.perf_counter()
    space = evaluate(forecaster, choices_of(forecaster, n_devices, global_batch_size, options), twin)
    fits = space.fits(forecaster.profile.device.memory_bytes)
    excluded = dict(space.n_excluded)
    if too_large := space.n_runnable - int(fits.sum()):
        excluded[_TOO_LARGE] = too_large
    if not fits.any():
        raise InfeasibleError(nearest_change(forecaster, space, options, excluded))
    rows = np.flatnonzero(fits)
    every = len(rows) <= options.exhaustive_below
    order = rows[np.lexsort((space.memory_bytes[rows], space.bound_s[rows]))]
    front = _front(space, rows)
    certain = dict.fromkeys([*(int(row) for row in (order if every else order[:top])), *front])
    if forecaster.graphs.expected:  # no larger micro-batch was priced: the twin does not know the first graph
        twin.renew()
    known = dict(zip(certain, _predictions(space, list(certain), twin), strict=True))
    checked, proven = _best_first(forecaster, space, order, top, every, known)
    for row in front:
        if row not in checked:
            _check(forecaster, space, row, checked, known)
    found = sorted(
        (p for p in checked.values() if p is not None and p.fits),
        key=lambda p: (p.step_time_s, p.peak_memory_bytes, str(p.plan)),
    )
    for row, prediction in checked.items():  # what the closed forms let pass and the engine did not
        if prediction is None or not prediction.fits:
            reason = _TOO_LARGE if prediction is not None else str(known[row]).split(":")[0]
            excluded[reason] = excluded.get(reason, 0) + 1
    if not found:
        raise InfeasibleError(nearest_change(forecaster, space, options, excluded))
    best = found[0]
    return SearchResult(
        n_considered=space.n_considered,
        n_excluded=excluded,
        n_feasible=len(rows) - len(checked) + len(found),
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


def _predictions(space: Evaluated, rows: list[int], twin: Twin) -> list[Prediction | PlanError]:
    """What the event engine says of the rows' plans, each of its own group."""
    return [found for (found,) in twin.share(_predicted, [[space.plan(row)] for row in rows])]


def _predicted(forecaster: Forecaster, plan: Plan) -> Prediction:
    return forecaster.forecast(plan).prediction


def _best_first(
    forecaster: Forecaster,
    space: Evaluated,
    order: np.ndarray,
    top: int,
    every: bool,
    known: dict[int, Prediction | PlanError],
) -> tuple[dict[int, Prediction | None], bool]:
    """Predictions of the rows whose bound is low enough, and whether no other can be the first."""
    checked: dict[int, Prediction | None] = {}
    times: list[float] = []
    for position, row in enumerate(order):
        if not every and len(times) >= top:
            bound = float(space.bound_s[row])
            if bound > min(times) * (1.0 + _ROUNDING):
                return checked, True
            if position >= _MOST:
                return checked, False
        prediction = _check(forecaster, space, int(row), checked, known)
        if prediction is not None and prediction.fits:
            times.append(prediction.step_time_s)
    return checked, True


def _check(
    forecaster: Forecaster,
    space: Evaluated,
    row: int,
    checked: dict[int, Prediction | None],
    known: dict[int, Prediction | PlanError],
) -> Prediction | None:
    if row not in known:
        known[row] = answers_to(forecaster, _predicted, [space.plan(row)])[0]
    found = known[row]
    checked[row] = None if isinstance(found, PlanError) else found
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
