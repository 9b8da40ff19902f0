"""Plan: how a model is split, as one string that parses back.

>>> plan = Plan.parse("dp8.tp4.pp2.vpp2.mbs2.gbs256.1f1b.zero1.sp.full")
>>> plan.world_size, plan.num_microbatches
(64, 16)
>>> str(plan)
'dp8.tp4.pp2.vpp2.mbs2.gbs256.zero1.sp.full'

Order is free; what equals its default is left out.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from costmodel.errors import PlanError
from costmodel.recompute import POLICIES, Recompute

__all__ = ["Plan"]

_DEGREES = {
    "dp": "dp",
    "tp": "tp",
    "pp": "pp",
    "vpp": "vpp",
    "cp": "cp",
    "ep": "ep",
    "etp": "expert_tp",
    "mbs": "micro_batch_size",
    "gbs": "global_batch_size",
    "zero": "zero_stage",
    "hsdp": "dp_shard",
}
_SCHEDULE_DEFAULT = "1f1b"


_MOST_RANKS = 1 << 20
"""More ranks than any machine has; rings and trees are walked rank by rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Degrees of each axis, batch sizes, schedule and memory policies.

    `dp` counts all data-parallel replicas (dp_replicate x dp_shard); under ZeRO-3 with `dp_shard` set,
    parameters are sharded over dp_shard ranks and replicated over dp / dp_shard groups (HSDP); under ZeRO-1
    and 2 the optimizer's states are.
    """

    dp: int = 1
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    expert_tp: int = 0
    """Ranks that each expert is split over; 0 = `tp`, or fewer where `ep` spans tensor-parallel ranks."""
    micro_batch_size: int = 1
    global_batch_size: int = 0
    """Sequences or images per step over all replicas; 0 = dp * micro_batch_size."""
    schedule: str = _SCHEDULE_DEFAULT
    zero_stage: int = 0
    dp_shard: int = 0
    sequence_parallel: bool = False
    recompute: str = "none"
    """A policy of `costmodel.recompute`."""
    flags: tuple[str, ...] = ()
    """Further named choices (strategy or executor names of `foreshard systems`), sorted."""

    def __post_init__(self) -> None:
        for name in ("dp", "tp", "pp", "vpp", "cp", "ep", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.world_size > _MOST_RANKS:
            raise PlanError(
                f"dp({self.dp}) * tp({self.tp}) * pp({self.pp}) * cp({self.cp}) = {self.world_size}: at most "
                f"{_MOST_RANKS} ranks can be forecast; take smaller degrees"
            )
        if self.dp_shard < 0:
            raise PlanError(f"dp_shard={self.dp_shard}: must not be negative (0: all replicas)")
        if self.global_batch_size < 0:
            raise PlanError(f"global_batch_size={self.global_batch_size}: must be positive")
        if self.zero_stage not in (0, 1, 2, 3):
            raise PlanError(f"zero_stage={self.zero_stage}: must be 0, 1, 2 or 3")
        Recompute.parse(self.recompute)
        if self.dp_shard and self.dp % self.dp_shard:
            raise PlanError(f"dp({self.dp}) is not a multiple of dp_shard({self.dp_shard})")
        if self.ep > 1 and (self.dp * self.tp * self.cp) % self.ep:
            raise PlanError(
                f"dp({self.dp}) * cp({self.cp}) * tp({self.tp}) is not a multiple of ep({self.ep})"
            )
        if self.expert_tp:
            self._check_expert_tp()
        if self.ep == 1:  # then it is tp, and follows it
            object.__setattr__(self, "expert_tp", 0)
        if self.vpp > 1 and self.pp == 1:
            raise PlanError(f"vpp({self.vpp}) needs pp > 1, got pp({self.pp})")
        per_pass = self.dp * self.micro_batch_size
        if not self.global_batch_size:
            object.__setattr__(self, "global_batch_size", per_pass)
        if self.global_batch_size % per_pass:
            raise PlanError(
                f"global_batch_size({self.global_batch_size}) is not a multiple of "
                f"dp({self.dp}) * micro_batch_size({self.micro_batch_size}) = {per_pass}"
            )

    def _check_expert_tp(self) -> None:
        etp, parts = self.expert_tp, self.ep * self.expert_tp
        if etp < 0 or self.tp % etp:
            raise PlanError(
                f"tp({self.tp}) is not a multiple of etp({etp}): choose a divisor of tp, or leave etp out"
            )
        if parts % self.tp or (self.dp * self.tp * self.cp) % parts:
            raise PlanError(
                f"ep({self.ep}) * etp({etp}) = {parts}: must be a multiple of tp({self.tp}) and divide "
                f"dp({self.dp}) * cp({self.cp}) * tp({self.tp}) = {self.dp * self.cp * self.tp}"
            )

    @property
    def world_size(self) -> int:
        """Ranks the plan needs: dp * tp * pp * cp (expert parallelism reuses them)."""
        return self.dp * self.tp * self.pp * self.cp

    @property
    def experts_over(self) -> int:
        """Parts that expert parallelism cuts experts into beside tensor parallelism: `ep`, or as many as
        there are replicas where `ep` spans tensor-parallel ranks too: each rank has 1 / (dp cp tp) of all.

        Megatron-Core's expert-tensor-parallel-size is tp experts_over / ep; where `expert_tp` says it, the
        parts follow. They are priced as narrower parts of more experts.
        """
        if self.expert_tp:
            return self.ep * self.expert_tp // self.tp
        most = min(self.ep, self.dp * self.cp)
        return max(d for d in range(1, most + 1) if self.ep % d == 0)

    @property
    def expert_width(self) -> int:
        """Ranks that each expert is split over: `expert_tp`, where given."""
        return self.tp * self.experts_over // self.ep

    @property
    def num_microbatches(self) -> int:
        """Micro-batches per replica and step."""
        return self.global_batch_size // (self.dp * self.micro_batch_size)

    def require_world_size(self, world_size: int) -> Self:
        """Return the plan, or raise PlanError with the formula where it needs another world size."""
        if self.world_size != world_size:
            raise PlanError(
                f"dp({self.dp}) * tp({self.tp}) * pp({self.pp}) * cp({self.cp}) = {self.world_size} "
                f"!= world_size({world_size}); change a degree or the number of ranks"
            )
        return self

    def with_(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def __str__(self) -> str:
        parts = [f"{token}{getattr(self, name)}" for token, name in _DEGREES.items() if self._says(name)]
        if self.schedule != _SCHEDULE_DEFAULT:
            parts.append(self.schedule)
        if self.sequence_parallel:
            parts.append("sp")
        if self.recompute != "none":
            parts.append(self.recompute)
        order = {"dp": 0, "tp": 1, "pp": 2, "vpp": 3, "cp": 4, "ep": 5, "etp": 6, "mbs": 7, "gbs": 8}
        parts.sort(key=lambda part: order.get(re.sub(r"\d+$", "", part), 9))
        return ".".join([*parts, *self.flags]) or "dp1"

    def _says(self, name: str) -> bool:
        value = getattr(self, name)
        if name == "global_batch_size":
            return bool(value != self.dp * self.micro_batch_size)
        return bool(value != {"zero_stage": 0, "dp_shard": 0, "expert_tp": 0}.get(name, 1))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the string form. Raises PlanError that names the token, and the tokens there are."""
        values: dict[str, Any] = {}
        flags: list[str] = []
        value: Any
        schedules = _schedules()
        for token in filter(None, text.strip().lower().split(".")):
            match = re.fullmatch(r"([a-z]+)(-?\d+)", token)
            if token in schedules:
                name, value = "schedule", token
            elif _is_strategy(token):
                flags.append(token)
                continue
            elif token == "sp":
                name, value = "sequence_parallel", True
            elif Recompute.is_one(token):
                name, value = "recompute", token
            elif match and match[1] in _DEGREES:
                name, value = _DEGREES[match[1]], int(match[2])
            else:
                raise PlanError(
                    f"plan {text!r}: unknown token {token!r}; there are: "
                    f"{', '.join(f'{t}N' for t in _DEGREES)}, sp, "
                    f"{', '.join(POLICIES)}, fullN, opsN, modules-NAME, "
                    f"{', '.join(schedules)}; strategies: {', '.join(_strategies())}"
                )
            if name in values:
                raise PlanError(f"plan {text!r}: {token!r} gives {name} a second time")
            values[name] = value
        return cls(**values, flags=tuple(sorted(flags)))

    @classmethod
    def from_toml(cls, text: str) -> Self:
        """Parse a TOML table of the field names. Raises PlanError on unknown keys or bad TOML."""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise PlanError(f"plan file is not valid TOML: {error}") from error
        table = table.get("plan", table)
        if not isinstance(table, dict):
            raise PlanError(f"plan file: plan = {table!r}: must be a table, [plan]")
        defaults = {f.name: f.default for f in fields(cls)}
        unknown = sorted(set(table) - set(defaults))
        if unknown:
            raise PlanError(f"plan file: unknown keys {unknown}; there are: {sorted(defaults)}")
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in table.items()}
        for name, value in values.items():
            if type(value) is not type(defaults[name]):
                kind = {int: "a whole number", bool: "true or false", str: "text", tuple: "a list of words"}
                raise PlanError(f"plan file: {name} = {table[name]!r}: must be {kind[type(defaults[name])]}")
        if not all(isinstance(word, str) for word in values.get("flags", ())):
            raise PlanError(f"plan file: flags = {table['flags']!r}: must be a list of words")
        return cls(**values)

    def to_toml(self) -> str:
        """The plan as a TOML table that `from_toml` reads back."""
        lines = ["[plan]"]
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, bool):
                text = str(value).lower()
            elif isinstance(value, int):
                text = str(value)
            elif isinstance(value, str):
                text = f'"{value}"'
            else:
                text = "[" + ", ".join(f'"{v}"' for v in value) + "]"
            lines.append(f"{f.name} = {text}")
        return "\n".join(lines) + "\n"


def _schedules() -> list[str]:
    from costmodel.schedules import SCHEDULES  # imported late: schedules import Plan

    return sorted(str(name) for name in SCHEDULES)


def _is_strategy(token: str) -> bool:
    from costmodel.strategies.registry import is_strategy

    return is_strategy(token)


def _strategies() -> list[str]:
    from costmodel.strategies import STRATEGIES

    return sorted(str(name) for name in STRATEGIES)
