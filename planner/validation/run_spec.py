"""What a real run is asked to do, and what came out of it. Plain data that goes through JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from costmodel.errors import InputFileError, UsageError
from costmodel.plan import Plan

__all__ = ["DEVICES", "OPTIMIZERS", "Job", "ModelSpec", "RankResult", "RunResult", "RunSettings", "RunSpec"]

DEVICES = ("cpu", "cuda")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model argument with its overrides; `seq_len` None = the argument's own."""

    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    seq_len: int | None = None
    name: str = ""
    """What reports call it; the model argument where empty."""

    @property
    def label(self) -> str:
        """Name in reports."""
        return self.name or self.model


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One plan of one model to run for real.

    `stage_modules`: module paths of each pipeline stage (pp * vpp of them, forward order), as
    `Prediction.stage_modules` has them; empty = cut evenly by parameters. `blocks`: the modules that
    FSDP wraps one by one and that recomputation checkpoints; empty = elements of the outermost module
    lists. `tp_styles`: module path -> tensor-parallel style; needed where tp > 1.
    """

    model: ModelSpec
    plan: Plan
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    seed: int = 0
    stage_modules: tuple[tuple[str, ...], ...] = ()
    blocks: tuple[str, ...] = ()
    tp_styles: Mapping[str, str] = field(default_factory=dict)
    bucket_cap_mb: float | None = None
    """DDP bucket size in MiB; None = DDP's default."""
    prompt_len: int = 0
    output_len: int = 0
    """Above 0: not a training step but an answer of so many tokens to prompts of `prompt_len`."""

    def __post_init__(self) -> None:
        if min(self.prompt_len, self.output_len) < 0 or (self.prompt_len > 0) != (self.output_len > 0):
            raise UsageError(
                f"prompt_len({self.prompt_len}) and output_len({self.output_len}): both 0, or both positive"
            )
        if self.bucket_cap_mb is not None and self.bucket_cap_mb <= 0:
            raise UsageError(f"bucket_cap_mb={self.bucket_cap_mb}: must be positive")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"optimizer {self.optimizer!r}: there are {', '.join(OPTIMIZERS)}")
        if self.stage_modules and len(self.stage_modules) != self.plan.pp * self.plan.vpp:
            raise UsageError(
                f"{len(self.stage_modules)} stages given, but pp({self.plan.pp}) * vpp({self.plan.vpp}) = "
                f"{self.plan.pp * self.plan.vpp} are needed"
            )

    @property
    def id(self) -> str:
        """`model/plan`, unique within a comparison of plans."""
        return f"{self.model.label}/{self.plan}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["model"] = asdict(self.model)
        data["plan"] = asdict(self.plan)
        data["tp_styles"] = dict(self.tp_styles)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s data."""
        values = dict(data)
        values["model"] = ModelSpec(**values["model"])
        plan = dict(values["plan"])
        values["plan"] = Plan(**{**plan, "flags": tuple(plan.get("flags", ()))})
        values["stage_modules"] = tuple(tuple(stage) for stage in values.get("stage_modules", ()))
        values["blocks"] = tuple(values.get("blocks", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How runs are measured.

    All plans of a model are built, then `rounds` times in turn each takes one untimed and `steps` timed
    steps, so that a slow drift of the machine meets every plan alike, and a busy spell of seconds only some
    rounds of each. More rounds follow until each plan's median is known within 1 % or the set has taken
    `seconds_per_plan` for each of its plans. `min_round_s` asks for more timed steps where steps are short.
    `alive` bounds how many plans exist at once (memory). `trace_dir`: folder for a profiler trace of each
    run's ranks; None = no traces. `timeout_s`: seconds without progress.
    """

    device: str = "cpu"
    threads: int = 1
    pin: bool = True
    warmup: int = 2
    rounds: int = 7
    steps: int = 2
    min_round_s: float = 0.3
    seconds_per_plan: float = 0.0
    alive: int = 8
    profile: bool = True
    memory: bool = True
    trace_dir: str | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise UsageError(f"device {self.device!r}: there are {', '.join(DEVICES)}")
        for name in ("threads", "warmup", "rounds", "steps", "alive"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.timeout_s <= 0:
            raise UsageError(f"timeout_s={self.timeout_s}: must be positive")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(RunSettings):
    """What one set of worker processes does: runs of one world size, interleaved model by model."""

    specs: tuple[RunSpec, ...]
    world_size: int
    directory: str

    def __post_init__(self) -> None:
        RunSettings.__post_init__(self)  # a class with slots is made anew: super() would not find it
        if self.world_size < 1:
            raise UsageError(f"world_size={self.world_size}: must be at least 1")
        for spec in self.specs:
            if spec.plan.world_size > self.world_size:
                spec.plan.require_world_size(self.world_size)

    def to_json(self) -> str:
        """The job as JSON that `load` reads back."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["specs"] = [spec.to_dict() for spec in self.specs]
        return json.dumps(data, indent=1)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a job file. Raises InputFileError where it is not one."""
        try:
            data = json.loads(path.read_text())
            data["specs"] = tuple(RunSpec.from_dict(spec) for spec in data["specs"])
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputFileError(f"job file {path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RankResult:
    """What one rank measured of one run. Bytes and seconds; None = could not be measured."""

    rank: int
    median_s: float
    """Median of the rank's own step durations."""
    first_token_s: float | None = None
    """Of an answer: median time until its first token."""
    busy_s: float | None = None
    """Median time of a step in which a pipeline rank computed; the rest of it is bubble and transfers."""
    yardstick_s: float | None = None
    """Seconds of the yardstick step on this rank just before and after the timed steps."""
    cpu_s: float | None = None
    """Median processor time of a step, all threads: what the step costs however busy the machine is."""
    compute_s: float | None = None
    communication_s: float | None = None
    """Of one profiled step: time inside collectives and point-to-point (on CPU: waiting included)."""
    optimizer_s: float | None = None
    peak_memory_bytes: int | None = None
    memory_by_kind_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One plan, measured. `failed` is the reason where it could not run (then there are no times)."""

    spec: RunSpec
    device: str
    step_times_s: tuple[tuple[float, ...], ...] = ()
    """Round by round: the longest rank's time of each timed step."""
    step_time_s: float | None = None
    """Median over all timed steps."""
    spread_fraction: float | None = None
    """Half the distance between the 10th and 90th percentile, relative to the median."""
    first_step_s: float | None = None
    build_s: float | None = None
    ranks: tuple[RankResult, ...] = ()
    losses: tuple[float, ...] = ()
    """Loss of the first steps."""
    reference_losses: tuple[float, ...] = ()
    """The same steps on one device with the same seed and micro-batches."""
    loss_error: float | None = None
    """Largest relative difference of the two."""
    failed: str | None = None
    notes: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` reads back."""
        data = asdict(self)
        data["spec"] = self.spec.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read `to_dict`'s data."""
        values = dict(data)
        values["spec"] = RunSpec.from_dict(values["spec"])
        values["ranks"] = tuple(RankResult(**rank) for rank in values.get("ranks", ()))
        values["step_times_s"] = tuple(tuple(times) for times in values.get("step_times_s", ()))
        for name in ("losses", "reference_losses", "notes"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)
