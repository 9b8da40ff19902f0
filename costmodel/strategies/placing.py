"""Which axis lies inside a node: from inside out tensor, context, data, then pipeline parallelism by default.

pp-inside   neighbouring pipeline stages inside a node, replicas on different nodes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.strategies.registry import STRATEGIES, Strategy, word_of

if TYPE_CHECKING:
    from costmodel.plan import Plan

__all__ = ["FAMILY", "PP_INSIDE", "pipeline_inside"]

FAMILY = "placement"
PP_INSIDE = "pp-inside"
STRATEGIES.register(PP_INSIDE)(
    Strategy(name=PP_INSIDE, family=FAMILY, about="pipeline stages inside a node, replicas across nodes")
)


def pipeline_inside(plan: Plan) -> bool:
    """Whether neighbouring stages lie closer together than replicas."""
    return word_of(plan, FAMILY) == PP_INSIDE
