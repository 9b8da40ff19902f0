"""Libraries that look at tensors' values on their way: fake ones have none, so the answer is given here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["as_on_real_tensors"]

_MASKS = "transformers.masking_utils"


def _one_sequence(position_ids: Any) -> None:
    """Positions count up from zero: one sequence in each row, as in the inputs made here."""
    return


@contextmanager
def as_on_real_tensors() -> Iterator[None]:
    """Inside, transformers takes the way it takes in a real run where its rows hold one sequence each.

    It reads position ids to find packed sequences; where it cannot, it builds a mask, which keeps attention
    from the causal kernel and repeats grouped keys and values.
    """
    masks = sys.modules.get(_MASKS)
    before = getattr(masks, "find_packed_sequence_indices", None)
    if before is None:
        yield
        return
    masks.find_packed_sequence_indices = _one_sequence  # type: ignore[union-attr]
    try:
        yield
    finally:
        masks.find_packed_sequence_indices = before  # type: ignore[union-attr]
