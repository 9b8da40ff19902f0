"""Memory of many plans: what chunks of a rank hold at most, moment by moment."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.closed_form.memory import _distinct, held_bytes


def test_distinct_moments_are_those_of_each_row() -> None:
    rows = np.random.default_rng(0).integers(0, 9, size=(6, 20))
    rows[2] = 4
    for before, after in zip(rows, _distinct(rows), strict=True):
        assert set(after.tolist()) == set(before.tolist())
    assert _distinct(rows[2:3]).shape == (1, 1)


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 3, 8), (4, 2, 4), (8, 4, 32)])
def test_interleaved_ranks_hold_what_their_passes_do(p: int, v: int, m: int) -> None:
    saved = np.random.default_rng(p).integers(1, 1000, size=(1, v, p)).astype(np.float64)
    most = held_bytes(saved, "alternate", np.array([m]))[0]
    for rank in range(p):
        order = [c for _ in range(m // p) for c in range(v) for _ in range(p)]
        back = [v - 1 - c for c in order]
        warm_up = min((v - 1) * p + 2 * (p - 1 - rank), m * v)
        held = highest = sum(saved[0, c, rank] for c in order[:warm_up])
        for i in range(m * v):  # one forward, one backward
            held += saved[0, order[warm_up + i], rank] if warm_up + i < m * v else 0.0
            highest = max(highest, held)
            held -= saved[0, back[i], rank]
        assert most[rank] == highest
