"""Each row of a published table beside its forecast."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from costmodel.errors import ForeshardError, InputFileError
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from planner.validation.published.conventions import Sizes, from_step_time
from planner.validation.published.inference import InferenceCache, predict_inference
from planner.validation.published.memory import METRIC, memory_row
from planner.validation.published.model_map import RowModel, row_model
from planner.validation.published.rows import PublishedRow, read_rows
from planner.validation.published.setting import INFERENCE_TASKS, row_arguments, row_framework, row_plan
from planner.validation.reliability import PLAN, PROBLEM, reliability
from planner.validation.scoring import Report, ScoredRow, summarise

__all__ = ["metric_of_step", "validate_published"]

_MIN_GROUP = 4
_MODEL_COLUMNS = ("model_family", "layers", "hidden", "ffn_hidden", "seq_len", "framework", "gpu", "dtype")
_PROBLEM_COLUMNS = (*_MODEL_COLUMNS, "model_name", "heads", "vocab", "framework_version", "flash_attention")
_ROWS_WORTH_WORKERS = 40
_SHARES_PER_WORKER = 2
"""Shares are taken as workers get free; more of them would trace a model's siblings more often."""


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
        details={"reliability": reliability(times)},
    )


def _scored(rows: Sequence[PublishedRow]) -> list[ScoredRow]:
    """Every row's score, in order. Rows of one model go to one process: they share its traces."""
    models: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        models.setdefault(tuple(row.text(column) for column in _MODEL_COLUMNS), []).append(number)
    workers = min(os.cpu_count() or 1, len(models))
    if workers < 2 or len(rows) < _ROWS_WORTH_WORKERS:
        return [scored for found_ in _score_all(rows) for scored in found_]
    shares: list[list[int]] = [[] for _ in range(workers * _SHARES_PER_WORKER)]
    for numbers in sorted(models.values(), key=len, reverse=True):
        min(shares, key=len).extend(numbers)
    found: dict[int, list[ScoredRow]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        scored = pool.map(_score_all, [[rows[n] for n in share] for share in shares])
        for share, results in zip(shares, scored, strict=True):
            found.update(zip(share, results, strict=True))
    return [scored for number in range(len(rows)) for scored in found[number]]


def _score_all(rows: Sequence[PublishedRow]) -> list[list[ScoredRow]]:
    cache = _Cache()
    return [_score(row, cache) for row in rows]


class _Cache:
    """Forecasters by what makes them differ."""

    def __init__(self) -> None:
        self.training: dict[str, Forecaster] = {}
        self.inference: InferenceCache = {}


def _score(row: PublishedRow, cache: _Cache) -> list[ScoredRow]:
    """The score of the row's metric, and of its memory where it gives that."""
    labels = {"gpu": row.text("gpu"), "family": row.text("model_family"), "task": row.text("task")}
    group = "/".join(row.text(k) for k in ("source", "model_name", "n_gpus", "global_batch", "seq_len"))
    source = row.id.rpartition("-")[0] or row.text("source")
    metric = row.metric

    def skipped(reason: str) -> list[ScoredRow]:
        name = metric[0] if metric else "none"
        value = metric[1] if metric else None
        scored = ScoredRow(
            id=row.id, source=source, group=group, metric=name, measured=value, skipped=reason, labels=labels
        )
        return [scored]

    if metric is None:
        return skipped("the row gives no metric")
    task = row.text("task")
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
            answer = predict_inference(row, plan, model, metric[0], cache.inference)
            if isinstance(answer, str):
                return skipped(answer)
            low, value, high = answer
            scored = ScoredRow(
                id=row.id,
                source=source,
                group=group,
                metric=metric[0],
                measured=metric[1],
                predicted=value,
                low=low,
                high=high,
                labels=labels,
            )
            return [scored]
        prediction, forecaster = _predict(row, plan, model, cache.training)
    except ForeshardError as error:
        return skipped(str(error))
    name, measured = metric
    convert = metric_of_step(row, plan, model, forecaster, name)
    values = [convert(s) for s in (prediction.step_time_low_s, prediction.step_time_high_s)]
    scored = ScoredRow(
        id=row.id,
        source=source,
        group=group,
        metric=name,
        measured=measured,
        predicted=convert(prediction.step_time_s),
        low=min(values),
        high=max(values),
        labels={**labels, PLAN: str(plan), PROBLEM: "/".join(row.text(k) for k in _PROBLEM_COLUMNS)},
        loadings={
            key: seconds / prediction.step_time_s
            for key, seconds in zip(prediction.errors.keys, prediction.errors.seconds, strict=True)
        },
    )
    memory = memory_row(row, prediction, scored)
    return [scored] if memory is None else [scored, memory]


def _predict(
    row: PublishedRow, plan: Plan, model: RowModel, cache: dict[str, Forecaster]
) -> tuple[Prediction, Forecaster]:
    key, arguments = row_arguments(row, model)
    if key not in cache:
        cache[key] = Forecaster(**arguments)
    return cache[key].forecast(plan).prediction, cache[key]


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
        n_parameters=forecaster.graph(1).n_parameters,
        model_flop=forecaster.model_flop() * plan.global_batch_size,
        recompute=plan.recompute,
    )
    peaks = forecaster.profile.device.peak_flop_per_s
    peak = peaks.get(row.text("dtype")) or peaks.get("fp16") or max(peaks.values())

    def convert(step_time_s: float) -> float:
        return from_step_time(
            metric,
            step_time_s,
            sizes=sizes,
            n_devices=plan.world_size,
            convention=row.text("flops_convention"),
            peak_flop_per_s=peak,
        )

    return convert
