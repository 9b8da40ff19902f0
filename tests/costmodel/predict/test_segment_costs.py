"""What a segment's collectives cost beside its kernels: exchanges of experts' tokens."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from tests.costmodel.predict.test_frameworks import MOE


def exchange_s(plan: Plan, **changes: Any) -> float:
    framework = load_framework("megatron-core").model_copy(update=changes)
    forecaster = Forecaster(
        source=resolve_config(MOE, name="moe", seq_len=1024),
        profile=load_profile("h100-sxm5-80gb"),
        framework=framework,
    )
    return forecaster.forecast(plan).prediction.breakdown_s["ep_comm"]


def test_tokens_cross_nodes_once_for_each_node_they_are_needed_on() -> None:
    across = Plan(dp=16, ep=16, micro_batch_size=8, global_batch_size=128)
    once, each = exchange_s(across, dispatch="per_node"), exchange_s(across)
    # four experts drawn among two nodes meet 2 (1 - 1/16) of them: 1.875 copies for 4
    assert 1.875 / 4 < once / each < 0.8


def test_tokens_cross_ranks_once_for_each_rank_inside_a_node() -> None:
    inside = Plan(dp=8, ep=8, micro_batch_size=8, global_batch_size=64)
    once, each = exchange_s(inside, dispatch="per_node"), exchange_s(inside)
    # four experts drawn among eight ranks meet 8 (1 - (7/8)^4) of them: 3.31 copies for 4
    assert 3.31 / 4 < once / each < 1.0


def test_dispatch_kernels_move_no_more_than_their_rate_and_short_rows_slower() -> None:
    inside = Plan(dp=8, ep=8, micro_batch_size=8, global_batch_size=64)

    def at_rate_s(**changes: Any) -> float:
        return exchange_s(inside, dispatch="per_node", host_collective_s=0.0, **changes)

    slow = at_rate_s(dispatch_bytes_per_s=1e9)
    # 8 sequences of 1,024 tokens, rows of 256 bf16, 3.31 of 4 copies; two exchanges forward, two backward
    # in each of two layers
    rows = 8 * 1024 * 8 * (1 - (7 / 8) ** 4)
    assert slow == pytest.approx(8 * rows * 512 / 1e9, rel=1e-3)
    assert at_rate_s(dispatch_bytes_per_s=1e9, dispatch_row_bytes=512) == pytest.approx(2 * slow, rel=1e-3)
    assert at_rate_s(dispatch_bytes_per_s=1e15) == at_rate_s()


def test_a_tuned_exchange_is_faster_across_nodes_alone() -> None:
    inside = Plan(dp=8, ep=8, micro_batch_size=8, global_batch_size=64)
    across = Plan(dp=16, ep=16, micro_batch_size=8, global_batch_size=128)
    assert exchange_s(inside, dispatch_link_fraction=0.77) == exchange_s(inside)
    assert exchange_s(across, dispatch_link_fraction=0.77) < 0.9 * exchange_s(across)


def test_dispatch_kernels_are_faster_among_many_nodes() -> None:
    def per_token_s(dp: int, fraction: float) -> float:
        plan = Plan(dp=dp, ep=dp, micro_batch_size=8, global_batch_size=8 * dp)
        rate = {"dispatch_link_fraction": fraction, "host_collective_s": 0.0}
        return exchange_s(plan, dispatch="per_node", **rate)

    assert per_token_s(16, 0.92) == per_token_s(16, 0.0)
    assert per_token_s(32, 0.92) < 0.7 * per_token_s(32, 0.0)


def test_overlapped_exchanges_show_where_they_outlast_the_computation() -> None:
    plan = Plan(dp=16, ep=16, micro_batch_size=8, global_batch_size=128)
    hidden = exchange_s(plan, overlap_ep=True)
    assert 0.0 <= hidden < exchange_s(plan)
    # what their kernels keep of the device slows the computation beside them
    some, half = (exchange_s(plan, overlap_ep=True, dispatch_multiprocessors=n) for n in (20, 66))
    assert hidden < some < half < exchange_s(plan)
