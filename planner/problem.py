"""What a search was asked: model, machine, devices, batch; kept in `plan --json` to be asked again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from costmodel.errors import ForeshardError, InputFileError

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.plan import Plan
    from costmodel.predict import Forecaster

__all__ = ["PlanFile", "Problem", "read_plan_file"]

_REMEDY = "write it with `foreshard plan MODEL ... --json`"
_SAME = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The arguments of `planner.api.plan`; `overrides` as `--set` takes them."""

    model: str
    hardware: str
    n_devices: int
    global_batch_size: int
    seq_len: int | None = None
    framework: str = "pytorch"
    optimizer: str = "adamw"
    overrides: tuple[str, ...] = ()
    trust_remote_code: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The key `problem` of `plan --json`."""
        return {**asdict(self), "overrides": list(self.overrides)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Read back. Raises TypeError on other fields."""
        return cls(**{**fields, "overrides": tuple(fields.get("overrides") or ())})

    def forecaster(self, profile: HardwareProfile | None = None) -> Forecaster:
        """Predicts its plans; on `profile` instead of the hardware it names."""
        from planner import api

        found = api.forecaster(
            self.model,
            hardware=self.hardware,
            seq_len=self.seq_len,
            framework=self.framework,
            optimizer=self.optimizer,
            overrides=list(self.overrides),
            trust_remote_code=self.trust_remote_code,
        )
        return found if profile is None else found.on(profile=profile)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A written search: its problem and its plans, best first."""

    problem: Problem
    plans: tuple[Plan, ...]
    step_times_s: tuple[float, ...] = field(repr=False)


def read_plan_file(path: Path) -> PlanFile:
    """Read what `plan --json` wrote. A file without `problem` is taken for the model and machine that its
    plans name, with default settings, where that predicts the same step time.

    Raises InputFileError where it is no such file, or its problem cannot be told.
    """
    from costmodel.plan import Plan

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        listed = data["plans"]
        plans = tuple(Plan.parse(entry["plan"]) for entry in listed)
        times = tuple(float(entry["step_time_s"]) for entry in listed)
        first = listed[0]
        problem = (
            Problem.from_dict(data["problem"])
            if "problem" in data
            else Problem(
                model=first["model"],
                hardware=first["hardware"]["name"],
                n_devices=int(first["hardware"]["n_devices"]),
                global_batch_size=plans[0].global_batch_size,
            )
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ForeshardError) as error:
        raise InputFileError(f"{path}: not a list of plans ({_why_not(error)}); {_REMEDY}") from error
    if "problem" not in data:
        _require_same(path, problem, plans[0], times[0])
    return PlanFile(problem=problem, plans=plans, step_times_s=times)


def _why_not(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error}"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return "it holds no plan" if isinstance(error, IndexError) else str(error)


def _require_same(path: Path, problem: Problem, plan: Plan, step_time_s: float) -> None:
    try:
        again = problem.forecaster().forecast(plan).prediction.step_time_s
    except ForeshardError as error:
        raise InputFileError(f"{path}: does not say what was asked, and {error}; {_REMEDY}") from error
    if abs(again - step_time_s) > _SAME * step_time_s:
        raise InputFileError(
            f"{path}: does not say what was asked, and with default settings {plan} takes {again:.6g} s, not "
            f"{step_time_s:.6g} s; {_REMEDY} of this version"
        )
