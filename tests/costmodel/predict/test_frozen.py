"""Parameters that are not trained: stored and computed with, but without gradients, updates or reductions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from costmodel.closed_form import Choices, evaluate
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction

WIDTH, RANK, BLOCKS = 128, 4, 4


class _Adapted(nn.Module):
    """A frozen layer beside a trained one of low rank (LoRA, arXiv 2106.09685, section 4.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        self.down = nn.Linear(WIDTH, RANK, bias=False)
        self.up = nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.base(x) + self.up(self.down(x)))


def adapted() -> Any:
    """The model of these tests, as `module:callable` returns it."""
    return nn.Sequential(*(_Adapted() for _ in range(BLOCKS))), (torch.randn(2, WIDTH),)


TRAINED = BLOCKS * 2 * WIDTH * RANK
FROZEN = BLOCKS * WIDTH * WIDTH


@lru_cache(maxsize=1)
def forecaster() -> Forecaster:
    return Forecaster(
        source=resolve(f"{__name__}:adapted"),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("pytorch"),
    )


def predicted(plan: str) -> Prediction:
    return forecaster().forecast(Plan.parse(plan)).prediction


def test_only_what_is_trained_has_gradients_and_state() -> None:
    (memory,) = predicted("dp2.mbs2").memory
    assert memory.parameters == 4 * (TRAINED + FROZEN)
    assert (memory.gradients, memory.optimizer) == (4 * TRAINED, 8 * TRAINED)
    assert memory.communication == 4 * TRAINED


@pytest.mark.parametrize(("stage", "parts"), [(1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_zero_divides_what_there_is(stage: int, parts: tuple[int, int, int]) -> None:
    (memory,) = predicted(f"dp4.mbs2.zero{stage}").memory
    sizes = 4 * (TRAINED + FROZEN), 4 * TRAINED, 8 * TRAINED
    held = (memory.parameters, memory.gradients, memory.optimizer)
    assert held == tuple(size // n for size, n in zip(sizes, parts, strict=True))


def test_closed_forms_count_alike() -> None:
    made = forecaster()
    found = evaluate(
        made,
        Choices(
            n_devices=4,
            global_batch_size=16,
            n_units=made.n_units(),
            tp=(1, 2),
            schedules=("1f1b",),
            zero=(0, 1, 2, 3),
            recompute=("none", "full"),
            max_micro_batch_size=4,
        ),
    )
    rows = np.flatnonzero(np.isfinite(found.memory_bytes))
    assert len(rows) > 20
    for row in rows[:: max(1, len(rows) // 20)]:
        plan = found.plan(int(row))
        prediction = made.forecast(plan).prediction
        assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan
        assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-6), plan
