"""Error and ranking figures by label, each beside those of the forecast that takes no skill.

Errors are of all rows with a time (or rate). Ranking figures are of groups in which a plan is chosen: rows of
one group of a source (model, GPU count, batch), one problem (GPU, types, framework, ...) and one metric,
with at least `MIN_PLANS` different plans. In the groups that rows come with, GPU or framework may differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from planner.validation.reliability import PLAN, PROBLEM
from planner.validation.scoring import ScoredRow, SummaryRow, summarise

__all__ = [
    "LABELS",
    "MEMORY_METRICS",
    "MIN_PLANS",
    "Figures",
    "figures_by",
    "is_time",
    "no_skill_rows",
    "of_plan_choice",
    "scale_of",
    "scale_order",
    "with_scale",
]

MIN_PLANS = 4
"""Fewer plans make hardly a choice: of two, a coin picks the best one every other time."""
LABELS = ("source", "gpu", "family", "strategy", "scale", "task")
"""What a report's figures are given by."""
MEMORY_METRICS = ("peak_mem_gb",)
_SCALES = ((1, "1"), (8, "2 - 8"), (64, "9 - 64"), (512, "65 - 512"), (4096, "513 - 4,096"))
_LARGEST = "over 4,096"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What rows with one value of a label add up to, for our forecasts and, over those of the rows that have
    one, for the no-skill forecasts (None where no row has one)."""

    ours: SummaryRow
    no_skill: SummaryRow | None

    def to_dict(self) -> dict[str, Any]:
        """The row of a `summary`, with the other one's figures under `no_skill`."""
        return {**asdict(self.ours), "no_skill": None if self.no_skill is None else asdict(self.no_skill)}


def is_time(row: ScoredRow) -> bool:
    """Whether the row's metric is a time or a rate: memory says nothing of them and has its own figures."""
    return row.metric not in MEMORY_METRICS


def scale_of(n_gpus: int) -> str:
    """The bin of a GPU count: '1', '2 - 8', ..."""
    return next((name for most, name in _SCALES if n_gpus <= most), _LARGEST)


def scale_order(name: str) -> int:
    """Place of a bin among the bins, small counts first."""
    names = [text for _, text in _SCALES]
    return names.index(name) if name in names else len(names)


def with_scale(rows: Iterable[ScoredRow]) -> list[ScoredRow]:
    """The rows with the label `scale` where they say how many GPUs they took."""
    found = []
    for row in rows:
        count = row.label("n_gpus")
        scale = {"scale": scale_of(int(count))} if count.isdigit() and int(count) > 0 else {}
        found.append(replace(row, labels={**row.labels, **scale}))
    return found


def of_plan_choice(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """The rows, grouped as choices of a plan; rows outside of any have no group."""
    members: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.skipped is None and row.group and row.label(PLAN):
            members[row.source, row.group, row.label(PROBLEM), row.metric].append(number)
    groups = [""] * len(rows)
    for key, numbers in members.items():
        if len({rows[n].label(PLAN) for n in numbers}) >= MIN_PLANS:
            for n in numbers:
                groups[n] = "\n".join(key)
    return [replace(row, group=group) for row, group in zip(rows, groups, strict=True)]


def no_skill_rows(rows: Iterable[ScoredRow]) -> list[ScoredRow]:
    """The same rows as the no-skill forecast would have them; those without one are left out."""
    return [
        replace(row, predicted=row.baseline_value, low=None, high=None, breakdown={}, loadings={})
        for row in rows
        if row.skipped is None and row.baseline_value is not None
    ]


def figures_by(rows: Sequence[ScoredRow], by: Iterable[str] = LABELS) -> list[Figures]:
    """Overall, then by each label: figures of both forecasts, ranked by the rows' groups."""
    labels = tuple(by)
    theirs: Mapping[tuple[str, str], SummaryRow] = {
        (s.by, s.key): s for s in summarise(no_skill_rows(rows), labels, min_group=MIN_PLANS)
    }
    found = []
    for summary in summarise(rows, labels, min_group=MIN_PLANS):
        other = theirs.get((summary.by, summary.key))
        found.append(Figures(ours=summary, no_skill=other if other is not None and other.n else None))
    return found
