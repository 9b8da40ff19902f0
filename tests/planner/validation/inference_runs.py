"""Measured inference of other projects beside its forecast.

`python -m tests.planner.validation.inference_runs` prints every row and the errors by project.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from costmodel.framework import FrameworkProfile, load_framework
from costmodel.graph import GraphStore
from costmodel.hardware.device import weight_bytes
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.serving import serve

__all__ = ["FILE", "Run", "forecast", "runs"]

FILE = Path(__file__).parent / "data" / "inference_runs.json"
_FRONT_END = ("frontend_request_s", "frontend_prompt_token_s", "frontend_token_s", "arrival_overhead_s")
"""What an engine does without that its benchmark calls in one process."""
_RATES = ("tokens_per_s", "tokens_per_s_after_first")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measured figure; `sizes` as the table's `kinds` says."""

    group: dict[str, Any]
    sizes: tuple[int, ...]
    measured: float

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a row is summed up under: project, framework, GPU and what was measured."""
        return self.group["project"], self.group["framework"], self.group["gpu"], self.group["metric"]

    def error(self, forecast_value: float) -> float:
        """Forecast time over measured time - 1, whatever the metric."""
        ratio = forecast_value / self.measured
        return (1.0 / ratio if self.group["metric"] in _RATES else ratio) - 1.0


def runs(**wanted: Any) -> tuple[Run, ...]:
    """Rows of the groups that have all these cells."""
    groups = json.loads(FILE.read_text(encoding="utf-8"))["groups"]
    return tuple(
        Run(group=group, sizes=tuple(sizes), measured=measured)
        for group in groups
        if all(group.get(name, 1) == value for name, value in wanted.items())
        for *sizes, measured in group["rows"]
    )


def forecast(run: Run) -> float:
    """What `foreshard infer` says of the row, in its metric."""
    group, plan = run.group, Plan(tp=run.group.get("tp", 1))
    if group["kind"] == "forward":
        samples, tokens = run.sizes
        made = _forecaster(json.dumps({**group, "rows": None}), tokens)
        return 1e3 * made.forward(plan, batch_size=samples).time_s
    requests, prompt, output = run.sizes
    made = _forecaster(json.dumps({**group, "rows": None}))
    if group["kind"] == "clients":
        served = serve(made, plan, prompt_len=prompt, output_len=output, concurrency=requests)
        first = group["metric"] == "first_token_ms"
        return 1e3 * served.time_to_first_token_s if first else served.tokens_per_s
    answer = made.generate(plan, batch_size=requests, prompt_len=prompt, output_len=output)
    token_s = answer.time_per_output_token_s
    return {
        "latency_s": answer.latency_s,
        "tokens_per_s": answer.tokens_per_s,
        "tokens_per_s_after_first": requests / token_s,
        "token_ms": 1e3 * token_s,
    }[group["metric"]]


@cache
def _graphs(model: str, tokens: int | None) -> GraphStore:
    return GraphStore()


@cache
def _forecaster(group: str, tokens: int | None = None) -> InferenceForecaster:
    cells = json.loads(group)
    return InferenceForecaster(
        source=resolve(cells["model"], seq_len=tokens),
        profile=load_profile(cells["gpu"]),
        framework=_framework(cells),
        graphs=_graphs(cells["model"], tokens),
    )


def _framework(cells: dict[str, Any]) -> FrameworkProfile:
    products, changes = cells.get("products", "same"), {}
    if products != "same":
        changes = {"half_products": products, "parameter_bytes": weight_bytes(products)}
    if products in ("fp8", "nvfp4"):
        changes["cache_dtype"] = "fp8"
    if cells["kind"] == "clients" and not cells.get("served"):
        changes.update(dict.fromkeys(_FRONT_END, 0.0))
    return load_framework(cells["framework"]).model_copy(update=changes)


def _show(found: Iterable[tuple[Run, float]]) -> None:
    by_key: dict[tuple[str, str, str, str], list[float]] = {}
    for run, error in found:
        cells = run.group
        by_key.setdefault(run.key, []).append(error)
        what = f"{cells['model']} tp{cells.get('tp', 1)} {cells.get('products', 'same')}"
        print(*run.key, what, run.sizes, run.measured, f"{error:+.1%}", flush=True)
    for key, errors in by_key.items():
        within = mean(abs(math.log1p(e)) for e in errors)
        print(*key, len(errors), f"{mean(map(abs, errors)):.1%} {mean(errors):+.1%} log {within:.2f}")


if __name__ == "__main__":
    _show((run, run.error(forecast(run))) for run in runs())
