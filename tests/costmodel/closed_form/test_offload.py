"""Offload in the space: tried where a plan does not fit without, bounded from below, the same memory."""

from __future__ import annotations

import random
from functools import lru_cache

import numpy as np
import pytest

from costmodel.closed_form import NO_OFFLOAD, SEARCHABLE, Choices, Evaluated, evaluate
from costmodel.errors import PlanError
from costmodel.framework import load_framework
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.predict import Forecaster

SIZES = {"n_layer": 5, "n_embd": 256, "n_head": 8, "vocab_size": 3072, "n_positions": 64}


@lru_cache(maxsize=4)
def forecaster(framework: str, memory_bytes: int | None = None) -> Forecaster:
    profile = load_profile("a100-sxm4-80gb")
    if memory_bytes is not None:
        device = profile.device.model_copy(update={"memory_bytes": memory_bytes})
        profile = profile.model_copy(update={"device": device})
    return Forecaster(
        source=resolve("gpt2", overrides=SIZES, seq_len=64),
        profile=profile,
        framework=load_framework(framework),
    )


def space(made: Forecaster, words: tuple[str, ...]) -> Evaluated:
    return evaluate(
        made,
        Choices(
            n_devices=8,
            global_batch_size=16,
            n_units=made.n_units(),
            tp=(1, 2),
            schedules=("gpipe", "1f1b", "interleaved", "zb-h1"),
            vpp=(1, 2),
            recompute=("none", "full"),
            offload=words,
            max_micro_batch_size=4,
        ),
    )


@lru_cache(maxsize=4)
def tight(framework: str) -> tuple[Forecaster, Evaluated]:
    """A device that a fifth of the plans fit on without offload, and the space with every word."""
    plain = space(forecaster(framework), (NO_OFFLOAD,))
    capacity = int(np.quantile(plain.memory_bytes[np.isfinite(plain.memory_bytes)], 0.2))
    made = forecaster(framework, capacity)
    return made, space(made, (NO_OFFLOAD, *SEARCHABLE))


@pytest.mark.parametrize("framework", ["megatron", "pytorch"])
def test_no_step_is_shorter_than_its_bound_and_memory_is_the_same(framework: str) -> None:
    made, found = tight(framework)
    words = found.columns["offload"]
    for number, word in enumerate(found.choices.offload):
        rows = [int(r) for r in np.flatnonzero((words == number) & np.isfinite(found.memory_bytes))]
        assert rows, word
        for row in random.Random(word).sample(rows, min(12, len(rows))):
            plan = found.plan(row)
            assert (word in plan.flags) == (number > 0)
            prediction = made.forecast(plan).prediction
            assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan
            if np.isfinite(found.bound_s[row]):
                assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-8), plan
                assert found.bound_s[row] >= 0.3 * prediction.step_time_s, plan


def test_only_what_does_not_fit_is_offloaded() -> None:
    made, found = tight("megatron")
    capacity = made.profile.device.memory_bytes
    words, memory = found.columns["offload"], found.memory_bytes
    plain = memory[np.arange(len(memory)) - words]
    assert np.isinf(memory[(words > 0) & (plain <= capacity)]).all()
    assert found.n_excluded["offload of a plan that fits without it"] > 0
    assert (memory[words > 0] <= capacity).any()


@pytest.mark.parametrize("framework", ["megatron", "pytorch"])
def test_closed_forms_and_the_engine_agree_on_the_host(framework: str) -> None:
    made, found = tight(framework)
    words = found.columns["offload"]
    offloaded = [int(r) for r in np.flatnonzero((words > 0) & np.isfinite(found.memory_bytes))]
    sampled = random.Random(0).sample(offloaded, 60)
    for memory_bytes in (1e7, 3e7, 1e8):
        host = made.host.model_copy(update={"memory_bytes": memory_bytes})
        small = made.on(host=host)
        again = space(small, (NO_OFFLOAD, *SEARCHABLE))
        for row in sampled:
            plan = again.plan(row)
            assert again.host_fits[row] == small.forecast(plan).prediction.host_fits, (plan, memory_bytes)
        capacity = made.profile.device.memory_bytes
        refused = (again.memory_bytes <= capacity) & ~again.host_fits
        assert refused.any()
        assert np.isinf(again.bound_s[refused]).all()
        assert again.n_excluded["what is offloaded does not fit the host's memory"] == refused.sum()
        assert (
            again.n_runnable - again.fits(capacity).sum()
            == (again.memory_bytes > capacity).sum()
            - (again.n_excluded["offload of a plan that fits without it"])
        )
    assert again.host_fits[sampled].any()


def test_words_without_a_closed_form_are_named() -> None:
    with pytest.raises(PlanError, match=r"cotrain.*no closed form"):
        Choices(n_devices=2, global_batch_size=4, n_units=4, offload=(NO_OFFLOAD, "cotrain"))
