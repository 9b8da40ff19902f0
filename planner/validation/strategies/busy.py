"""How long a pipeline rank computes: the time inside its stages' forwards and backwards.

What is left of a step, the update aside, is bubble and transfers. On a CPU a call returns when its work is
done; on a GPU it returns earlier, so nothing is measured there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Busy"]

_CHUNKS = ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk")


class Busy:
    """Adds up the time of the chunks of some pipeline stages."""

    def __init__(self, stages: Sequence[Any]) -> None:
        self._seconds = 0.0
        for stage in stages:
            for name in _CHUNKS:
                setattr(stage, name, self._timed(getattr(stage, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._seconds += time.perf_counter() - start

        return timed

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
