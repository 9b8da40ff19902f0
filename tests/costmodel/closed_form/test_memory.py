"""Memory of many plans: what chunks of a rank hold at most, moment by moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.closed_form import Choices, evaluate
from costmodel.closed_form.memory import _distinct, held_bytes
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.predict import Forecaster


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


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, 1024), nn.Linear(1024, 256)
        self.spare = nn.Linear(256, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def few_activations() -> Any:
    """Blocks whose parameters outweigh what a micro-batch keeps, each with a layer that nothing reads."""
    return nn.Sequential(*(_Block() for _ in range(6))), (torch.randn(8, 16, 256),)


@pytest.mark.parametrize("framework", ["pytorch", "pytorch-bf16", "megatron-core"])
def test_memory_is_the_same_and_bounds_hold_where_parameters_outweigh_activations(framework: str) -> None:
    made = Forecaster(
        source=resolve(f"{__name__}:few_activations", micro_batch_size=1),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework(framework),
    )
    choices = Choices(
        n_devices=8, global_batch_size=16, n_units=made.n_units(), zero=(0, 1, 2, 3), shard=(0, 4),
        recompute=("none", "full"), schedules=("1f1b",), max_micro_batch_size=2,
    )  # fmt: skip
    found = evaluate(made, choices)
    rows = [int(row) for row in np.flatnonzero(np.isfinite(found.memory_bytes))]
    assert {found.plan(row).zero_stage for row in rows} == {0, 1, 2, 3}
    for row in rows:
        plan = found.plan(row)
        prediction = made.forecast(plan).prediction
        assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan
        assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-8), plan
