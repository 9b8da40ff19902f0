"""Which run a trace is of: from the trace itself where foreshard recorded it, else from the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import InputFileError, UsageError
from costmodel.plan import Plan

if TYPE_CHECKING:
    from costmodel.models import ModelSource
    from costmodel.predict import Forecaster
    from planner.validation.kineto.events import RankTrace
    from planner.validation.run_spec import RunSpec

__all__ = ["Setting", "machine_slowdown", "setting_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the traces are held against."""

    forecaster: Forecaster
    plan: Plan
    run: Mapping[str, Any] | None
    """The run as the trace describes it; None where the options do."""


def setting_of(
    traces: Sequence[RankTrace],
    *,
    hardware: str,
    model: str | None,
    plan: str | None,
    seq_len: int | None,
    overrides: Sequence[str] | None,
    framework: str,
    optimizer: str | None,
    trust_remote_code: bool,
) -> Setting:
    """The forecaster and plan. Options win over what the traces say; without `model`, its sequence and
    overrides are the trace's. Raises UsageError where neither says the model or the plan."""
    from costmodel.framework import load_framework
    from costmodel.hardware.store import load_profile
    from costmodel.predict import Forecaster
    from planner import api

    recorded = next((trace for trace in traces if trace.run is not None), None)
    spec = None if recorded is None else _spec(recorded)
    if plan is None and spec is None:
        raise UsageError(
            f"{traces[0].path} does not say which plan it ran: give --plan, for example dp2.mbs4"
        )
    chosen_plan = api.parse_plan(plan) if plan is not None else _plan(spec)
    if model is not None:
        source = api.model_source(
            model, seq_len=seq_len, overrides=overrides, trust_remote_code=trust_remote_code
        )
    elif spec is not None:
        source = _source(spec, seq_len, api.parse_overrides(overrides))
    else:
        raise UsageError(f"{traces[0].path} does not say which model it ran: give --model, for example gpt2")
    styles = dict(spec.tp_styles) if spec is not None and model is None else {}
    name, _, variant = hardware.partition(":")
    forecaster = Forecaster(
        source=source,
        profile=load_profile(name),
        framework=load_framework(framework),
        optimizer=optimizer or (spec.optimizer if spec is not None else "adamw"),
        network_variant=variant or None,
        styles=(lambda tp: styles) if styles else None,
    )
    given = model is not None or plan is not None
    run = None if given or recorded is None or recorded.run is None else recorded.run.get("run")
    return Setting(forecaster=forecaster, plan=chosen_plan, run=run)


def machine_slowdown(traces: Sequence[RankTrace], setting: Setting) -> float:
    """How much longer the yardstick took beside the run than when the profile was measured
    (`harness.machine_slowdowns`); 1 where either is not known, and on GPUs, whose kernels do not follow the
    speed of their host."""
    from calibrate.runner import ALONE, TOGETHER

    profile = setting.forecaster.profile
    found = [trace.run.get("yardstick_s") for trace in traces if trace.run is not None]
    now = [value for value in found if isinstance(value, (int, float)) and value > 0]
    then = profile.yardstick_s.get(TOGETHER if setting.plan.world_size > 1 else ALONE)
    if profile.device.kind != "cpu" or not now or not then:
        return 1.0
    return float(sum(now) / len(now) / then)


def _spec(trace: RankTrace) -> RunSpec:
    from planner.validation.run_spec import RunSpec

    assert trace.run is not None
    try:
        return RunSpec.from_dict(trace.run["run"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(
            f"trace {trace.path}: its record of the run cannot be read ({error}); give --model and --plan, "
            "or record it anew with `validate run --trace`"
        ) from error


def _plan(spec: RunSpec | None) -> Plan:
    assert spec is not None
    return spec.plan


def _source(spec: RunSpec, seq_len: int | None, changes: Mapping[str, Any]) -> ModelSource:
    from costmodel.models import resolve

    return resolve(
        spec.model.model,
        seq_len=seq_len or spec.model.seq_len,
        overrides={**spec.model.overrides, **changes},
    )
