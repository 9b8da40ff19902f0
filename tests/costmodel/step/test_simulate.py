"""The simulated step against the papers' closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.stage_costs import CostParts, StageCosts, UnitCosts
from costmodel.step import simulate_step


def stage(
    index: int,
    *,
    forward_s: float = 1.0,
    backward_s: float = 2.0,
    units: int = 1,
    reduce_s: float = 0.0,
    gather_s: float = 0.0,
    send_s: float = 0.0,
    saved_bytes: int = 10,
    optimizer_s: float = 0.0,
) -> StageCosts:
    """A stage whose whole forward and backward take the given times, in equal units."""
    part = lambda s: CostParts(parts_s={"compute": s / units})  # noqa: E731
    return StageCosts(
        index=index,
        units=tuple(
            UnitCosts(
                name=f"unit{i}",
                forward=part(forward_s),
                backward_input=part(backward_s / 2),
                backward_weight=part(backward_s / 2),
                parameter_bytes=0,
                gather_s=gather_s,
                reduce_s=reduce_s,
                saved_bytes=saved_bytes // units,
            )
            for i in range(units)
        ),
        send_bytes=0,
        send_s=send_s,
        optimizer_s=optimizer_s,
        state_bytes=0,
    )


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("p", "m"), [(1, 4), (2, 2), (4, 4), (4, 8), (8, 24)])
def test_bubble_of_flushing_schedules(name: str, p: int, m: int) -> None:
    """(p - 1) / (m + p - 1): arXiv 1811.06965 section 2.3; 1F1B with flush the same (2006.09503)."""
    result = simulate_step([stage(i) for i in range(p)], schedule=name, num_microbatches=m)
    assert result.bubble_fraction == pytest.approx((p - 1) / (m + p - 1))
    assert result.step_time_s == pytest.approx(3.0 * (m + p - 1))


@pytest.mark.parametrize(("p", "v", "m"), [(2, 2, 4), (4, 2, 8), (4, 4, 16)])
def test_bubble_of_interleaved(p: int, v: int, m: int) -> None:
    """Idle over ideal time (p - 1) / (v m): (p - 1) / (v m + p - 1) of the step (2104.04473, 2.2)."""
    stages = [stage(i) for i in range(p * v)]
    result = simulate_step(stages, schedule="interleaved", num_microbatches=m, vpp=v)
    assert result.bubble_fraction == pytest.approx((p - 1) / (v * m + p - 1))


def test_naive_model_parallelism_uses_one_stage_at_a_time() -> None:
    """One micro-batch: utilisation 1/p."""
    result = simulate_step([stage(i) for i in range(4)], schedule="gpipe", num_microbatches=1)
    assert sum(result.busy_s) / (4 * result.step_time_s) == pytest.approx(1 / 4)


def test_activation_memory_of_gpipe_and_1f1b() -> None:
    stages = [stage(i) for i in range(4)]
    assert simulate_step(stages, schedule="gpipe", num_microbatches=8).peak_activation_bytes == (80,) * 4
    held = simulate_step(stages, schedule="1f1b", num_microbatches=8).peak_activation_bytes
    assert held == (40, 30, 20, 10)


def test_ddp_without_overlap_adds_its_communication() -> None:
    whole = simulate_step([stage(0, units=4, reduce_s=0.3)], dp=2, overlap_dp=False)
    assert whole.step_time_s == pytest.approx(3.0 + 4 * 0.3)
    assert whole.breakdown_s["dp_comm"] == pytest.approx(1.2)


def test_ddp_overlap_leaves_the_last_bucket() -> None:
    """Buckets shorter than the backward that hides them: only the last one is exposed (VLDB 2020, 3.2.3)."""
    result = simulate_step([stage(0, units=4, reduce_s=0.3)], dp=2)
    assert result.step_time_s == pytest.approx(3.0 + 0.3)


def test_gradient_accumulation_reduces_once() -> None:
    result = simulate_step([stage(0, units=4, reduce_s=0.3)], dp=2, num_microbatches=3, overlap_dp=False)
    assert result.breakdown_s["dp_comm"] == pytest.approx(1.2)


def test_zero3_gathers_for_forward_and_backward() -> None:
    """Three times a half all-reduce's volume: two gathers, one reduce-scatter (arXiv 1910.02054, 7.2.2)."""
    result = simulate_step(
        [stage(0, units=4, reduce_s=0.3, gather_s=0.2)], dp=2, zero_stage=3, overlap_dp=False
    )
    assert result.breakdown_s["dp_comm"] == pytest.approx(4 * (0.2 + 0.2 + 0.3))


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["gpipe", "1f1b", "interleaved", "looped-bfs"]),
    p=st.integers(1, 4),
    rounds=st.integers(1, 3),
    forward_s=st.floats(0.1, 3.0),
    send_s=st.floats(0.0, 0.5),
    reduce_s=st.floats(0.0, 0.5),
    gather_s=st.floats(0.0, 0.5),
    zero=st.sampled_from([0, 1, 3]),
    slowdown=st.floats(1.0, 2.0),
)
def test_rules_of_every_step(
    name: str,
    p: int,
    rounds: int,
    forward_s: float,
    send_s: float,
    reduce_s: float,
    gather_s: float,
    zero: int,
    slowdown: float,
) -> None:
    v = 2 if name in ("interleaved", "looped-bfs") else 1
    stages = [
        stage(
            i,
            forward_s=forward_s * (1 + 0.1 * i),
            units=2,
            send_s=send_s,
            reduce_s=reduce_s,
            gather_s=gather_s,
            optimizer_s=0.05,
        )
        for i in range(p * v)
    ]

    def step(**changes: object) -> object:
        options: dict[str, object] = {
            "schedule": name,
            "num_microbatches": p * rounds,
            "vpp": v,
            "zero_stage": zero,
            "dp": 2,
            "compute_slowdown": slowdown,
        }
        return simulate_step(stages, **{**options, **changes})  # type: ignore[arg-type]

    result = step()
    assert sum(result.breakdown_s.values()) == pytest.approx(result.step_time_s, rel=1e-6)
    assert result.step_time_s >= max(result.busy_s) - 1e-9
    assert all(seconds >= -1e-9 for seconds in result.breakdown_s.values())
    plain = step(compute_slowdown=1.0)
    assert plain.step_time_s <= result.step_time_s + 1e-9
    assert plain.step_time_s <= step(compute_slowdown=1.0, overlap_dp=False).step_time_s + 1e-9


def test_transfers_to_different_ranks_do_not_wait_for_each_other() -> None:
    """A V-shaped order with free transfers: 8 x 2 x 3 s of work and 3 s of idle time on each rank."""
    stages = [stage(i, forward_s=1.0, backward_s=2.0) for i in range(8)]
    result = simulate_step(stages, schedule="zb-v", num_microbatches=8, vpp=2)
    assert result.step_time_s == pytest.approx(51.0)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([("interleaved", 2), ("looped-bfs", 2), ("zb-h1", 1), ("zb-h1", 2), ("zb-v", 2)]),
    st.lists(st.floats(0.5, 2.0), min_size=4, max_size=4),
    st.floats(0.0, 0.5),
)
def test_listed_receives_lie_between_blocking_and_free_ones(
    named: tuple[str, int], work_s: list[float], send_s: float
) -> None:
    """A receive in the list waits for less than one that is posted last, and for more than none."""
    name, v = named
    stages = [stage(i, forward_s=work_s[i], backward_s=2 * work_s[i], send_s=send_s) for i in range(2 * v)]

    def step_s(**how: bool) -> float:
        return simulate_step(stages, schedule=name, num_microbatches=4, vpp=v, **how).step_time_s

    listed_s = step_s(p2p_overlap=True, receives_listed=True)
    assert step_s(p2p_overlap=True) - 1e-9 <= listed_s <= step_s() + 1e-9


def test_gradients_taken_apart_cost_the_later_stages_host_time() -> None:
    """One micro-batch through two stages: the last one's W is longer by `split_s`, the first one's is not."""
    plain = [stage(i) for i in range(2)]
    split = [replace(s, units=tuple(replace(u, split_s=0.5) for u in s.units)) for s in plain]
    step = lambda stages, name: simulate_step(stages, schedule=name, num_microbatches=1).timeline  # noqa: E731
    lengths = {
        action.name: action.duration_s for action in step(split, "zb-h1").actions if action.kind == "W"
    }
    assert lengths == {"0W0": pytest.approx(1.0), "1W0": pytest.approx(1.5)}
    assert step(split, "1f1b").makespan_s == step(plain, "1f1b").makespan_s


@pytest.mark.parametrize(("gather_s", "exposed_s"), [(0.2, 0.2), (1.5, 1.5 * 4 - 3 * 1.0)])
def test_updated_parameters_are_gathered_beside_the_next_forward(gather_s: float, exposed_s: float) -> None:
    """Four units of 1 s forward: the first gather is waited for, the others as far as they take longer."""
    stages = [stage(0, forward_s=4.0, backward_s=8.0, units=4, gather_s=gather_s, optimizer_s=0.5)]
    step = lambda **how: simulate_step(stages, dp=2, num_microbatches=2, **how).step_time_s  # noqa: E731
    alone = 2 * 12.0 + 0.5
    assert step(zero_stage=1) == pytest.approx(alone + 4 * gather_s)
    assert step(zero_stage=1, overlap_gather=True) == pytest.approx(alone + exposed_s)
    assert step(zero_stage=0, overlap_gather=True) == pytest.approx(step(zero_stage=0))
    assert step(zero_stage=1, overlap_gather=True, overlap_dp=False) == pytest.approx(alone + 4 * gather_s)


def test_later_stages_gather_while_they_wait_for_their_first_inputs() -> None:
    stages = [stage(i, forward_s=2.0, backward_s=4.0, units=2, gather_s=0.5) for i in range(2)]
    how = {"dp": 2, "num_microbatches": 2, "zero_stage": 2, "schedule": "1f1b"}
    late = simulate_step(stages, overlap_gather=True, **how).step_time_s
    none = simulate_step(
        [replace(s, units=tuple(replace(u, gather_s=0.0) for u in s.units)) for s in stages], **how
    )
    assert late == pytest.approx(none.step_time_s + 0.5)
