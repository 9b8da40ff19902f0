"""Model state against the ZeRO paper's formulas (arXiv 1910.02054, figure 1)."""

from __future__ import annotations

import pytest

from costmodel.framework import FrameworkProfile
from costmodel.predict.memory import model_state
from costmodel.predict.prediction import StageMemory

MIXED = FrameworkProfile(
    name="paper",
    source="arXiv 1910.02054 section 3.1",
    parameter_bytes=2,
    gradient_bytes=2,
    optimizer_state_bytes=12,
)


@pytest.mark.parametrize(
    ("zero_stage", "expected_gb"),
    # Figure 1: 7.5 B parameters, 64 ranks, K = 12: 120, 31.4, 16.6, 1.9 GB
    [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)],
)
def test_figure_1(zero_stage: int, expected_gb: float) -> None:
    state = model_state(7_500_000_000, framework=MIXED, optimizer_bytes=12, zero_stage=zero_stage, dp=64)
    assert state.total / 1e9 == pytest.approx(expected_gb, abs=0.05)


def test_hsdp_shards_over_its_own_group() -> None:
    state = model_state(1000, framework=MIXED, optimizer_bytes=12, zero_stage=3, dp=8, dp_shard=4)
    assert state.total == 16 * 250


def test_context_parallel_ranks_divide_what_they_all_hold() -> None:
    state = model_state(1000, framework=MIXED, optimizer_bytes=12, zero_stage=1, dp=2, cp=2)
    assert (state.parameters, state.gradients, state.optimizer) == (2000, 2000, 12 * 250)


@pytest.mark.parametrize(("ep", "copies"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_experts_are_divided_over_their_own_copies(ep: int, copies: int) -> None:
    state = model_state(
        1600, framework=MIXED, optimizer_bytes=12, zero_stage=1, dp=8, n_expert_parameters=800, ep=ep
    )
    assert state.optimizer == 12 * (800 / 8 + 800 / copies)


def test_what_is_allocated_reserved_and_read_from_the_device() -> None:
    stage = StageMemory(
        stage=0,
        parameters=1,
        gradients=2,
        optimizer=3,
        activations=4,
        temporary=5,
        communication=6,
        framework=7,
        fragments=8,
    )
    assert (stage.allocated_bytes, stage.reserved_bytes, stage.peak_memory_bytes) == (21, 29, 28)
    assert stage.device_bytes(100) == 36
    assert stage.device_bytes(30) == 30  # the allocator gives back what nothing uses before it fails
    assert stage.device_bytes(20) == 28
