"""CollectiveSample: one measured time of one collective, and the families that one fit may hold.

>>> sample = CollectiveSample(
...     op="all_reduce", n_ranks=2, size_bytes=1024.0, dtype="fp32", time_s=1e-4, timing="eager_loop",
...     impl="gloo",
... )
>>> sample.family("shared-memory")
('all_reduce', 'shared-memory', 'gloo', 'eager_loop')
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.errors import MeasurementError
from costmodel.hardware.collectives.algorithms import ALGORITHMS
from costmodel.hardware.kinds import COLLECTIVE_KINDS

__all__ = ["CollectiveSample", "usable_samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSample:
    """A time under one size, group and way of timing.

    `size_bytes` as nccl-tests counts it. `link`: name of the link in the network ("" = the default one for
    the group). `version`: library version, major.minor ("" unknown). `quality`: "" or why to leave it out.
    """

    op: str
    n_ranks: int
    n_nodes: int = 1
    size_bytes: float
    dtype: str = ""
    time_s: float
    rel_spread: float = 0.0
    timing: str
    impl: str = "nccl"
    version: str = ""
    link: str = ""
    device: str = ""
    source: str = ""
    quality: str = ""
    row_id: str = ""

    def __post_init__(self) -> None:
        if self.op not in COLLECTIVE_KINDS:
            raise MeasurementError(
                f"unknown collective {self.op!r}; there are: {', '.join(COLLECTIVE_KINDS)}"
            )
        if not (self.time_s > 0 and math.isfinite(self.time_s) and self.size_bytes > 0):
            raise MeasurementError(
                f"{self.op}: size_bytes={self.size_bytes} and time_s={self.time_s} must be positive"
            )
        if self.n_ranks < 2 or self.n_nodes < 1 or self.n_ranks % self.n_nodes:
            raise MeasurementError(
                f"{self.op}: n_ranks({self.n_ranks}) must be at least 2 and a multiple of "
                f"n_nodes({self.n_nodes})"
            )

    @property
    def algorithm(self) -> str:
        """The one algorithm the library was held to ("nccl:ring" -> "ring"), "" where it could choose."""
        suffix = self.impl.partition(":")[2]
        return suffix if suffix in ALGORITHMS else ""

    def family(self, default_link: str) -> tuple[str, str, str, str]:
        """(op, link, impl, timing): what one fit may hold."""
        impl = self.impl.partition(":")[0] if self.algorithm else self.impl
        return self.op, self.link or default_link, impl, self.timing


def usable_samples(samples: Sequence[CollectiveSample]) -> list[CollectiveSample]:
    """Samples fit for fitting: those without a reason against them."""
    return [sample for sample in samples if not sample.quality]
