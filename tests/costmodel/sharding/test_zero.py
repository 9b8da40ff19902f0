"""ZeRO stages against the paper's figures."""

from __future__ import annotations

import pytest

from costmodel.errors import PlanError
from costmodel.sharding.zero import zero_layout


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_figure_1_of_the_paper(stage: int, gigabytes: float) -> None:
    """7.5e9 parameters, 64 ranks (ZeRO paper, figure 1)."""
    layout = zero_layout(n_parameters=7_500_000_000, stage=stage, n=64)
    assert layout.state_bytes / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_communication_volume_of_section_7() -> None:
    def volume(stage: int) -> float:
        layout = zero_layout(n_parameters=1000, stage=stage, n=4)
        weight = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}
        calls = (*layout.forward, *layout.backward, *layout.step)
        return sum(weight[t.op] * t.size_bytes for t in calls) / 2000

    assert [volume(stage) for stage in range(4)] == [2.0, 2.0, 2.0, 3.0]


def test_kept_gathered_parameters_are_gathered_once() -> None:
    layout = zero_layout(n_parameters=1000, stage=3, n=4, reshard_after_forward=False)
    assert [t.op for t in (*layout.forward, *layout.backward)] == ["all_gather", "reduce_scatter"]


def test_bad_sizes() -> None:
    with pytest.raises(PlanError, match="zero_stage=4"):
        zero_layout(n_parameters=10, stage=4, n=2)
    with pytest.raises(PlanError, match=r"n\(0\)"):
        zero_layout(n_parameters=10, stage=1, n=0)
