"""Closed forms against the event engine: never above it, equal where they are exact, the same memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pytest

from costmodel.closed_form import Choices, Evaluated, evaluate
from costmodel.closed_form.units import unit_table
from costmodel.errors import PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster

SMALL = {"n_layer": 6, "n_embd": 256, "n_head": 8, "vocab_size": 512, "n_positions": 64}
TIED = {"num_layers": 2, "d_model": 128, "d_ff": 256, "num_heads": 4, "vocab_size": 512}
CASES = {
    "megatron": ("gpt2", SMALL, "a100-sxm4-80gb", "megatron"),
    "ddp in buckets": ("gpt2", SMALL, "h100-sxm5-80gb", "pytorch"),
    "encoder and decoder": ("t5-small", TIED, "a100-sxm4-80gb", "pytorch-bf16"),
    "overlapped transfers": ("gpt2", SMALL, "h100-sxm5-80gb", "megatron-core"),
}


@lru_cache(maxsize=8)
def forecaster(case: str) -> Forecaster:
    model, sizes, hardware, framework = CASES[case]
    return Forecaster(
        source=resolve(model, overrides=sizes, seq_len=64),
        profile=load_profile(hardware),
        framework=load_framework(framework),
    )


@lru_cache(maxsize=8)
def space(case: str) -> Evaluated:
    made = forecaster(case)
    return evaluate(
        made,
        Choices(
            n_devices=16,
            global_batch_size=32,
            n_units=made.n_units(),
            tp=(1, 2, 4),
            sequence_parallel=(False, True),
            schedules=("gpipe", "1f1b", "looped-bfs", "zb-h1"),
            vpp=(1, 2),
            zero=(0, 1, 2, 3),
            shard=(0, 8),
            recompute=("none", "full"),
            inside=(False, True),
            max_micro_batch_size=4,
        ),
    )


def sample(case: str, n: int) -> Iterator[tuple[int, Plan]]:
    found = space(case)
    rows = np.flatnonzero(np.isfinite(found.memory_bytes))
    for row in random.Random(case).sample(list(map(int, rows)), min(n, len(rows))):
        yield row, found.plan(row)


@pytest.mark.parametrize("case", CASES)
def test_no_step_is_shorter_than_its_bound_and_memory_is_the_same(case: str) -> None:
    found = space(case)
    for row, plan in sample(case, 60):
        prediction = forecaster(case).forecast(plan).prediction
        assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-8), plan
        assert found.bound_s[row] >= 0.5 * prediction.step_time_s, plan
        assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan


def test_memory_is_the_same_where_experts_and_copies_count() -> None:
    """Experts over several ranks, context-parallel shares, kept outputs and copies for the update."""
    sizes = {
        "num_hidden_layers": 4,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "num_local_experts": 4,
    }
    framework = load_framework("megatron-core").model_copy(
        update={"keeps_stage_outputs": True, "update_copy_bytes": 6.0, "loss_copy_bytes": 4.0}
    )
    made = Forecaster(
        source=resolve("mixtral-8x7b", overrides=sizes, seq_len=64),
        profile=load_profile("a100-sxm4-80gb"),
        framework=framework,
    )
    found = evaluate(
        made,
        Choices(
            n_devices=8,
            global_batch_size=16,
            n_units=made.n_units(),
            cp=(1, 2),
            tp=(1, 2),
            ep=(1, 2, 4),
            whole_experts=True,
            sequence_parallel=(False, True),
            schedules=("1f1b",),
            zero=(0, 1, 3),
        ),
    )
    rows = [int(row) for row in np.flatnonzero(np.isfinite(found.memory_bytes))]
    plans = {row: found.plan(row) for row in random.Random(0).sample(rows, 60)}
    assert any(plan.ep > 1 and plan.zero_stage == 1 and plan.cp > 1 for plan in plans.values())
    assert any(plan.expert_tp for plan in plans.values())
    for row, plan in plans.items():
        prediction = made.forecast(plan).prediction
        assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan
        assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-9), plan


def test_memory_of_experts_over_tensor_parallel_ranks_alone_counts_their_copies() -> None:
    """Three expert-parallel ranks among three tensor-parallel ones: each of two replicas has all experts."""
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "vocab_size": 516,
        "num_local_experts": 6,
    }
    made = Forecaster(
        source=resolve("mixtral-8x7b", overrides=sizes, seq_len=48),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron-core"),
    )
    choices = Choices(
        n_devices=6, global_batch_size=12, n_units=made.n_units(), tp=(3,), ep=(3,), schedules=("1f1b",)
    )
    found = evaluate(made, choices)
    rows = [int(row) for row in np.flatnonzero(np.isfinite(found.memory_bytes))]
    plans = {row: plan for row in rows if (plan := found.plan(row)).dp == 2}
    assert {plan.zero_stage for plan in plans.values()} >= {0, 1}
    for row, plan in plans.items():
        memory = made.forecast(plan).prediction.peak_memory_bytes
        assert found.memory_bytes[row] == pytest.approx(memory, rel=1e-6), plan


@pytest.mark.parametrize(
    "plan",
    [
        "dp8.tp2.mbs2.gbs32",
        "dp4.tp4.zero1.gbs32",
        "dp16.zero3.mbs2.gbs32",
        "dp16.zero3.hsdp8.gbs32",
        "dp8.pp2.gbs32.gpipe",
        "dp8.pp2.gbs32.gpipe.zero1",
        "dp4.tp2.pp2.mbs2.gbs32.gpipe.full",
    ],
)
def test_exact_where_it_is_exact(plan: str) -> None:
    found = space("megatron")
    asked = Plan.parse(plan)
    row = found.find(asked if asked.pp > 1 else asked.with_(schedule="zb-h1"))
    assert row is not None
    step_s = forecaster("megatron").forecast(found.plan(row)).prediction.step_time_s
    assert found.bound_s[row] == pytest.approx(step_s, rel=1e-3)
    assert found.estimate_s[row] == pytest.approx(step_s, rel=1e-3)


def test_even_1f1b_is_m_plus_p_minus_1_stages() -> None:
    """(m + p - 1)(F + B) where stages are equal and nothing is sent (arXiv 2006.09503, section 2.2)."""
    from costmodel.closed_form.step import Stages, chains_end_s

    n, p, m = 3, 4, np.array([1, 4, 10])
    ones = np.ones((n, 1, p))
    stages = Stages(
        forward_s=ones,
        input_s=ones,
        weight_s=ones,
        again_s=0 * ones,
        send_s=0 * ones,
        num_microbatches=m,
        p2p_overlap=False,
    )
    nothing = np.zeros((n, p))
    expected = (m + p - 1) * 3.0
    step_s = {
        kind: chains_end_s(stages, kind, nothing).max(axis=1)
        for kind in ("alternate", "flow shop", "lagging")
    }
    np.testing.assert_allclose(step_s["alternate"], expected)
    np.testing.assert_allclose(step_s["flow shop"], expected)
    late = np.minimum(m, p) - 1
    np.testing.assert_array_less(step_s["lagging"][late > 0], expected[late > 0])


def test_units_cost_what_a_forecast_says() -> None:
    made = forecaster("megatron")
    plan = Plan.parse("dp4.tp2.mbs2")
    table = unit_table(made, plan)
    step = made.forecast(plan).step
    computed = sum(table[name].sum() for name in ("forward_s", "input_s", "weight_s"))
    run_s = sum(a.duration_s for a in step.timeline.actions if a.kind in "FB" and a.stream == "compute")
    assert computed == pytest.approx(run_s, rel=1e-6)


def test_what_cannot_be_run_is_counted() -> None:
    found = space("megatron")
    assert found.n_considered == len(found) + sum(found.n_excluded.values())
    assert any("ZeRO-3" in reason for reason in found.n_excluded)


def test_schedules_without_a_closed_form_are_named() -> None:
    with pytest.raises(PlanError, match=r"zb-v.*no closed form"):
        Choices(n_devices=2, global_batch_size=4, n_units=4, schedules=("zb-v",))


def test_no_step_is_shorter_than_its_bound_where_parameters_come_late() -> None:
    """Updated parameters are gathered beside the next forward, which hides all of it or little."""
    made = Forecaster(
        source=resolve("gpt2", overrides=SMALL, seq_len=64),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework("megatron-core").model_copy(update={"overlap_gather": True}),
    )
    choices = Choices(
        n_devices=16,
        global_batch_size=32,
        n_units=made.n_units(),
        tp=(1, 2),
        schedules=("gpipe", "1f1b"),
        zero=(0, 1, 2),
    )
    found = evaluate(made, choices)
    rows = [int(row) for row in np.flatnonzero(np.isfinite(found.memory_bytes))]
    for row in random.Random(0).sample(rows, 40):
        plan = found.plan(row)
        assert found.bound_s[row] <= made.forecast(plan).prediction.step_time_s * (1 + 1e-8), plan
