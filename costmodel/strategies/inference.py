"""How inference is laid out: weights streamed to the device, and micro-batches through a pipeline.

zero-inference       weights stay on the host and come in unit by unit, ahead of use (arXiv 2207.00032,
                     section VI); data-parallel ranks fetch a part each and gather
zero-inference-nvme  weights come from drives
pipelined            micro-batches of the plan's size fill the pipeline, in prompts and in tokens
hybrid               DeepSpeed-Inference (section IV.C): as many micro-batches as make prompts shortest,
                     as many as make tokens shortest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.errors import PlanError
from costmodel.plan import Plan
from costmodel.strategies.registry import STRATEGIES, Strategy, chosen

__all__ = ["MicroBatches", "choose_micro_batches", "streamed_s", "streams_from"]

_STREAMING, _PIPELINING = "streaming", "pipelining"
_ABOUT = {
    "zero-inference": (_STREAMING, "weights streamed in from the host, unit by unit"),
    "zero-inference-nvme": (_STREAMING, "weights streamed in from drives"),
    "pipelined": (_PIPELINING, "micro-batches of the plan's size fill the pipeline"),
    "hybrid": (_PIPELINING, "micro-batches chosen for prompts and for tokens apart"),
}
for _name, (_family, _about) in _ABOUT.items():
    STRATEGIES.register(_name)(Strategy(name=_name, family=_family, about=_about, inference=True))


def streams_from(plan: Plan) -> str:
    """Where weights come from: "" (they are there), "host" or "storage"."""
    word = chosen(plan, _STREAMING, inference=True)
    return "" if word is None else ("storage" if word == "zero-inference-nvme" else "host")


def streamed_s(compute_s: Sequence[float], transfer_s: Sequence[float], *, ahead: int = 1) -> float:
    """Seconds of units in order, each waiting for its weights; a transfer begins when the one before has
    ended and the unit `ahead` + 1 places before has computed (its buffer is free).

    With equal units: about max(compute, transfer) each.
    """
    copied = 0.0
    done: list[float] = []
    for i, (compute, transfer) in enumerate(zip(compute_s, transfer_s, strict=True)):
        free = done[i - ahead - 1] if i > ahead else 0.0
        copied = max(copied, free) + transfer
        done.append(max(done[-1] if done else 0.0, copied) + compute)
    return done[-1] if done else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """Sizes of the micro-batches in which prompts and tokens of a batch go through a pipeline."""

    prompt: int
    token: int


def choose_micro_batches(
    plan: Plan,
    batch_size: int,
    prompt_s: Callable[[int], float],
    token_s: Callable[[int], float],
    *,
    prompt_len: int = 1,
    most_tokens: int = 0,
) -> MicroBatches:
    """The plan's micro-batches of a batch; without a pipeline or a word for it, those of the framework.

    `most_tokens`: a framework that cuts a pipeline's batch by itself, if the number of stages divides it in
    as many parts and then in halves until a part has no more tokens, each prompt `prompt_len` of them; 0: the
    whole batch goes from stage to stage.

    `prompt_s`, `token_s`: micro-batch size -> seconds through all stages of the pipeline. With m of them
    over p stages, a prompt takes (p + m - 1) / p of one's time, a token of all of them max(p, m) / p.
    Raises PlanError where the plan's size does not divide the batch.
    """
    word = chosen(plan, _PIPELINING, inference=True)
    if plan.pp == 1 or (word is None and not most_tokens):
        return MicroBatches(prompt=batch_size, token=batch_size)
    if word is None:
        return MicroBatches(
            prompt=_cut(batch_size, plan.pp, most_tokens // prompt_len),
            token=_cut(batch_size, plan.pp, most_tokens),
        )
    if word == "pipelined":
        size = plan.micro_batch_size
        if batch_size % size:
            raise PlanError(f"batch of {batch_size} is not a multiple of micro_batch_size({size})")
        return MicroBatches(prompt=size, token=size)
    sizes = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
    p = plan.pp
    return MicroBatches(
        prompt=min(sizes, key=lambda size: (p + batch_size // size - 1) * prompt_s(size)),
        token=min(sizes, key=lambda size: max(p, batch_size // size) * token_s(size)),
    )


def _cut(batch_size: int, stages: int, most: int) -> int:
    """A part of the batch: one of `stages` where they divide it, halved while even and larger than `most`."""
    size = batch_size if batch_size % stages else batch_size // stages
    while size > most and size % 2 == 0:
        size //= 2
    return size
