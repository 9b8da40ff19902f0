"""Forecast and run plans of models on this machine: what `validate run` and the demo do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.errors import ForeshardError, MeasurementError, ModelArgumentError, UsageError
from costmodel.plan import Plan
from planner.validation.baseline import no_skill_step_s
from planner.validation.harness import PlannedRun, run_planned, save_results, score_planned
from planner.validation.run_spec import ModelSpec, RunSettings, RunSpec
from planner.validation.scoring import Report
from planner.validation.standard import StandardModel, standard_models, standard_plans

if TYPE_CHECKING:
    from calibrate.hosts import Hosts
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Forecaster, Prediction
    from costmodel.predict.inference import InferenceForecaster

__all__ = ["LocalForecaster", "chosen_models", "run_spec_of", "validate_local"]

_ROUNDS = 7
_SECONDS, _SECONDS_PER_PLAN = 300.0, 40.0
"""More rounds where times are not known well: so long for all plans together, and for each."""


class LocalForecaster:
    """Forecasts of one model that a real run can follow: its stages, blocks and tensor-parallel styles."""

    def __init__(
        self,
        model: ModelSpec,
        profile: HardwareProfile,
        *,
        optimizer: str = "adamw",
        bucket_cap_mb: float | None = None,
    ) -> None:
        """`bucket_cap_mb`: DistributedDataParallel's argument of that name; None = its default."""
        self.bucket_cap_mb = bucket_cap_mb
        self.model = model
        self.profile = profile
        self.optimizer = optimizer
        self._forecaster: Forecaster | None = None
        self._inference: InferenceForecaster | None = None
        self._styles: dict[int, Mapping[str, str]] = {}

    @property
    def forecaster(self) -> Forecaster:
        """The model's forecaster; made on first use."""
        if self._forecaster is None:
            from costmodel.models import resolve
            from costmodel.predict import Forecaster

            self._forecaster = Forecaster(
                source=resolve(
                    self.model.model, seq_len=self.model.seq_len, overrides=dict(self.model.overrides)
                ),
                profile=self.profile,
                framework=self._framework(),
                optimizer=self.optimizer,
                styles=self.styles,
            )
        return self._forecaster

    @property
    def inference(self) -> InferenceForecaster:
        """Forecaster of the model's answers; made on first use."""
        if self._inference is None:
            from costmodel.models import resolve
            from costmodel.predict.inference import InferenceForecaster

            self._inference = InferenceForecaster(
                source=resolve(
                    self.model.model,
                    seq_len=self.model.seq_len,
                    overrides=dict(self.model.overrides),
                    task="inference",
                ),
                profile=self.profile,
                framework=self._framework(),
                styles=self.styles,
            )
        return self._inference

    def _framework(self) -> FrameworkProfile:
        from costmodel.framework import load_framework

        plain = load_framework("pytorch")
        if self.bucket_cap_mb is None:
            return plain
        # a cap that is given holds for the first bucket too
        size = int(self.bucket_cap_mb * 2**20)
        return plain.model_copy(update={"bucket_bytes": size, "first_bucket_bytes": size})

    def styles(self, tp: int) -> Mapping[str, str]:
        """Module path -> tensor-parallel style that torch can run on the unmodified module."""
        if tp not in self._styles:
            self._styles[tp] = _styles(self.model, tp)
        return self._styles[tp]

    def spec(self, plan: Plan) -> tuple[RunSpec, Prediction]:
        """The run of a plan and its forecast. Raises PlanError where the model cannot take it."""
        prediction = self.forecaster.forecast(plan).prediction
        styles = self.styles(plan.tp) if plan.tp > 1 else {}
        spec = _spec(self.model, self.forecaster, prediction, self.optimizer, styles)
        return replace(spec, bucket_cap_mb=self.bucket_cap_mb), prediction


def _styles(model: ModelSpec, tp: int) -> Mapping[str, str]:
    from costmodel.graph import trace
    from costmodel.graph.quiet import quiet_fake_tensors
    from costmodel.graph.tracing import fake_mode
    from costmodel.models import resolve
    from costmodel.sharding.module_plan import executable_styles

    source = resolve(model.model, micro_batch_size=2, seq_len=model.seq_len, overrides=dict(model.overrides))
    with quiet_fake_tensors(), fake_mode():  # shapes are all that is looked at
        built = source.build()
    return executable_styles(built.module, built.args, built.kwargs, trace(source), tp=tp)


def _spec(
    model: ModelSpec,
    forecaster: Forecaster,
    prediction: Prediction,
    optimizer: str,
    styles: Mapping[str, str],
) -> RunSpec:
    plan = prediction.plan
    graph = forecaster.graph(plan.micro_batch_size)
    blocks = [path for s in graph.segments if s.is_block for m in s.modules for path in m.split("+")]
    stages = tuple(
        tuple(path for module in stage for path in module.split("+")) for stage in prediction.stage_modules
    )
    return RunSpec(
        model=model,
        plan=plan,
        optimizer=optimizer,
        stage_modules=stages if plan.pp > 1 else (),
        blocks=tuple(blocks),
        tp_styles=dict(styles),
    )


def run_spec_of(
    model: ModelSpec, forecaster: Forecaster, plan: Plan, *, optimizer: str, needs_styles: bool
) -> RunSpec:
    """The run that follows a forecaster's plan: its stages, blocks and, where needed, layer styles
    (before which it is checked that the plan has a real run). Raises PlanError where there is none."""
    if needs_styles:
        from planner.validation.strategies.compose import check_runnable

        check_runnable(plan)
    prediction = forecaster.forecast(plan).prediction
    styles = _styles(model, plan.tp) if needs_styles and plan.tp > 1 else {}
    return _spec(model, forecaster, prediction, optimizer, styles)


def chosen_models(models: Sequence[str] | None, global_batch_size: int | None) -> tuple[StandardModel, ...]:
    """Models of the shipped validation set by name, or any model argument at a given global batch."""
    if not models:
        return standard_models()
    known = {m.model.label: m for m in standard_models()}
    chosen = []
    for name in models:
        if name in known:
            chosen.append(known[name])
        elif global_batch_size is None:
            raise UsageError(
                f"model {name!r} is none of the validation set ({', '.join(known)}); give --global-batch "
                "to run another model"
            )
        else:
            chosen.append(StandardModel(model=ModelSpec(model=name), global_batch_size=global_batch_size))
    return tuple(chosen)


def validate_local(
    *,
    models: Sequence[str] | None,
    plans: Sequence[str] | None,
    hardware: str | None,
    global_batch_size: int | None = None,
    budget_s: float = 60.0,
    repeats: int | None = None,
    steps: int = 2,
    timeout_s: float = 60.0,
    out: Path | None = None,
    trace_dir: Path | None = None,
    executor: str = "torch",
    hosts: Path | None = None,
    bucket_cap_mb: float | None = None,
    prompt_len: int | None = None,
    output_len: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Predict each plan of each model, run them all for real, and compare.

    `repeats`: rounds over all plans; None: 7, then more while step times are not known within 1 % and
    `_SECONDS` are not over. `hosts`: a file of hosts to calibrate and run on. `bucket_cap_mb`: of
    DistributedDataParallel. With `prompt_len` and `output_len` the runs are answers with kept keys and
    values instead of training steps.
    `trace_dir`: keep a profiler trace of each run's ranks there (what `validate trace` reads). Raises
    UsageError for an executor that is neither torch nor onnxruntime, or plans or traces for the latter.
    """
    from calibrate.hosts import load_hosts
    from costmodel.hardware.store import load_profile

    _check_executor(executor, plans=bool(plans), traced=trace_dir is not None, kept=bool(hosts or out))
    if (prompt_len is None) != (output_len is None) or (prompt_len and (executor != "torch" or trace_dir)):
        raise UsageError("--prompt and --output go together, under torch and without --trace")
    _check_bucket(bucket_cap_mb, trains=executor == "torch" and not prompt_len)
    where = load_hosts(hosts) if hosts else None
    chosen = chosen_models(models, global_batch_size)
    parsed = [Plan.parse(text) for text in plans or ()]
    profile = load_profile(hardware) if hardware else _calibrated(budget_s, where, progress)
    if executor == "onnxruntime":
        from planner.validation.onnx_runs import validate_onnx

        return validate_onnx(
            models=models,
            profile=profile,
            global_batch_size=global_batch_size,
            repeats=repeats or _ROUNDS,
            threads=_threads(profile),
            progress=progress,
        )
    settings = RunSettings(
        rounds=repeats or _ROUNDS,
        steps=steps,
        timeout_s=timeout_s,
        threads=_threads(profile),
        trace_dir=None if trace_dir is None else str(trace_dir.resolve()),
    )
    if prompt_len and output_len:
        from planner.validation.answers import validate_answers

        return validate_answers(
            chosen,
            plans=plans,
            profile=profile,
            prompt_len=prompt_len,
            output_len=output_len,
            settings=settings,
            local_of=lambda model: LocalForecaster(model, profile),
            out=out,
            hosts=where,
            progress=progress,
        )
    planned = _training_steps(chosen, parsed, profile, bucket_cap_mb)
    if repeats is None:
        settings = replace(settings, seconds_per_plan=min(_SECONDS_PER_PLAN, _SECONDS / len(planned)))
    report = _run_and_score(planned, settings, profile, out=out, hosts=where, progress=progress)
    if trace_dir is not None and progress is not None:
        progress(f"traces, a folder for each run, are in {trace_dir}; `foreshard validate trace` reads them")
    return report


def _run_and_score(
    planned: Sequence[PlannedRun],
    settings: RunSettings,
    profile: HardwareProfile,
    *,
    out: Path | None,
    hosts: Hosts | None,
    progress: Callable[[str], None] | None,
) -> Report:
    """Run what is planned, keep what was measured in `out` and compare."""
    results = run_planned(planned, settings, hosts=hosts, progress=progress)
    if out is not None:
        save_results(results, out)
    return score_planned(planned, results, yardstick_s=profile.yardstick_s)


def _training_steps(
    chosen: Sequence[StandardModel],
    plans: Sequence[Plan],
    profile: HardwareProfile,
    bucket_cap_mb: float | None,
) -> list[PlannedRun]:
    """Each plan (none: the standard ones) of each model with its forecast, or why there is none.

    Raises ModelArgumentError for a model that cannot be built under any plan.
    """
    planned: list[PlannedRun] = []
    for entry in chosen:
        local = LocalForecaster(entry.model, profile, bucket_cap_mb=bucket_cap_mb)
        for plan in plans or standard_plans(entry.global_batch_size):
            try:
                spec, prediction = local.spec(plan)
                dtype = local.forecaster.framework.compute_dtype
                no_skill_s = no_skill_step_s(local.forecaster, plan, dtype=dtype)
            except ModelArgumentError:
                raise
            except ForeshardError as error:
                planned.append(PlannedRun(spec=RunSpec(model=entry.model, plan=plan), forecast=error))
            else:
                planned.append(PlannedRun(spec=spec, forecast=prediction, no_skill_s=no_skill_s))
    return planned


def _check_executor(executor: str, *, plans: bool, traced: bool, kept: bool) -> None:
    """UsageError for an executor that is not known or cannot do what is asked."""
    if executor not in ("torch", "onnxruntime") or (executor != "torch" and plans):
        raise UsageError(f"executor {executor!r}: must be torch, or onnxruntime (forward passes: no plans)")
    if traced and executor != "torch":
        raise UsageError(f"--trace records torch's profiler; executor {executor!r} has none: leave it out")
    if kept and executor != "torch":
        raise UsageError("--hosts and --out are of runs under torch: leave them out for onnxruntime")


def _check_bucket(bucket_cap_mb: float | None, *, trains: bool) -> None:
    if bucket_cap_mb is None:
        return
    if not bucket_cap_mb > 0:
        raise UsageError(f"--bucket-mb {bucket_cap_mb:g}: must be positive, in MiB")
    if not trains:
        raise UsageError("--bucket-mb is of gradients: leave it out where nothing is trained")


def _threads(profile: HardwareProfile) -> int:
    """Threads per rank: those the profile was measured with (a run with others is not comparable)."""
    return profile.environment.threads or 1


def _calibrated(budget_s: float, hosts: Hosts | None, progress: Callable[[str], None] | None) -> Any:
    from calibrate.api import calibrate

    with tempfile.TemporaryDirectory(prefix="foreshard-") as folder:
        out = Path(folder) / "this-machine.json"
        profile = calibrate(out=out, budget_s=budget_s, hosts=hosts, progress=progress)
    if profile is None:
        raise MeasurementError("validate run starts its own ranks; call it without a launcher")
    return profile
