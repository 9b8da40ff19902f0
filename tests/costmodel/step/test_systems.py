"""Systems of the founding documents that are schedules: their papers' closed forms on the engine."""

from __future__ import annotations

import pytest

from costmodel.schedules import schedule
from costmodel.step import Offload, StepResult, simulate_step
from tests.costmodel.step.test_simulate import stage

_OF_A_STAGE = ("reduce_s", "send_s", "optimizer_s", "units")


def step(name: str, p: int, m: int, **others: object) -> StepResult:
    """p equal stages (1 s forward, 2 s backward) under a schedule; `others`: of a stage or of the step."""
    own = {k: v for k, v in others.items() if k in _OF_A_STAGE}
    rest = {k: v for k, v in others.items() if k not in _OF_A_STAGE}
    stages = [stage(i, **own) for i in range(p)]  # type: ignore[arg-type]
    return simulate_step(stages, schedule=name, num_microbatches=m, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 4), (4, 8)])
def test_pipedream_runs_at_the_pace_of_its_slowest_stage(p: int, m: int) -> None:
    """SOSP 2019, section 3.2: no flush, so in the steady state every stage is always busy."""
    stages = [
        stage(i, forward_s=1.5 if i == p - 1 else 1.0, backward_s=3.0 if i == p - 1 else 2.0)
        for i in range(p)
    ]
    result = simulate_step(stages, schedule="pipedream", num_microbatches=m)
    assert result.step_time_s == pytest.approx(m * 4.5)
    assert result.weight_versions == tuple(p - i for i in range(p))


def test_pipedream_2bw_updates_once_a_window_and_holds_two_versions() -> None:
    result = step("pipedream-2bw", 4, 8, optimizer_s=0.5)
    assert result.step_time_s == pytest.approx(8 * 3.0 + 0.5, rel=0.05)
    assert set(result.weight_versions) == {2}
    assert result.step_time_s < step("1f1b", 4, 8, optimizer_s=0.5).step_time_s


@pytest.mark.parametrize("p", [2, 4, 8])
def test_chimera_s_bubble(p: int) -> None:
    """SC 2021, table 2: with m = p micro-batches p - 2 slots of 2 m + p - 2 are idle, where a backward takes
    as long as a forward."""
    stages = [stage(i, forward_s=1.0, backward_s=1.0) for i in range(p)]
    result = simulate_step(stages, schedule="chimera", num_microbatches=p)
    assert result.bubble_fraction == pytest.approx((p - 2) / (2 * p + p - 2))
    assert all(len(held) == 2 for held in result.stages_of)


def test_chimera_reduces_between_its_two_copies() -> None:
    alone = step("chimera", 4, 4)
    reduced = step("chimera", 4, 4, reduce_s=0.4, overlap_dp=False)
    assert reduced.breakdown_s["dp_comm"] == pytest.approx(2 * 0.4), "each rank holds two stages"
    assert reduced.step_time_s > alone.step_time_s


@pytest.mark.parametrize("m", [4, 8])
@pytest.mark.parametrize("reduce_s", [0.0, 0.3, 2.0])
def test_hippie_is_never_slower_than_communication_at_the_end(m: int, reduce_s: float) -> None:
    """ICPP 2021: gradients are reduced inside the bubble."""
    hippie = step("hippie", 4, m, dp=2, reduce_s=reduce_s, units=4)
    late = step("1f1b", 4, m, dp=2, reduce_s=reduce_s, units=4, overlap_dp=False)
    assert hippie.step_time_s <= late.step_time_s + 1e-9
    if reduce_s:
        assert hippie.step_time_s < late.step_time_s


@pytest.mark.parametrize("send_s", [0.0, 0.2, 1.0])
def test_axonn_is_never_slower_than_its_blocking_order(send_s: float) -> None:
    """arXiv 2110.13005: transfers run beside the computation."""
    assert (
        step("axonn", 4, 8, send_s=send_s).step_time_s <= step("1f1b", 4, 8, send_s=send_s).step_time_s + 1e-9
    )


def test_dapple_holds_what_1f1b_holds() -> None:
    """PPoPP 2021, section 3.2, policy A."""
    for m in (2, 4, 8):
        dapple, ours = step("dapple", 4, m), step("1f1b", 4, m)
        assert dapple.peak_activation_bytes == ours.peak_activation_bytes
        assert max(dapple.peak_activation_bytes) < max(step("gpipe", 4, 8).peak_activation_bytes)


def test_zero_bubble_fills_with_weight_gradients() -> None:
    """arXiv 2401.10241: with F = I = W a third of 1F1B's bubble is left by ZB-H1 (table 1)."""
    plain, split = step("1f1b", 4, 12), step("zb-h1", 4, 12)
    assert plain.step_time_s - 12 * 3.0 == pytest.approx(3 * 3.0)
    assert split.step_time_s - 12 * 3.0 == pytest.approx(3 * 1.0)


def test_harmony_moves_weights_three_times_whatever_the_micro_batches() -> None:
    """VLDB 2022, section 4: 3 W and twice the optimizer's state, per pack and step."""
    from costmodel.stage_costs import CostParts, StageCosts, UnitCosts

    part = CostParts(parts_s={"compute": 1.0})
    unit = UnitCosts(name="u", forward=part, backward_input=part, backward_weight=part, parameter_bytes=100)
    packs = [
        StageCosts(index=i, units=(unit,), send_bytes=0, send_s=0.0, optimizer_s=0.1, state_bytes=800)
        for i in range(4)
    ]
    each = 3 * 100 + 2 * (800 - 2 * 100)
    for m in (1, 4):
        offload = Offload(h2d_bytes_per_s=50.0, d2h_bytes_per_s=50.0)
        result = simulate_step(packs, schedule="harmony", num_microbatches=m, vpp=2, offload=offload)
        copies = [a for a in result.timeline.actions if a.kind == "copy"]
        moved = sum(a.duration_s * 50.0 for a in copies)
        assert moved == pytest.approx(4 * each)
        assert result.resident_state_bytes == (1600, 1600)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1", "chimera", "hippie"])
def test_faster_links_never_slow_a_step(name: str) -> None:
    times = [step(name, 4, 8, send_s=s).step_time_s for s in (0.4, 0.2, 0.1, 0.0)]
    assert times == sorted(times, reverse=True)


def test_a_long_schedule_is_cheap_to_make() -> None:
    """16 ranks, 512 micro-batches: every action once."""
    order = schedule("1f1b", 16, 1, 512)
    assert sum(map(len, order)) == 16 * 512 * 2
