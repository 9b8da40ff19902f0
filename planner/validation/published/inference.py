"""Inference rows: the forecast in the row's own metric."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import costmodel
from costmodel.errors import UsageError
from costmodel.estimate import Z90
from costmodel.graph import GraphStore
from costmodel.hardware.device import product_flop_per_s
from costmodel.plan import Plan
from costmodel.predict.inference import InferenceForecaster
from planner.validation.baseline import bubble_factor, no_skill_s
from planner.validation.published.model_map import RowModel
from planner.validation.published.rows import PublishedRow
from planner.validation.published.setting import row_arguments
from planner.validation.scoring import shares_of

__all__ = ["InferenceAnswer", "predict_inference"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "conventions.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceAnswer:
    """A forecast in the row's metric: its 90 % interval, the no-skill forecast of the same, and the share of
    each part in the time (of the whole answer, where the row times one token of it)."""

    low: float
    value: float
    high: float
    baseline_value: float
    breakdown: Mapping[str, float]


@lru_cache(maxsize=1)
def _per_token() -> re.Pattern[str]:
    return re.compile(json.loads(_DATA.read_text())["decode_per_token"], re.IGNORECASE)


def predict_inference(
    row: PublishedRow,
    plan: Plan,
    model: RowModel,
    metric: str,
    *,
    cache: dict[str, InferenceForecaster],
    graphs: GraphStore,
) -> InferenceAnswer | str:
    """The forecast in the row's metric; or why there is none.

    `cache`: forecasters of rows before, to which this one's is added; `graphs`: traces shared by them.
    Raises what the model, the plan or the profile raise.
    """
    key, arguments = row_arguments(row, model)
    if key not in cache:
        cache[key] = InferenceForecaster(**arguments(), graphs=graphs)
    batch = max(1, plan.global_batch_size // plan.dp)
    task = row.text("task")
    if task == "forward":
        cost = cache[key].forward(plan, batch_size=batch)
        seconds, tokens, sigma = cost.time_s, batch * max(1, model.seq_len), cost.log_sigma
        parts, flop = cost.breakdown_s, cache[key].forward_flop(batch_size=batch)
    else:
        output_len = row.integer("output_len", 1) if task == "decode" else 1
        if task == "decode" and output_len < 2:
            return "the source does not say how many tokens were generated"
        answer = cache[key].generate(plan, batch_size=batch, prompt_len=model.seq_len, output_len=output_len)
        sigma, parts = answer.log_sigma, answer.breakdown_s
        prompt, token = cache[key].answer_flop(
            batch_size=batch, prompt_len=model.seq_len, output_len=output_len
        )
        if task == "prefill":
            seconds, tokens, flop = answer.time_to_first_token_s, batch * model.seq_len, prompt
        elif _per_token().search(row.text("notes")):
            seconds, tokens, flop = answer.time_per_output_token_s, batch, token
        else:
            seconds, tokens = answer.latency_s, batch * output_len
            flop = prompt + (output_len - 1) * token
    no_skill = no_skill_s(
        flop * batch,
        n_ranks=plan.tp * plan.pp * plan.cp,
        peak_flop_per_s=product_flop_per_s(cache[key].profile.device, row.text("dtype", "fp16")),
        bubble=bubble_factor(pp=plan.pp, vpp=1, num_microbatches=1),
    )
    each = [_in_metric(metric, seconds * math.exp(s * Z90 * sigma), batch, tokens, plan) for s in (-1, 0, 1)]
    return InferenceAnswer(
        low=min(each),
        value=each[1],
        high=max(each),
        baseline_value=_in_metric(metric, no_skill, batch, tokens, plan),
        breakdown=shares_of(parts),
    )


def _in_metric(metric: str, seconds: float, batch: int, tokens: int, plan: Plan) -> float:
    if metric == "iter_time_s":
        return seconds
    if metric == "tokens_per_s_per_gpu":
        return tokens / seconds / (plan.tp * plan.pp * plan.cp)
    if metric == "samples_per_s":
        return batch * plan.dp / seconds
    raise UsageError(f"metric {metric!r} says nothing of inference")
