"""How each operator can run on a mesh axis. One rule per operator family, filed under its aten name.

A rule lists strategies: layouts taken and given, what of the work is split, and inner collectives. Every
operator also has `replicated`; one without a rule has only that.
"""

from __future__ import annotations

from costmodel.sharding.strategies import lookup, normalise, pointwise, products, views
from costmodel.sharding.strategies.call import (
    SHARDING_RULES,
    Call,
    InnerCollective,
    Rule,
    Strategy,
    replicated,
    rule_name,
)

__all__ = [
    "SHARDING_RULES",
    "Call",
    "InnerCollective",
    "Rule",
    "Strategy",
    "has_rule",
    "lookup",
    "normalise",
    "pointwise",
    "products",
    "rule_name",
    "strategies_for",
    "views",
]


def has_rule(target: str) -> bool:
    """Whether an operator has strategies beyond the replicated one."""
    return rule_name(target) in SHARDING_RULES


def strategies_for(call: Call) -> tuple[Strategy, ...]:
    """All strategies of an operator on the axis, the replicated one first, without duplicates."""
    found = [replicated(call)]
    rule = SHARDING_RULES.get(rule_name(call.op.target))
    if rule is not None and call.n > 1:
        for strategy in rule(call):
            if all(strategy.inputs != s.inputs or strategy.outputs != s.outputs for s in found):
                found.append(strategy)
    return tuple(found)
