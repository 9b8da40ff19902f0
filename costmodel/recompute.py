"""Which activations a plan computes again instead of keeping.

none            keep everything
selective       the core of attention runs again (arXiv 2205.05198, section 4.3)
full            every block keeps its input and runs again
fullK           so does every K-th block (full4: blocks 0, 4, 8, ...)
modules-A-B     modules named A or B inside a block keep their input and run again (modules-mlp)
opsK            a block keeps its input, what attention makes and every K-th product from the first on; all
                else runs again (selective checkpointing by operator, torch.utils.checkpoint)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from costmodel.errors import PlanError

__all__ = ["POLICIES", "Recompute"]

POLICIES = ("none", "selective", "full")
_EVERY = re.compile(r"full([1-9]\d*)")
_OPERATORS = re.compile(r"ops([1-9]\d*)")
_MODULES = re.compile(r"modules((?:-[a-z0-9_]+)+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """A parsed policy."""

    kind: str
    """One of POLICIES, modules, or operators."""
    every: int = 1
    """Of full: blocks from one that runs again to the next; of operators: products from one kept to the
    next."""
    modules: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Recompute:
        """Raises PlanError that names the forms."""
        if text in POLICIES:
            return cls(kind=text)
        if match := _EVERY.fullmatch(text):
            return cls(kind="full", every=int(match[1]))
        if match := _OPERATORS.fullmatch(text):
            return cls(kind="operators", every=int(match[1]))
        if match := _MODULES.fullmatch(text):
            return cls(kind="modules", modules=tuple(match[1].strip("-").split("-")))
        raise PlanError(
            f"recompute={text!r}: must be one of {', '.join(POLICIES)}, fullK for every K-th block "
            "(full4), opsK to keep attention and every K-th product (ops2), or modules-NAME for modules of "
            "that name inside blocks (modules-mlp)"
        )

    @staticmethod
    def is_one(text: str) -> bool:
        """Whether the text names a policy."""
        return text in POLICIES or any(form.fullmatch(text) for form in (_EVERY, _OPERATORS, _MODULES))

    def of_block(self, number: int) -> str:
        """The policy of the model's `number`-th block, as text."""
        if self.kind == "modules":
            return "-".join(("modules", *self.modules))
        if self.kind == "operators":
            return f"ops{self.every}"
        return self.kind if number % self.every == 0 else "none"

    def names(self, module: str) -> bool:
        """Whether a module path lies in one of the named modules."""
        return any(part in self.modules for part in module.lower().split("."))
