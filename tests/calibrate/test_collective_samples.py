"""Collective samples: validation and families."""

from __future__ import annotations

from typing import Any

import pytest

from calibrate.collective_samples import CollectiveSample, usable_samples
from costmodel.errors import MeasurementError


def _sample(**fields: Any) -> CollectiveSample:
    values: dict[str, Any] = {
        "op": "all_reduce",
        "n_ranks": 4,
        "size_bytes": 1e6,
        "time_s": 1e-4,
        "timing": "nccl-tests",
    }
    return CollectiveSample(**(values | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"op": "gossip"},
        {"time_s": 0.0},
        {"time_s": float("nan")},
        {"size_bytes": -1.0},
        {"n_ranks": 1},
        {"n_ranks": 5, "n_nodes": 2},
    ],
)
def test_impossible_samples_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError):
        _sample(**fields)


def test_a_held_algorithm_shares_the_library_s_family() -> None:
    free, held = _sample(), _sample(impl="nccl:ring")
    assert held.algorithm == "ring"
    assert held.family("x") == free.family("x") == ("all_reduce", "x", "nccl", "nccl-tests")
    tuned = _sample(impl="nccl:tuned", link="y")
    assert tuned.algorithm == ""
    assert tuned.family("x") == ("all_reduce", "y", "nccl:tuned", "nccl-tests")


def test_unreliable_rows_are_left_out() -> None:
    good, bad = _sample(), _sample(quality="rank_skew")
    assert usable_samples([good, bad]) == [good]
