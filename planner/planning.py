"""`plan`: the search as one call, with what may be asked of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodel.graph.elsewhere import Tracer
    from costmodel.predict import Forecaster, Prediction
    from planner.certainty import Deciding
    from planner.search import SearchOptions, SearchResult

__all__ = ["plan"]

_FRONT = ("step_time", "memory")


def plan(
    model: str,
    *,
    hardware: str,
    n_devices: int,
    global_batch_size: int,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    options: SearchOptions | None = None,
    top: int = 12,
    rank_of: str | None = None,
    explain: tuple[str, str] | None = None,
    objectives: Sequence[str] = _FRONT,
    prices: Mapping[str, float] | None = None,
    processes: int = 1,
    tracer: Tracer | None = None,
) -> SearchResult:
    """Rank the feasible plans for `n_devices`, at least the first `top` of them by the event engine.

    `rank_of`: a plan whose standing among them is asked for. `explain`: two plans; why the first beats the
    second, and what would have to change. `objectives`: of the Pareto front over the
    plans priced by the engine (see `planner.objectives`; money and energy are those of one step); `prices`:
    own prices of a device-hour by profile. `processes`: see `planner.search.search`; `tracer`: see
    `planner.api.forecaster`. Raises InfeasibleError where nothing fits.
    """
    from planner import api
    from planner.problem import Problem
    from planner.search import search

    asked = None if rank_of is None else api.parse_plan(rank_of).require_world_size(n_devices)
    made = api.forecaster(
        model,
        hardware=hardware,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=overrides,
        trust_remote_code=trust_remote_code,
        tracer=tracer,
    )
    # what a search of many seconds would end in an error about comes first
    front = None
    if tuple(objectives) != _FRONT:
        front = _front(objectives, made, hardware, prices, global_batch_size)
        front(())
    standing = None if asked is None else made.forecast(asked).prediction
    explanation = None
    if explain is not None:
        from planner.explaining import explain_pair

        explanation = explain_pair(made, *explain)
    found = search(
        made,
        n_devices=n_devices,
        global_batch_size=global_batch_size,
        options=options,
        top=top,
        processes=processes,
    )
    if front is not None:
        found = replace(found, pareto=front([r.prediction for r in found.ranked]))
    found = replace(
        found,
        problem=Problem(
            model=model,
            hardware=hardware,
            n_devices=n_devices,
            global_batch_size=global_batch_size,
            seq_len=seq_len,
            framework=framework,
            optimizer=optimizer,
            overrides=_as_typed(overrides),
            trust_remote_code=trust_remote_code,
        ),
        deciding=_deciding(made, found),
        explanation=explanation,
    )
    return found if standing is None else found.with_standing(standing)


def _front(
    objectives: Sequence[str],
    forecaster: Forecaster,
    hardware: str,
    prices: Mapping[str, float] | None,
    global_batch_size: int,
) -> Callable[[Sequence[Prediction]], tuple[Prediction, ...]]:
    """Plans -> those of their front. Raises UsageError where an objective is unknown or has no price."""
    from planner.objectives import Terms, pareto
    from planner.prices import require_price

    price = require_price(hardware, prices).usd_per_hour if "cost" in objectives else None
    terms = Terms(usd_per_hour=price, board_w=forecaster.profile.device.power_w, samples=global_batch_size)
    return partial(pareto, names=objectives, terms=terms)


def _deciding(forecaster: Forecaster, found: SearchResult) -> tuple[Deciding, ...]:
    """What to measure where the first plan and the next that differs from it cannot be told apart."""
    from planner.certainty import deciding_measurement, tie

    best = found.ranked[0].prediction
    for other in found.ranked[1:]:
        if not tie(best, other.prediction):
            continue
        if decides := deciding_measurement(best, other.prediction, forecaster):
            return decides
    return ()


def _as_typed(overrides: Sequence[str] | Mapping[str, Any] | None) -> tuple[str, ...]:
    """Overrides as `--set` takes them."""
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={value!r}" for key, value in overrides.items())
    return tuple(overrides or ())
