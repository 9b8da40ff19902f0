"""The registry of strategies, and how a plan's words are looked up in it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.registry import Registry

if TYPE_CHECKING:
    from costmodel.plan import Plan

__all__ = ["STRATEGIES", "Strategy", "chosen", "is_strategy", "number_of", "split_word", "word_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """A word of a plan. `family`: strategies of one family exclude each other. `numbered`: a count may stand
    behind the word (ps4). `inference`: it is for `infer`, not for a training step."""

    name: str
    family: str
    about: str
    numbered: bool = False
    inference: bool = False


STRATEGIES: Registry[Strategy] = Registry("strategy")


def split_word(flag: str) -> tuple[str, int]:
    """(word, number behind it or 0)."""
    if flag in STRATEGIES:
        return flag, 0
    match = re.fullmatch(r"(.*?[a-z])(\d+)", flag)
    return (match[1], int(match[2])) if match else (flag, 0)


def is_strategy(flag: str) -> bool:
    """Whether a plan's token names a strategy, with a number only where it takes one."""
    if flag in STRATEGIES:
        return True
    word, _ = split_word(flag)
    known = STRATEGIES.get(word)
    return known is not None and known.numbered


def chosen(plan: Plan, family: str, *, inference: bool = False) -> str | None:
    """The plan's word of a family, or None. PlanError where there are two, or it is not for this use."""
    for flag in plan.flags:
        word, _ = split_word(flag)
        strategy = STRATEGIES.get(word)
        if strategy is None:
            raise PlanError(f"plan {plan}: unknown word {flag!r}; see `foreshard systems`")
        if strategy.inference != inference:
            use, other = ("training", "infer") if strategy.inference else ("inference", "predict")
            raise PlanError(f"plan {plan}: {flag!r} is not for {use}; take it with `foreshard {other}`")
    return word_of(plan, family)


def word_of(plan: Plan, family: str) -> str | None:
    """The plan's word of a family, or None. PlanError where there are two."""
    words = [word for word, _ in map(split_word, plan.flags)]
    found = [w for w in words if (s := STRATEGIES.get(w)) is not None and s.family == family]
    if len(found) > 1:
        raise PlanError(f"plan {plan}: {' and '.join(found)} exclude each other; keep one")
    return found[0] if found else None


def number_of(plan: Plan, word: str, default: int) -> int:
    """The number behind a word of the plan."""
    numbers: Sequence[int] = [number for name, number in map(split_word, plan.flags) if name == word]
    return next((n for n in numbers if n), default)
