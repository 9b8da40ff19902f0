"""Sweeps: many settings of one study, forecast one by one or on many workers, with the same results.

With joblib installed (the `parallel` extra) workers are joblib's, so that a backend which the caller has set
up runs them: `with joblib.parallel_config(backend="dask"):` around the call sends a sweep to a Dask cluster,
"ray" (after `ray.util.joblib.register_ray()`) to a Ray cluster. Without it processes of this machine do.

Each worker traces a model once and prices all its settings with it. Nothing is random and no setting sees
another, so results do not depend on the number of workers; they come back in the order asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from costmodel.errors import ForeshardError, InfeasibleError, UsageError
from costmodel.hardware.cores import usable_cores

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster, Prediction

__all__ = ["Outcome", "Setting", "backend", "best_plan", "fitted_plan", "forecast_all", "forecaster_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One question of a sweep. Plain values: it travels to other processes and machines."""

    model: str
    hardware: str
    n_devices: int
    global_batch_size: int
    seq_len: int | None = None
    framework: str = "pytorch"
    optimizer: str = "adamw"
    overrides: tuple[tuple[str, Any], ...] = ()
    factors: tuple[tuple[str, float], ...] = ()
    """Lever -> how much faster."""
    plan: str | None = None
    """Held, but for its data-parallel degree and batch; None: the best one is searched."""
    trust_remote_code: bool = False
    varied: tuple[tuple[str, Any], ...] = ()
    """What the study varies beside hardware and count, as asked: axis -> value."""

    @property
    def traced(self) -> tuple[Any, ...]:
        """What settings share that one forecaster prices."""
        return (
            self.model,
            self.hardware,
            self.seq_len,
            self.framework,
            self.optimizer,
            self.overrides,
            self.trust_remote_code,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a setting: a prediction, or why there is none."""

    prediction: Prediction | None
    reason: str = ""
    infeasible: bool = False
    """The reason is that nothing fits, not that the question was wrong."""


@lru_cache(maxsize=8)
def _forecaster(traced: tuple[Any, ...]) -> Forecaster:
    from planner import api

    model, hardware, seq_len, framework, optimizer, overrides, trust = traced
    return api.forecaster(
        model,
        hardware=hardware,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=dict(overrides),
        trust_remote_code=trust,
    )


@lru_cache(maxsize=16)
def _scaled(traced: tuple[Any, ...], factors: tuple[tuple[str, float], ...]) -> Forecaster:
    from planner.whatif.levers import scaled

    return scaled(_forecaster(traced), dict(factors))


def forecaster_of(setting: Setting) -> Forecaster:
    """The setting's forecaster; settings that share a trace share it. Raises UsageError."""
    return _scaled(setting.traced, setting.factors) if setting.factors else _forecaster(setting.traced)


def best_plan(forecaster: Forecaster, n_devices: int, global_batch_size: int) -> Prediction:
    """The fastest feasible plan. Raises InfeasibleError, UsageError."""
    from planner.search import search

    return search(forecaster, n_devices=n_devices, global_batch_size=global_batch_size).ranked[0].prediction


def fitted_plan(text: str, n_devices: int, global_batch_size: int) -> Plan:
    """The plan with as many replicas as fill the devices. Raises PlanError where it does not divide."""
    from costmodel.errors import PlanError
    from planner.api import parse_plan

    plan = parse_plan(text)
    inner = plan.tp * plan.pp * plan.cp
    if n_devices % inner:
        raise PlanError(
            f"plan {text!r}: tp({plan.tp}) * pp({plan.pp}) * cp({plan.cp}) = {inner} does not divide "
            f"{n_devices} devices; choose other counts or leave the plan to the search"
        )
    return plan.with_(dp=n_devices // inner, global_batch_size=global_batch_size)


def _forecast(setting: Setting) -> Outcome:
    try:
        forecaster = forecaster_of(setting)
        if setting.plan is None:
            prediction = best_plan(forecaster, setting.n_devices, setting.global_batch_size)
        else:
            plan = fitted_plan(setting.plan, setting.n_devices, setting.global_batch_size)
            prediction = forecaster.forecast(plan).prediction
    except (InfeasibleError, UsageError) as error:
        return Outcome(prediction=None, reason=str(error), infeasible=isinstance(error, InfeasibleError))
    return Outcome(prediction=prediction)


def _forecast_chunk(settings: Sequence[Setting]) -> list[Outcome]:
    return [_forecast(setting) for setting in settings]


def forecast_all(settings: Sequence[Setting], *, n_jobs: int = 1) -> list[Outcome]:
    """Outcome of each setting, in order. `n_jobs`: workers, as joblib counts them (-1: all processors).

    Raises UsageError where n_jobs is 0.
    """
    if n_jobs == 0:
        raise UsageError("--jobs 0: give a number of workers, or -1 for all processors")
    if n_jobs == 1 or len(settings) < 2:
        return _forecast_chunk(settings)
    order = sorted(range(len(settings)), key=lambda i: repr(settings[i].traced))
    each = math.ceil(len(settings) / _workers(n_jobs))
    chunks = [order[start : start + each] for start in range(0, len(order), each)]
    results = _map(_forecast_chunk, [[settings[i] for i in chunk] for chunk in chunks], n_jobs)
    outcomes = {
        i: outcome
        for chunk, found in zip(chunks, results, strict=True)
        for i, outcome in zip(chunk, found, strict=True)
    }
    return [outcomes[i] for i in range(len(settings))]


def _workers(n_jobs: int) -> int:
    if find_spec("joblib") is not None:
        import joblib

        return max(1, int(joblib.effective_n_jobs(n_jobs)))
    return n_jobs if n_jobs > 0 else max(1, usable_cores() + 1 + n_jobs)


def _map(work: Callable[[list[Setting]], T], chunks: list[list[Setting]], n_jobs: int) -> list[T]:
    if find_spec("joblib") is not None:
        import joblib

        return list(joblib.Parallel(n_jobs=n_jobs)(joblib.delayed(work)(chunk) for chunk in chunks))
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # spawned: torch's threads do not survive a fork
    with ProcessPoolExecutor(max_workers=_workers(n_jobs), mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, chunks))


@contextmanager
def backend(name: str | None) -> Iterator[None]:
    """joblib's backend of that name while the block runs; ray is registered with joblib first, and dask gets
    a client (of the scheduler that DASK_SCHEDULER_ADDRESS names, else of this machine).

    Raises ForeshardError where joblib or the backend is not installed.
    """
    if name is None:
        yield
        return
    if find_spec("joblib") is None:
        raise ForeshardError(f"--backend {name}: needs joblib; install foreshard[parallel]")
    import joblib

    client = None
    try:
        if name == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif name == "dask":
            from distributed import Client

            client = Client()
        chosen = joblib.parallel_config(backend=name)
    except (ImportError, ValueError) as error:
        raise ForeshardError(f"--backend {name}: joblib cannot use it ({error})") from error
    try:
        with chosen:
            yield
    finally:
        if client is not None:
            client.close()
