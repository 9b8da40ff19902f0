"""Sizes to measure at: spread evenly over the logarithms of a box, any stretch of the list as well.

>>> log_points(2, {"m": (1, 1024), "n": (16, 4096)})
[{'m': 6, 'n': 24}, {'m': 1, 'n': 560}]
"""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["log_points", "rounded"]


def log_points(
    count: int,
    ranges: Mapping[str, tuple[int, int]],
    *,
    picks: Mapping[str, int] | None = None,
    start: int = 0,
) -> list[dict[str, int]]:
    """`count` points of the R_d sequence over the log-box, rounded to sizes that models use.

    The R_d sequence is x_i = frac(1/2 + i * (1/phi, 1/phi^2, ...)) with phi the root of
    phi^(d+1) = phi + 1 (M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018).
    `ranges` maps a size to its (lowest, highest), both reachable. `picks`: name -> number of choices,
    drawn from axes of the same sequence (choosing by i modulo something would tie choices to sizes).
    `start`: how many points to leave out first.
    """
    choices = dict(picks or {})
    d = len(ranges) + len(choices)
    phi = 2.0
    for _ in range(60):
        phi = (1.0 + phi) ** (1.0 / (d + 1))
    points = []
    for i in range(start + 1, start + count + 1):
        x = [math.modf(0.5 + i * phi ** -(axis + 1))[0] for axis in range(d)]
        point = {
            name: rounded(low * (high / low) ** at)
            for (name, (low, high)), at in zip(ranges.items(), x, strict=False)
        }
        point |= {name: int(n * at) for (name, n), at in zip(choices.items(), x[len(ranges) :], strict=True)}
        points.append(point)
    return points


def rounded(size: float) -> int:
    """A size as models have it: a multiple of 16 from 64 on, of 4 from 16 on, else the next integer."""
    step = 16 if size >= 64 else 4 if size >= 16 else 1
    return max(1, round(size / step) * step)
