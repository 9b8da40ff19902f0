"""The forecast without skill against closed forms of its own, and against the papers' counts of FLOP."""

from __future__ import annotations

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve_config
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from planner.validation.baseline import bubble_factor, no_skill_s, no_skill_step_s, step_flop

LAYERS, HIDDEN, VOCAB, SEQ = 4, 256, 1024, 128


@pytest.fixture(scope="module")
def forecaster() -> Forecaster:
    config = {"model_type": "gpt2", "n_layer": LAYERS, "n_embd": HIDDEN, "n_head": 4}
    config |= {"vocab_size": VOCAB, "n_positions": SEQ}
    return Forecaster(
        source=resolve_config(config, name="small", seq_len=SEQ),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron"),
    )


def block_flop(batch: int) -> float:
    """Forward of all blocks (arXiv 2104.04473, appendix): 24 B s h^2 + 4 B s^2 h each."""
    return LAYERS * (24.0 * batch * SEQ * HIDDEN**2 + 4.0 * batch * SEQ**2 * HIDDEN)


def head_flop(batch: int) -> float:
    return 2.0 * batch * SEQ * HIDDEN * VOCAB


def test_half_of_peak_by_hand() -> None:
    assert no_skill_s(312e12, n_ranks=1, peak_flop_per_s=312e12) == 2.0
    assert no_skill_s(312e12, n_ranks=8, peak_flop_per_s=312e12, bubble=1.5) == 0.375


@pytest.mark.parametrize(
    ("pp", "vpp", "m", "factor"), [(1, 1, 1, 1.0), (4, 1, 12, 1.25), (4, 3, 12, 1 + 3 / 36), (8, 1, 1, 8.0)]
)
def test_bubble_formula(pp: int, vpp: int, m: int, factor: float) -> None:
    assert bubble_factor(pp=pp, vpp=vpp, num_microbatches=m) == pytest.approx(factor)
    # of the whole step, (p - 1) / (v m + p - 1) is idle
    assert 1 - 1 / bubble_factor(pp=pp, vpp=vpp, num_microbatches=m) == pytest.approx(
        (pp - 1) / (vpp * m + pp - 1)
    )


def test_flop_are_three_forwards_and_a_fourth_where_all_is_recomputed(forecaster: Forecaster) -> None:
    plain = step_flop(forecaster, Plan.parse("mbs2.gbs8"))
    assert plain == pytest.approx(3 * (block_flop(8) + head_flop(8)), rel=0.02)
    full = step_flop(forecaster, Plan.parse("mbs2.gbs8.full"))
    assert full - plain == pytest.approx(block_flop(8), rel=0.02)  # the head does not run again
    every_second = step_flop(forecaster, Plan.parse("mbs2.gbs8.full2"))
    assert every_second - plain == pytest.approx((full - plain) / 2)
    core = step_flop(forecaster, Plan.parse("mbs2.gbs8.selective"))
    assert core - plain == pytest.approx(LAYERS * 4.0 * 8 * SEQ**2 * HIDDEN, rel=0.1)


def test_it_asks_for_no_graph_but_the_plans(forecaster: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    graph = forecaster.graph
    monkeypatch.setattr(forecaster, "graph", lambda size: asked.append(size) or graph(size))
    by_size = {m: step_flop(forecaster, Plan.parse(f"mbs{m}.gbs8.full2")) for m in (1, 2, 4)}
    assert sorted(set(asked)) == [1, 2, 4]
    assert len(set(by_size.values())) == 1


def test_step_by_hand(forecaster: Forecaster) -> None:
    plan = Plan.parse("dp2.pp2.mbs1.gbs8.full")
    expected = (4 * block_flop(8) + 3 * head_flop(8)) / (4 * 156e12) * (1 + 1 / 4)
    assert no_skill_step_s(forecaster, plan, dtype="fp16") == pytest.approx(expected, rel=0.02)


def test_what_it_cannot_see_does_not_count(forecaster: Forecaster) -> None:
    times = {
        no_skill_step_s(forecaster, Plan.parse(text), dtype="fp16")
        for text in ("dp4.gbs16", "tp4.gbs16", "dp2.tp2.gbs16", "dp4.mbs4.gbs16.zero3")
    }
    assert max(times) == pytest.approx(min(times), rel=1e-12)
