"""Each row of a published table beside its forecast."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from costmodel.errors import ForeshardError, InputFileError
from costmodel.graph import GraphStore, leave_compiler_unloaded
from costmodel.hardware.cores import usable_cores
from costmodel.hardware.device import product_flop_per_s
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from costmodel.predict.inference import InferenceForecaster
from planner.validation.baseline import no_skill_step_s
from planner.validation.environment import software
from planner.validation.published.conventions import Sizes, from_step_time
from planner.validation.published.inference import predict_inference
from planner.validation.published.labels import MODEL_COLUMNS, plan_labels, row_labels
from planner.validation.published.memory import METRIC, memory_row
from planner.validation.published.model_map import RowModel, row_model
from planner.validation.published.rows import PublishedRow, read_rows
from planner.validation.published.setting import (
    INFERENCE_TASKS,
    counted_step_share,
    heavier_plans,
    overfull,
    row_arguments,
    row_framework,
    row_hardware,
    row_plan,
)
from planner.validation.reliability import reliability
from planner.validation.scoring import Report, ScoredRow, shares_of, summarise

__all__ = ["metric_of_step", "validate_published"]

_MIN_GROUP = 4
_TRACE_COLUMNS = ("task", "dtype", "flash_attention", "framework", "gpu")
_ROWS_WORTH_WORKERS = 40
_TRACE_ROWS = 10
"""Tracing a model in one type takes about as long as pricing so many rows."""
_IMPORTED_BY_TRACES = ("costmodel.graph.tracing", "transformers.modeling_utils")


def validate_published(path: Path, *, limit: int | None = None) -> Report:
    """Forecast every training row of the table with shipped profiles; other rows say why they are skipped.

    Raises InputFileError where the table cannot be read or holds no row.
    """
    rows = _scored(list(read_rows(path, limit=limit)))
    if not rows:
        raise InputFileError(f"{path}: holds no row; the README lists what a table of runs has")
    times = [row for row in rows if row.metric != METRIC]
    memory = [row for row in rows if row.metric == METRIC]
    report = Report.of(times, by=("source", "gpu", "family", "task"), min_group=_MIN_GROUP)
    # memory has its own summary: its errors say nothing of times
    summary = [replace(part, by=f"memory {part.by}") for part in summarise(memory, ("source",))]
    return Report(
        rows=(*memory, *times),
        summary=(*report.summary, *(summary if memory else ())),
        details={
            "reliability": reliability(times),
            "table": {"name": path.name, "rows": len(times)},
            "environment": software(),
        },
    )


def _scored(rows: Sequence[PublishedRow]) -> list[ScoredRow]:
    """Every row's score, in order. Rows of one model go to one process: they share its traces."""
    models: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        models.setdefault(tuple(row.text(column) for column in MODEL_COLUMNS), []).append(number)
    shares = [sorted(numbers, key=lambda n: _traced_as(rows[n])) for numbers in models.values()]
    # the longest first: what is left for the end is short, so that processes end together
    shares.sort(key=lambda share: _work([rows[n] for n in share]), reverse=True)
    workers = min(usable_cores(), len(shares))
    parts = [[rows[n] for n in share] for share in shares]
    if workers < 2 or len(rows) < _ROWS_WORTH_WORKERS:
        scored = [_score_all(part) for part in parts]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin) as pool:
            scored = list(pool.map(_score_all, parts))
    found = {
        n: row for share, part in zip(shares, scored, strict=True) for n, row in zip(share, part, strict=True)
    }
    return [scored for number in range(len(rows)) for scored in found[number]]


def _begin() -> None:
    """Start a process made for scoring: what it imports is left out of the collections of garbage that traces
    bring about, which would walk it again and again."""
    leave_compiler_unloaded()
    with suppress(ImportError):
        for name in _IMPORTED_BY_TRACES:
            import_module(name)
    gc.collect()
    gc.freeze()


def _traced_as(row: PublishedRow) -> tuple[str, ...]:
    """Neighbours in this order share what was traced last."""
    return tuple(row.text(column) for column in _TRACE_COLUMNS)


def _work(rows: Sequence[PublishedRow]) -> int:
    """About how long the rows of one model take, in rows of a model already traced."""
    traces = {(row.text("task"), row.text("dtype"), row.text("flash_attention")) for row in rows}
    return len(rows) + _TRACE_ROWS * len(traces)


def _score_all(rows: Sequence[PublishedRow]) -> list[list[ScoredRow]]:
    cache = _Cache()
    return [_score(row, cache) for row in rows]


class _Cache:
    """Forecasters by what makes them differ, and the traces they share."""

    def __init__(self) -> None:
        self.graphs = GraphStore()
        self.training: dict[str, Forecaster] = {}
        self.inference: dict[str, InferenceForecaster] = {}


def _score(row: PublishedRow, cache: _Cache) -> list[ScoredRow]:
    """The score of the row's metric, and of its memory where it gives that."""
    labels = row_labels(row)
    group = "/".join(row.text(k) for k in ("source", "model_name", "n_gpus", "global_batch", "seq_len"))
    source = row.id.rpartition("-")[0] or row.text("source")
    metric = row.metric

    name, measured = metric or ("none", None)
    scored_as = partial(ScoredRow, id=row.id, source=source, group=group)

    def skipped(reason: str) -> list[ScoredRow]:
        return [scored_as(metric=name, measured=measured, skipped=reason, labels=labels)]

    task = row.text("task")
    if metric is None and (row.number(METRIC) is None or task != "train"):
        return skipped("the row gives no metric")
    if task not in ("train", *INFERENCE_TASKS):
        return skipped(f"task {task!r} is none of train, {', '.join(INFERENCE_TASKS)}")
    plan = row_plan(row)
    if isinstance(plan, str):
        return skipped(plan)
    try:
        framework = row_framework(row)
        model = row_model(row, vocab_multiple=framework.vocab_multiple * plan.tp)
        if isinstance(model, str):
            return skipped(model)
        if task != "train":
            answer = predict_inference(row, plan, model, name, cache=cache.inference, graphs=cache.graphs)
            if isinstance(answer, str):
                return skipped(answer)
            return [
                scored_as(
                    metric=name,
                    measured=measured,
                    predicted=answer.value,
                    low=answer.low,
                    high=answer.high,
                    labels=labels | plan_labels(row, plan, row_hardware(row)),
                    baseline_value=answer.baseline_value,
                    breakdown=answer.breakdown,
                )
            ]
        prediction, forecaster = _predict(row, plan, model, cache)
        plan = prediction.plan
    except ForeshardError as error:
        return skipped(str(error))
    labels = labels | plan_labels(row, plan, forecaster.profile)
    memory = memory_row(row, prediction)
    found = (
        []
        if memory is None
        else [
            scored_as(
                metric=METRIC,
                measured=memory.measured,
                predicted=memory.predicted,
                low=memory.low,
                high=memory.high,
                labels=labels,
            )
        ]
    )
    if metric is None:
        return found or skipped("the row gives no metric")
    convert = metric_of_step(row, plan, model, forecaster, name)
    values = [convert(s) for s in (prediction.step_time_low_s, prediction.step_time_high_s)]
    scored = scored_as(
        metric=name,
        measured=measured,
        predicted=convert(prediction.step_time_s),
        low=min(values),
        high=max(values),
        labels=labels,
        baseline_value=convert(no_skill_step_s(forecaster, plan, dtype=row.text("dtype", "fp16"))),
        breakdown=shares_of(prediction.breakdown_s),
        loadings={
            key: seconds / prediction.step_time_s
            for key, seconds in zip(prediction.errors.keys, prediction.errors.seconds, strict=True)
        },
    )
    return [scored, *found]


def _predict(row: PublishedRow, plan: Plan, model: RowModel, cache: _Cache) -> tuple[Prediction, Forecaster]:
    key, arguments = row_arguments(row, model)
    if key not in cache.training:
        cache.training[key] = Forecaster(**arguments(), graphs=cache.graphs)
    forecaster = cache.training[key]
    prediction = forecaster.forecast(plan).prediction
    if _is_overfull(prediction):
        for heavier in heavier_plans(row, plan):
            other = forecaster.forecast(heavier).prediction
            if other.fits:
                return other, forecaster
    return prediction, forecaster


def _is_overfull(prediction: Prediction) -> bool:
    size_bytes = prediction.device_memory_bytes
    return overfull(max(m.device_bytes(size_bytes) for m in prediction.memory), size_bytes)


def metric_of_step(
    row: PublishedRow, plan: Plan, model: RowModel, forecaster: Forecaster, metric: str
) -> Callable[[float], float]:
    """From a step time in seconds to the row's metric, as its source counts it."""
    sizes = Sizes(
        batch=plan.global_batch_size,
        seq=model.seq_len,
        layers=row.integer("layers", 1),
        hidden=row.integer("hidden", 1),
        vocab=model.vocab,
        n_parameters=forecaster.graph(plan.micro_batch_size).n_parameters,
        model_flop=forecaster.model_flop(plan.micro_batch_size) * plan.global_batch_size,
        recompute=plan.recompute,
    )
    peak = product_flop_per_s(forecaster.profile.device, row.text("dtype", "fp16"))
    share = counted_step_share(row, plan.global_batch_size)
    if metric == "iter_time_s" and (batch := row.integer("global_batch")):
        share *= batch / plan.global_batch_size  # where the batch was moved to one that the replicas divide

    def convert(step_time_s: float) -> float:
        return from_step_time(
            metric,
            step_time_s * share,
            sizes=sizes,
            n_devices=plan.world_size,
            convention=row.text("flops_convention"),
            peak_flop_per_s=peak,
        )

    return convert
