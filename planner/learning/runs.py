"""What can be learnt from: results of `validate run`, and rows of tables of measured training runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.errors import ForeshardError, InputFileError
from costmodel.predict import Forecaster
from planner.learning.spread import LearningRun
from planner.validation.scoring import is_higher_better

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["read_learning_runs"]

_P90_HALF_WIDTH = 1.2815515655446004
"""Half the distance between the 10th and 90th percentile of a normal distribution, in standard deviations."""

_Skipped = dict[str, int]


def read_learning_runs(
    profile: HardwareProfile, paths: Sequence[Path], *, source: str | None = None
) -> tuple[list[LearningRun], _Skipped]:
    """Runs of the files, and how many were left out for which reason.

    JSON: what `validate run --out` or `--json` wrote. CSV (plain or gzipped): a table of runs as `validate
    published` reads it; rows of other GPUs than the profile's are left out. `source`: only rows whose source
    or id holds this text. Raises InputFileError where a file is neither or holds nothing to learn from.
    """
    runs: list[LearningRun] = []
    skipped: _Skipped = {}
    for path in paths:
        if path.name.endswith((".csv", ".csv.gz")):
            found = _rows(profile, path, source, skipped)
        else:
            found = _results(profile, path, skipped)
        runs += found
    if not runs:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in skipped.items()) or "they hold no run"
        raise InputFileError(
            f"{', '.join(map(str, paths))}: no run that profile {profile.name!r} can learn from: {reasons}"
        )
    return runs, skipped


def _fingerprint(*what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _results(profile: HardwareProfile, path: Path, skipped: _Skipped) -> Iterator[LearningRun]:
    """Runs measured here. Their times are restated for the speed that the machine had at calibration."""
    from planner.validation.harness import load_results, machine_slowdowns
    from planner.validation.local import LocalForecaster
    from planner.validation.run_spec import ModelSpec

    results = load_results(path)
    slowdowns = machine_slowdowns(results, profile.yardstick_s)
    forecasters: dict[tuple[str, str], LocalForecaster] = {}
    for result, slowdown in zip(results, slowdowns, strict=True):
        spec = result.spec
        threads = profile.environment.threads
        measured_with = result.environment.get("threads_per_rank")
        kind = "cpu" if profile.device.kind == "cpu" else "cuda"
        if result.failed or not result.step_time_s:
            _skip(skipped, f"it did not run: {result.failed}")
            continue
        if result.device != kind:
            _skip(skipped, f"it ran on {result.device}, the profile is of a {profile.device.kind} device")
            continue
        if threads and measured_with and threads != measured_with:
            _skip(skipped, f"it ran with {measured_with} threads per rank, the profile has {threads}")
            continue
        model: ModelSpec = spec.model
        key = (repr(model), spec.optimizer)
        if key not in forecasters:
            forecasters[key] = LocalForecaster(model, profile, optimizer=spec.optimizer)
        spread = result.spread_fraction or 0.0
        n_steps = max(1, sum(len(times) for times in result.step_times_s))
        yield LearningRun(
            fingerprint=_fingerprint(spec.id, result.step_times_s, result.step_time_s),
            label=spec.id,
            model=model.label,
            source="run",
            plan=spec.plan,
            forecaster=forecasters[key].forecaster,
            step_time_s=result.step_time_s / slowdown,
            log_sigma=spread / _P90_HALF_WIDTH / n_steps**0.5,
        )


def _skip(skipped: _Skipped, reason: str) -> None:
    skipped[reason] = skipped.get(reason, 0) + 1


def _rows(
    profile: HardwareProfile, path: Path, source: str | None, skipped: _Skipped
) -> Iterator[LearningRun]:
    """Training rows of the table that ran on the profile's GPU."""
    from planner.validation.published.rows import read_rows
    from planner.validation.published.setting import row_hardware

    cache: dict[str, Forecaster] = {}
    for row in read_rows(path):
        if source and source not in row.text("source") and source not in row.id:
            _skip(skipped, "of another source")
            continue
        try:
            same = row_hardware(row).name == profile.name
        except ForeshardError:
            same = False
        if not same:
            _skip(skipped, "of another GPU")
            continue
        if row.text("task") != "train":
            _skip(skipped, "not a training step")
            continue
        found = _row(profile, row, cache)
        if isinstance(found, str):
            _skip(skipped, found)
        else:
            yield found


def _row(profile: HardwareProfile, row: Any, cache: dict[str, Forecaster]) -> LearningRun | str:
    from planner.validation.published.model_map import row_model
    from planner.validation.published.score import metric_of_step
    from planner.validation.published.setting import in_rows_nodes, row_arguments, row_framework, row_plan

    if row.metric is None:
        return "the row gives no metric"
    metric, value = row.metric
    plan = row_plan(row)
    if isinstance(plan, str):
        return plan
    try:
        model = row_model(row, vocab_multiple=row_framework(row).vocab_multiple * plan.tp)
        if isinstance(model, str):
            return model
        key, arguments = row_arguments(row, model)
        if key not in cache:
            cache[key] = Forecaster(**{**arguments(), "profile": in_rows_nodes(profile, row)})
        cache[key].forecast(plan)  # what cannot be forecast says so here
        one_second = metric_of_step(row, plan, model, cache[key], metric)(1.0)
    except ForeshardError as error:
        return str(error)
    return LearningRun(
        fingerprint=_fingerprint({**row.cells, **row.written}),
        label=row.id,
        model="/".join(row.text(name) for name in ("model_name", "seq_len")),
        source=row.text("source"),
        plan=plan,
        forecaster=cache[key],
        step_time_s=one_second / value if is_higher_better(metric) else value / one_second,
    )
