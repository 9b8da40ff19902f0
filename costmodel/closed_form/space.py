"""Every plan of a space, as columns, with its time and memory.

A plan is a row: indices into the choices of each axis. What rows share is priced once: units per way of
splitting, stages per number of stages, collectives per group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from costmodel.closed_form.evaluate import Pricer
from costmodel.closed_form.offload import SEARCHABLE
from costmodel.closed_form.step import KINDS, kind_of
from costmodel.errors import PlanError
from costmodel.estimate import FloatArray, IntArray
from costmodel.plan import Plan
from costmodel.strategies.placing import PP_INSIDE

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.twin import Twin

__all__ = ["NO_OFFLOAD", "Choices", "Evaluated", "divisors", "enumerate_plans", "evaluate"]

NO_OFFLOAD = "none"
_COLUMNS = (
    "tp",
    "cp",
    "ep",
    "etp",
    "sp",
    "mbs",
    "recompute",
    "pp",
    "vpp",
    "dp",
    "zero",
    "dp_shard",
    "inside",
    "schedule",
    "offload",
)
_SEVERAL_CHUNKS = ("interleaved", "looped-bfs")
_ONE_CHUNK = ("gpipe",)
"""GPipe with several chunks is looped breadth-first, and goes by that name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """The axes of the space and what bounds them."""

    n_devices: int
    global_batch_size: int
    n_units: int
    """Pieces that the model can be cut into for the pipeline."""
    tp: tuple[int, ...] = (1,)
    """Tensor-parallel degrees that divide the model's sharded dimensions and stay inside a node."""
    cp: tuple[int, ...] = (1,)
    ep: tuple[int, ...] = (1,)
    whole_experts: bool = False
    """Whether experts are also tried whole on their ranks where tensor parallelism splits the rest (etp1)."""
    sequence_parallel: tuple[bool, ...] = (False,)
    schedules: tuple[str, ...] = ("gpipe", "1f1b")
    """Those with several chunks per rank get `vpp`, the others one chunk."""
    vpp: tuple[int, ...] = (1,)
    zero: tuple[int, ...] = (0, 1, 3)
    shard: tuple[int, ...] = (0,)
    """Ranks that ZeRO-3 shards over (HSDP); 0: all replicas."""
    recompute: tuple[str, ...] = ("none",)
    inside: tuple[bool, ...] = (False,)
    """Whether the pipeline lies inside data parallelism (the word pp-inside)."""
    offload: tuple[str, ...] = (NO_OFFLOAD,)
    """What the host takes over; a plan that fits without it is not tried with it."""
    max_micro_batch_size: int = 64

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            if schedule not in KINDS:
                raise PlanError(
                    f"schedule {schedule!r} has no closed form to search by; there are: {', '.join(KINDS)}; "
                    "forecast it with `foreshard predict`"
                )
        for word in self.offload:
            if word not in (NO_OFFLOAD, *SEARCHABLE):
                raise PlanError(
                    f"offload {word!r} has no closed form to search by; there are: "
                    f"{', '.join((NO_OFFLOAD, *SEARCHABLE))}; forecast it with `foreshard predict`"
                )
        if self.offload[:1] != (NO_OFFLOAD,):
            raise PlanError(f"offload {list(self.offload)}: must begin with {NO_OFFLOAD!r}")


@dataclass(slots=True)
class Evaluated:
    """Rows of a space: columns of `_COLUMNS`, and what was found out about them (shape [n_plans])."""

    choices: Choices
    columns: dict[str, IntArray]
    n_considered: int
    n_excluded: Counter[str]
    bound_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    """No step of the plan is shorter; infinite where it does not fit."""
    estimate_s: FloatArray = field(default_factory=lambda: np.zeros(0))
    memory_bytes: FloatArray = field(default_factory=lambda: np.zeros(0))
    """Of the fullest rank; infinite where the plan cannot be priced or a smaller one does not fit."""
    host_fits: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = field(
        default_factory=lambda: np.ones(0, dtype=bool)
    )
    """Whether a node's host has the memory for what its ranks offload."""

    def __len__(self) -> int:
        return len(self.columns["tp"])

    def fits(self, device_memory_bytes: float) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which rows fit a device of that memory, and the host."""
        return np.asarray(self.host_fits & (self.memory_bytes <= device_memory_bytes))

    @property
    def n_runnable(self) -> int:
        """Rows that no rule excludes, memory aside."""
        return self.n_considered - sum(self.n_excluded.values())

    def n_actions(self, rows: IntArray) -> IntArray:
        """Forwards and backwards of one step over all stages."""
        at = {name: values[rows] for name, values in self.columns.items()}
        m = self.choices.global_batch_size // (at["dp"] * at["mbs"])
        return np.asarray(2 * m * at["pp"] * at["vpp"])

    def find(self, plan: Plan) -> int | None:
        """The row of a plan, None where the space has none."""
        for row in np.flatnonzero(
            (self.columns["tp"] == plan.tp)
            & (self.columns["pp"] == plan.pp)
            & (self.columns["mbs"] == plan.micro_batch_size)
            & (self.columns["zero"] == plan.zero_stage)
        ):
            if self.plan(int(row)) == plan:
                return int(row)
        return None

    def plan(self, row: int) -> Plan:
        """One row as a plan."""
        at = {name: int(self.columns[name][row]) for name in _COLUMNS}
        choices = self.choices
        return Plan(
            tp=at["tp"],
            cp=at["cp"],
            ep=at["ep"],
            expert_tp=at["etp"],
            pp=at["pp"],
            vpp=at["vpp"],
            dp=at["dp"],
            micro_batch_size=at["mbs"],
            global_batch_size=choices.global_batch_size,
            schedule=choices.schedules[at["schedule"]],
            zero_stage=at["zero"],
            dp_shard=at["dp_shard"],
            recompute=choices.recompute[at["recompute"]],
            sequence_parallel=bool(at["sp"]),
            flags=tuple(sorted(self._words(row))),
        )

    def _words(self, row: int) -> list[str]:
        """Words of a row's plan."""
        words = [PP_INSIDE] if self.columns["inside"][row] else []
        number = int(self.columns["offload"][row])
        return [*words, self.choices.offload[number]] if number else words


def divisors(n: int) -> list[int]:
    """All divisors of n, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def enumerate_plans(choices: Choices) -> Evaluated:
    """Every combination, those that cannot be run counted by their reason."""
    parts: list[dict[str, IntArray]] = []
    excluded: Counter[str] = Counter()
    n = choices.n_devices
    n_policies = len(choices.recompute) * len(choices.zero) * len(choices.schedules)
    for tp in divisors(n):
        for cp, pp in product(divisors(n // tp), repeat=2):
            if n % (tp * cp * pp):
                continue
            dp = n // (tp * cp * pp)
            reason = _degree_reason(choices, tp, cp, pp, dp)
            if reason:
                excluded[reason] += n_policies
                continue
            sizes = np.array(divisors(choices.global_batch_size // dp))
            large = sizes > choices.max_micro_batch_size
            if large.any():
                excluded[f"micro-batch above {choices.max_micro_batch_size}"] += int(large.sum()) * n_policies
            for ep in choices.ep:
                if (dp * tp * cp) % ep:
                    excluded["ep does not divide dp * cp * tp"] += n_policies
                    continue
                for etp in _expert_widths(choices, tp, dp * cp, ep):
                    parts.append(_policies(choices, tp, cp, pp, dp, (ep, etp), sizes[~large], excluded))
    columns = {
        name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, dtype=np.int64)
        for name in _COLUMNS
    }
    n_considered = len(columns["tp"]) + sum(excluded.values())
    return Evaluated(choices, columns, n_considered, excluded)


def _degree_reason(choices: Choices, tp: int, cp: int, pp: int, dp: int) -> str:
    if tp not in choices.tp:
        return "tp does not divide the model's sharded dimensions or leaves the node"
    if cp not in choices.cp:
        return "cp is not asked for or not modelled for this model"
    if pp > choices.n_units:
        return f"pp > {choices.n_units} pieces the model can be cut into"
    if choices.global_batch_size % dp:
        return "dp does not divide the global batch"
    return ""


def _expert_widths(choices: Choices, tp: int, replicas: int, ep: int) -> tuple[int, ...]:
    """`etp` of plans with these degrees: as tensor parallelism has it, and where that differs 1."""
    whole = choices.whole_experts and ep > 1 and ep % tp == 0 and ep <= replicas
    return (0, 1) if whole and tp > 1 else (0,)


def _policies(
    choices: Choices,
    tp: int,
    cp: int,
    pp: int,
    dp: int,
    experts: tuple[int, int],
    sizes: IntArray,
    excluded: Counter[str],
) -> dict[str, IntArray]:
    """All rows of one set of degrees; `experts`: ep and etp."""
    pipelines = _pipelines(choices, pp)
    states = [
        (zero, shard)
        for zero in choices.zero
        for shard in (choices.shard if zero == 3 else (0,))
        if (zero == 0 or dp * cp > 1) and (not shard or (shard < dp and dp % shard == 0))
    ]
    if dp * cp == 1:
        states = [(0, 0)]  # nothing to shard over: every stage of ZeRO is plain
    if not pipelines or not states:
        excluded["no schedule or ZeRO stage asked for fits these degrees"] += len(sizes)
        return {name: np.zeros(0, dtype=np.int64) for name in _COLUMNS}
    sp = [s for s in choices.sequence_parallel if not s or tp > 1] or [False]
    inside = [i for i in choices.inside if not i or (pp > 1 and dp > 1)] or [False]
    n_each = len(sizes) * len(choices.recompute) * len(sp) * len(inside) * len(choices.offload)
    gathered = [state for state in states if pp > 1 and state[0] == 3]
    short = [pipeline for pipeline in pipelines if pipeline[0] * pp > choices.n_units]
    n_gathered = n_each * len(gathered) * len(pipelines)
    states = [state for state in states if state not in gathered]
    n_short = n_each * len(states) * len(short)
    vpp, schedule = np.array([p for p in pipelines if p not in short], dtype=np.int64).reshape(-1, 2).T
    zero, shard = np.array(states, dtype=np.int64).reshape(-1, 2).T
    m = choices.global_batch_size // (dp * sizes)
    filled = (m % np.maximum(1, m // pp) == 0)[:, None] | ~_in_rounds(choices, schedule, vpp)
    axes = (
        len(sizes),
        len(choices.recompute),
        len(sp),
        len(inside),
        len(zero),
        len(vpp),
        len(choices.offload),
    )
    keep, all_kept = np.broadcast_to(filled[:, None, None, None, None, :, None], axes), bool(filled.all())
    for n, reason in (
        (n_gathered, "ZeRO-3 gathers parameters for every micro-batch of a pipeline"),
        (n_short, f"pp * vpp > {choices.n_units} pieces the model can be cut into"),
        (keep.size - int(keep.sum()), "micro-batches do not fill rounds of pp"),
    ):
        if n:
            excluded[reason] += n

    def spread(values: Sequence[int] | IntArray, axis: int) -> IntArray:
        shape = [-1 if axis == i else 1 for i in range(len(axes))]
        grid = np.broadcast_to(np.asarray(values, dtype=np.int64).reshape(shape), axes)
        return np.asarray(grid.ravel() if all_kept else grid[keep])

    rows = {
        "mbs": spread(sizes, 0),
        "recompute": spread(range(len(choices.recompute)), 1),
        "sp": spread(sp, 2),
        "inside": spread(inside, 3),
        "zero": spread(zero, 4),
        "dp_shard": spread(shard, 4),
        "vpp": spread(vpp, 5),
        "schedule": spread(schedule, 5),
        "offload": spread(range(len(choices.offload)), 6),
    }
    for name, value in (
        ("tp", tp),
        ("cp", cp),
        ("pp", pp),
        ("dp", dp),
        *zip(("ep", "etp"), experts, strict=True),
    ):
        rows[name] = np.full(len(rows["mbs"]), value, dtype=np.int64)
    return rows


def _pipelines(choices: Choices, pp: int) -> list[tuple[int, int]]:
    """(vpp, number of the schedule); without a pipeline the order does not matter."""
    names = choices.schedules
    if pp == 1:
        plain = [i for i, name in enumerate(names) if name not in _SEVERAL_CHUNKS]
        return [(1, plain[-1] if plain else 0)]
    return [
        (v, i)
        for i, name in enumerate(names)
        for v in choices.vpp
        if (v > 1 or name not in _SEVERAL_CHUNKS) and (v == 1 or name not in _ONE_CHUNK)
    ]


def _in_rounds(
    choices: Choices, schedule: IntArray, vpp: IntArray
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether micro-batches go through the chunks in rounds of p, which they must fill."""
    chunks = np.array([kind_of(name, 2) != "any" for name in choices.schedules])
    always = np.array([kind_of(name, 1) == "lagging" for name in choices.schedules])
    return np.asarray((chunks[schedule] & (vpp > 1)) | always[schedule])


def evaluate(forecaster: Forecaster, choices: Choices, twin: Twin | None = None) -> Evaluated:
    """Time and memory of every plan of the space; with a twin, on two cores."""
    found = enumerate_plans(choices)
    n = len(found)
    found.bound_s = np.full(n, np.inf)
    found.estimate_s = np.full(n, np.inf)
    found.memory_bytes = np.full(n, np.inf)
    found.host_fits = np.ones(n, dtype=bool)
    Pricer(forecaster, found, twin).run()
    return found
