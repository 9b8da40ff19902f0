"""Each row of a table of LLM servers beside its forecasts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from costmodel.errors import ForeshardError, InputFileError
from costmodel.estimate import Z90
from costmodel.hardware.cores import usable_cores
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.predict.clients import serve_clients
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.passes import PassCosts
from planner.validation.published.rows import PublishedRow, read_rows
from planner.validation.scoring import Report, ScoredRow
from planner.validation.serving.setting import (
    as_launched,
    cache_room_bytes,
    served_config,
    serving_framework,
    serving_load,
    serving_ranks,
)

__all__ = ["COLUMNS", "METRICS", "is_serving_table", "validate_serving"]

COLUMNS = frozenset({"gpu", "backend", "model", "isl", "osl"})
"""What a table of servers has at least."""
METRICS = ("ttft_ms", "tpot_ms")
_ROWS_WORTH_WORKERS = 40


def is_serving_table(path: Path) -> bool:
    """Whether a table's columns are those of servers, not of runs. Raises InputFileError as reading does."""
    try:
        next(iter(read_rows(path, limit=1, needed=COLUMNS)), None)
    except InputFileError:
        return False
    return True


def validate_serving(path: Path, *, limit: int | None = None) -> Report:
    """Forecast every row of the table with shipped profiles; rows that cannot be say why.

    Raises InputFileError where the table cannot be read or holds no row.
    """
    rows = list(read_rows(path, limit=limit, needed=COLUMNS))
    if not rows:
        raise InputFileError(f"{path}: holds no row; the README lists what a table of servers has")
    scored = _scored(rows)
    by = ("metric", "source", "gpu", "backend", "model", "quantisation")
    return Report.of(scored, by=by, min_group=4)


def _scored(rows: Sequence[PublishedRow]) -> list[ScoredRow]:
    """Scores in order. Rows of one model go to one process: they share its trace."""
    models: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        models.setdefault(row.text("model"), []).append(number)
    workers = min(usable_cores(), len(models))
    if workers < 2 or len(rows) < _ROWS_WORTH_WORKERS:
        return [score for scores in _score_all(rows) for score in scores]
    shares: list[list[int]] = [[] for _ in range(workers)]
    for numbers in sorted(models.values(), key=len, reverse=True):
        min(shares, key=len).extend(numbers)
    found: dict[int, list[ScoredRow]] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(_score_all, [[rows[n] for n in share] for share in shares])
        for share, scores in zip(shares, results, strict=True):
            found.update(zip(share, scores, strict=True))
    return [score for number in range(len(rows)) for score in found[number]]


def _score_all(rows: Sequence[PublishedRow]) -> list[list[ScoredRow]]:
    cache = _Cache()
    return [_score(row, cache) for row in rows]


class _Cache:
    """What rows share: traces of a model, prices of its passes on one GPU under one backend."""

    def __init__(self) -> None:
        self._inference: dict[str, InferenceForecaster] = {}
        self._traced: dict[str, InferenceForecaster] = {}
        self._passes: dict[str, PassCosts] = {}

    def inference(self, row: PublishedRow) -> InferenceForecaster | str:
        """The row's forecaster, or why there is none."""
        config, framework = served_config(row), serving_framework(row)
        if config is None:
            return f"model {row.text('model')!r} is not in the table of served models"
        if framework is None:
            return f"backend {row.text('backend')!r} is not in the table of backends"
        name = row.text("model")
        key = json.dumps([name, row.text("gpu"), framework.model_dump()])
        if key not in self._inference:
            made = InferenceForecaster(
                source=resolve_config(config, name=name, seq_len=1),
                profile=load_profile(row.text("gpu")),
                framework=framework,
            )
            traced = self._traced.setdefault(f"{name}/{framework.compute_dtype}", made)
            made.share_trace(traced)
            self._inference[key] = made
        return self._inference[key]

    def passes(self, row: PublishedRow, inference: InferenceForecaster) -> tuple[PassCosts, int]:
        """Prices of the row's passes, and its replicas of attention."""
        network = inference.profile.network
        ranks = serving_ranks(row, ranks_per_node=network.ranks_per_node if network else 1)
        key = json.dumps([id(inference), str(ranks.plan), ranks.experts.tp, ranks.experts.ep])
        if key not in self._passes:
            self._passes[key] = PassCosts(inference, ranks.plan, experts=ranks.experts)
        return self._passes[key], ranks.plan.dp


@dataclass(frozen=True, slots=True)
class _Measured:
    metric: str
    value: float | None


def _score(row: PublishedRow, cache: _Cache) -> list[ScoredRow]:
    """The scores of a row's times to first token and per token."""
    measured = [_Measured(name, row.number(name)) for name in METRICS if name in row.cells]
    common = _common(row)
    if not measured:
        return [_skipped(common, _Measured("none", None), "the row gives neither ttft_ms nor tpot_ms")]
    try:
        predicted = _predict(row, cache)
    except ForeshardError as error:
        predicted = str(error)
    if isinstance(predicted, str):
        return [_skipped(common, m, predicted) for m in measured]
    scores = []
    for m in measured:
        if m.value is None or m.value <= 0:
            scores.append(_skipped(common, m, f"{m.metric} {row.text(m.metric)!r} is no time"))
            continue
        value, sigma = predicted[m.metric]
        spread = math.exp(Z90 * sigma)
        scores.append(
            ScoredRow(
                metric=m.metric,
                measured=m.value,
                predicted=value,
                low=value / spread,
                high=value * spread,
                **common,
            )
        )
    return scores


def _predict(row: PublishedRow, cache: _Cache) -> dict[str, tuple[float, float]] | str:
    """Milliseconds by metric and the spread of their logarithms, or why there are none."""
    inference = cache.inference(row)
    if isinstance(inference, str):
        return inference
    if row.integer("pp_size", 1) > 1:
        return "servers with pipeline stages are not modelled"
    costs, replicas = cache.passes(row, inference)
    load = serving_load(row, replicas)
    if isinstance(load, str):
        return load
    memory_bytes = inference.profile.device.memory_bytes
    room = cache_room_bytes(row, device_bytes=memory_bytes, parameter_bytes=costs.parameter_bytes)
    each = costs.cache_bytes_per_token
    room_tokens = room / each if each else math.inf
    framework = as_launched(row, inference.framework, load)
    found = serve_clients(costs, framework, load, most_running=load.clients, room_tokens=room_tokens)
    return {
        "ttft_ms": (1e3 * found.time_to_first_token_s, found.first_token_log_sigma),
        "tpot_ms": (1e3 * found.time_per_output_token_s, found.per_token_log_sigma),
    }


def _common(row: PublishedRow) -> dict[str, Any]:
    group = "/".join(row.text(k) for k in ("model", "gpu", "precision", "isl", "osl", "concurrency"))
    labels = {
        "gpu": row.text("gpu"),
        "backend": row.text("backend"),
        "model": row.text("model"),
        "quantisation": row.text("precision", "none"),
    }
    return {"id": row.id, "source": row.text("source", "own"), "group": group, "labels": labels}


def _skipped(common: dict[str, Any], measured: _Measured, reason: str) -> ScoredRow:
    return ScoredRow(metric=measured.metric, measured=measured.value, skipped=reason, **common)
