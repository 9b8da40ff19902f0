"""Real answers (prefill, then decode with kept keys and values) beside the forecast of `infer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.errors import ForeshardError, ModelArgumentError
from costmodel.plan import Plan
from planner.validation.harness import (
    PlannedRun,
    machine_slowdowns,
    run_planned,
    save_results,
    score_planned,
    strategy_of,
)
from planner.validation.run_spec import ModelSpec, RunResult, RunSettings, RunSpec
from planner.validation.scoring import Report, ScoredRow
from planner.validation.standard import StandardModel
from planner.validation.strategies.answering import check_answerable

if TYPE_CHECKING:
    from calibrate.hosts import Hosts
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict.inference import InferencePrediction
    from planner.validation.local import LocalForecaster

__all__ = ["AnswerForecast", "answer_plans", "validate_answers"]


@dataclass(frozen=True, slots=True)
class AnswerForecast:
    """An inference forecast as scoring asks for one: a step is a whole answer."""

    answer: InferencePrediction

    @property
    def step_time_s(self) -> float:
        """Seconds of the whole answer."""
        return self.answer.latency_s

    @property
    def step_time_low_s(self) -> float:
        """Lower end of its 90 % interval."""
        return self.answer.interval_s[0]

    @property
    def step_time_high_s(self) -> float:
        """Upper end of its 90 % interval."""
        return self.answer.interval_s[1]

    @property
    def breakdown_s(self) -> dict[str, float]:
        """Parts of the answer's time."""
        return dict(self.answer.breakdown_s)


def answer_plans(global_batch_size: int, n_ranks: int = 2) -> tuple[Plan, ...]:
    """One device, replicas and tensor parallelism over `n_ranks`, all answering one batch."""
    return (
        Plan(micro_batch_size=global_batch_size),
        Plan(dp=n_ranks, micro_batch_size=global_batch_size // n_ranks),
        Plan(tp=n_ranks, micro_batch_size=global_batch_size),
    )


def validate_answers(
    chosen: Sequence[StandardModel],
    *,
    plans: Sequence[str] | None,
    profile: HardwareProfile,
    prompt_len: int,
    output_len: int,
    settings: RunSettings,
    local_of: Callable[[ModelSpec], LocalForecaster],
    out: Path | None = None,
    hosts: Hosts | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Forecast and run answers of each model under each plan: whole answer, first token, each other token.

    A plan that cannot be forecast, or whose ranks fail, is a row that says why. Raises the reason where none
    can be: PlanError where a plan has no real run, UsageError where a model keeps no keys and values.
    """
    parsed = [Plan.parse(text) for text in plans or ()]
    planned: list[PlannedRun] = []
    for entry in chosen:
        local = local_of(entry.model)
        for plan in parsed or answer_plans(entry.global_batch_size):
            spec = RunSpec(model=entry.model, plan=plan, prompt_len=prompt_len, output_len=output_len)
            planned.append(_planned(local, spec))
    results = run_planned(planned, settings, hosts=hosts, progress=progress)
    if out is not None:
        save_results(results, out)
    whole = score_planned(planned, results, yardstick_s=profile.yardstick_s)
    slowdowns = machine_slowdowns(results, profile.yardstick_s)
    rows = list(whole.rows)
    for row, result, run, slowdown in zip(whole.rows, results, planned, slowdowns, strict=True):
        if isinstance(run.forecast, AnswerForecast):
            rows += _by_token(row, result, run.forecast.answer, slowdown)
    return Report.of(rows, by=("model", "strategy", "figure"), details=whole.details)


def _planned(local: LocalForecaster, spec: RunSpec) -> PlannedRun:
    """The run of an answer with its forecast, or why there is none. Raises ModelArgumentError."""
    plan = spec.plan
    try:
        check_answerable(plan)
        answer = local.inference.generate(
            plan, batch_size=plan.micro_batch_size, prompt_len=spec.prompt_len, output_len=spec.output_len
        )
        styles = local.styles(plan.tp) if plan.tp > 1 else {}
    except ModelArgumentError:  # of all plans of the model
        raise
    except ForeshardError as error:
        return PlannedRun(spec=spec, forecast=error)
    return PlannedRun(spec=replace(spec, tp_styles=styles), forecast=AnswerForecast(answer))


def _by_token(
    whole: ScoredRow, result: RunResult, answer: InferencePrediction, slowdown: float
) -> list[ScoredRow]:
    """Rows of the first token and of each other one; intervals as wide as the whole answer's."""
    firsts = [rank.first_token_s for rank in result.ranks if rank.first_token_s is not None]
    if whole.skipped or not firsts or result.step_time_s is None:
        return []
    first_s = max(firsts)
    pairs = [("time_to_first_token_s", first_s, answer.time_to_first_token_s)]
    if answer.output_len > 1:
        each_s = (result.step_time_s - first_s) / (answer.output_len - 1)
        pairs.append(("time_per_output_token_s", each_s, answer.time_per_output_token_s))
    low, high = (end / answer.latency_s for end in answer.interval_s)
    return [
        ScoredRow(
            id=f"{whole.id} {metric}",
            source=whole.source,
            metric=metric,
            measured=measured_s,
            predicted=predicted_s * slowdown,
            low=predicted_s * slowdown * low,
            high=predicted_s * slowdown * high,
            labels={
                "model": result.spec.model.label,
                "strategy": strategy_of(result.spec),
                "figure": metric.removesuffix("_s").replace("_", " "),
            },
        )
        for metric, measured_s, predicted_s in pairs
    ]
