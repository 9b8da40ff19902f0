"""Plan strings parse back; impossible plans say why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import PlanError
from costmodel.plan import Plan

degrees = st.sampled_from([1, 2, 3, 4, 8])


@given(
    dp=degrees,
    tp=degrees,
    pp=degrees,
    cp=degrees,
    mbs=degrees,
    accumulate=degrees,
    zero=st.integers(0, 3),
    sp=st.booleans(),
    recompute=st.sampled_from(["none", "selective", "full", "full4", "modules-mlp", "modules-mlp-self_attn"]),
)
def test_round_trips(dp, tp, pp, cp, mbs, accumulate, zero, sp, recompute):  # type: ignore[no-untyped-def]
    plan = Plan(
        dp=dp,
        tp=tp,
        pp=pp,
        cp=cp,
        micro_batch_size=mbs,
        global_batch_size=dp * mbs * accumulate,
        zero_stage=zero,
        sequence_parallel=sp,
        recompute=recompute,
    )
    assert Plan.parse(str(plan)) == plan
    assert Plan.from_toml(plan.to_toml()) == plan
    assert plan.world_size == dp * tp * pp * cp
    assert plan.num_microbatches == accumulate


def test_order_is_free() -> None:
    a = Plan.parse("dp8.tp4.pp2.vpp2.cp1.ep1.mbs2.gbs256.1f1b.zero1.sp.full")
    assert a == Plan.parse("full.sp.zero1.gbs256.mbs2.vpp2.pp2.tp4.dp8.1f1b")
    assert str(a) == "dp8.tp4.pp2.vpp2.mbs2.gbs256.zero1.sp.full"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dp2.banana", "unknown token 'banana'"),
        ("dp2.dp4", "a second time"),
        ("dp0", "must be at least 1"),
        ("dp-2", "must be at least 1"),
        ("zero5", "must be 0, 1, 2 or 3"),
        ("dp2.gbs3", r"global_batch_size\(3\) is not a multiple of dp\(2\)"),
        ("vpp2", "needs pp > 1"),
    ],
)
def test_impossible_plans(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.parse(text)


def test_world_size_shows_the_formula() -> None:
    with pytest.raises(PlanError, match=r"dp\(2\) \* tp\(2\) .* = 4 != world_size\(3\)"):
        Plan.parse("dp2.tp2").require_world_size(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('dp = "two"', "whole number"),
        ("dp = 2.5", "whole number"),
        ("dp = true", "whole number"),
        ('sequence_parallel = "no"', "true or false"),
        ("recompute = 1", "text"),
        ("flags = [1]", "list of words"),
        ("plan = 3", "table"),
        ("dp = 4\ndp_shard = -2", "must not be negative"),
        ("dp = 99999999999999999999", "at most 1048576 ranks"),
    ],
)
def test_a_file_with_wrong_values_says_which(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_toml(text)


def test_experts_lie_over_no_more_parts_than_there_are_ranks() -> None:
    assert Plan(dp=8, ep=8).experts_over == 8
    assert Plan(dp=16, tp=2, ep=8).experts_over == 8
    assert Plan(tp=8, ep=8).experts_over == 1
    assert Plan(dp=2, tp=4, ep=8).experts_over == 2
    assert Plan(dp=6, tp=4, ep=8).experts_over == 4


def test_experts_split_less_than_the_rest() -> None:
    whole = Plan.parse("dp16.tp2.ep8.etp1")
    assert (whole.experts_over, whole.expert_width) == (4, 1)
    assert str(whole) == "dp16.tp2.ep8.etp1"
    assert Plan(dp=16, tp=2, ep=8).expert_width == 2
    assert Plan(tp=8, ep=8).expert_width == 1
    assert Plan.parse("dp2.tp4.etp4").with_(tp=2) == Plan(dp=2, tp=2)
    with pytest.raises(PlanError, match=r"tp\(4\) is not a multiple of etp\(3\)"):
        Plan(dp=4, tp=4, ep=4, expert_tp=3)
    with pytest.raises(PlanError, match=r"ep\(2\) \* etp\(1\) = 2: must be a multiple of tp\(4\)"):
        Plan(dp=4, tp=4, ep=2, expert_tp=1)
