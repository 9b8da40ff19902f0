"""The models and plans that `validate run` takes where none are named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import costmodel
from costmodel.errors import UsageError
from costmodel.plan import Plan
from planner.validation.run_spec import ModelSpec

__all__ = ["StandardModel", "standard_models", "standard_plans"]

_MICRO_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StandardModel:
    """A model small enough to be run in every way on two cores, and its global batch."""

    model: ModelSpec
    global_batch_size: int


def standard_models(names: tuple[str, ...] = ()) -> tuple[StandardModel, ...]:
    """The validation models of costmodel/data, or those with the given names.

    Raises UsageError for an unknown name.
    """
    data = json.loads((Path(costmodel.__file__).parent / "data" / "validation_models.json").read_text())
    found = {
        entry["name"]: StandardModel(
            model=ModelSpec(
                model=entry["model"],
                overrides=entry["overrides"],
                seq_len=entry["seq_len"],
                name=entry["name"],
            ),
            global_batch_size=entry["global_batch_size"],
        )
        for entry in data["models"]
    }
    if unknown := [name for name in names if name not in found]:
        raise UsageError(f"unknown validation models {unknown}; there are: {', '.join(found)}")
    return tuple(found[name] for name in names or found)


def standard_plans(global_batch_size: int, n_ranks: int = 2) -> tuple[Plan, ...]:
    """Single device, DDP, FSDP, tensor parallel, GPipe and 1F1B over `n_ranks`, all of one global batch.

    Pipelines run four micro-batches (fewer where the batch does not divide).
    Raises UsageError where the batch does not divide over the ranks.
    """
    gbs, n = global_batch_size, n_ranks
    if n < 2 or gbs % n:
        raise UsageError(f"global batch {gbs} over {n} ranks: needs 2 or more ranks that divide the batch")
    m = next(m for m in range(min(_MICRO_BATCHES, gbs), 0, -1) if gbs % m == 0)
    pipeline = Plan(pp=n, micro_batch_size=gbs // m, global_batch_size=gbs)
    return (
        Plan(micro_batch_size=gbs),
        Plan(dp=n, micro_batch_size=gbs // n),
        Plan(dp=n, micro_batch_size=gbs // n, zero_stage=3),
        Plan(tp=n, micro_batch_size=gbs),
        pipeline.with_(schedule="gpipe"),
        pipeline,
    )
