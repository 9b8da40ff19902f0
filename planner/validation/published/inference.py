"""Inference rows: the forecast in the row's own metric."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path

import costmodel
from costmodel.errors import UsageError
from costmodel.estimate import Z90
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from planner.validation.published.model_map import RowModel
from planner.validation.published.rows import PublishedRow
from planner.validation.published.setting import row_arguments

__all__ = ["InferenceCache", "predict_inference"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "conventions.json"

InferenceCache = dict[str, InferenceForecaster]


@lru_cache(maxsize=1)
def _per_token() -> re.Pattern[str]:
    return re.compile(json.loads(_DATA.read_text())["decode_per_token"], re.IGNORECASE)


def predict_inference(
    row: PublishedRow, plan: Plan, model: RowModel, metric: str, cache: InferenceCache
) -> tuple[float, float, float] | str:
    """(low, value, high) of the row's metric, the 90 % interval; or why there is none.

    Raises what the model, the plan or the profile raise.
    """
    key, arguments = row_arguments(row, model)
    if key not in cache:
        cache[key] = InferenceForecaster(**arguments)
    batch = max(1, plan.global_batch_size // plan.dp)
    task = row.text("task")
    if task == "forward":
        cost = cache[key].forward(plan, batch_size=batch)
        seconds, tokens, sigma = cost.time_s, batch * max(1, model.seq_len), cost.log_sigma
    else:
        output_len = row.integer("output_len", 1) if task == "decode" else 1
        if task == "decode" and output_len < 2:
            return "the source does not say how many tokens were generated"
        answer = cache[key].generate(plan, batch_size=batch, prompt_len=model.seq_len, output_len=output_len)
        sigma = answer.log_sigma
        if task == "prefill":
            seconds, tokens = answer.time_to_first_token_s, batch * model.seq_len
        elif _per_token().search(row.text("notes")):
            seconds, tokens = answer.time_per_output_token_s, batch
        else:
            seconds, tokens = answer.latency_s, batch * output_len
    each = [_in_metric(metric, seconds * math.exp(s * Z90 * sigma), batch, tokens, plan) for s in (-1, 0, 1)]
    low, value, high = each
    return min(low, high), value, max(low, high)


def _in_metric(metric: str, seconds: float, batch: int, tokens: int, plan: Plan) -> float:
    if metric == "iter_time_s":
        return seconds
    if metric == "tokens_per_s_per_gpu":
        return tokens / seconds / (plan.tp * plan.pp * plan.cp)
    if metric == "samples_per_s":
        return batch * plan.dp / seconds
    raise UsageError(f"metric {metric!r} says nothing of inference")
