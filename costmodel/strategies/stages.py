"""How a pipeline's stages are cut: by least bottleneck (without a word), or planned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.strategies.registry import STRATEGIES, Strategy, word_of

if TYPE_CHECKING:
    from costmodel.plan import Plan

__all__ = ["plans_stages"]

_FAMILY = "stages"

STRATEGIES.register("planned-stages")(
    Strategy(
        name="planned-stages",
        family=_FAMILY,
        about="stages cut for the least latency, transfers and each stage's memory counted",
    )
)


def plans_stages(plan: Plan) -> bool:
    """Whether the plan asks for planned stages."""
    return word_of(plan, _FAMILY) is not None
