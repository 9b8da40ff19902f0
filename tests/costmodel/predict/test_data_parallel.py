"""Exchanges of a stage's units: what they take from computation, and what that adds to a step."""

from __future__ import annotations

import pytest

from costmodel.framework import load_framework
from costmodel.hardware.schema import Overlap
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict.data_parallel import exchanges
from costmodel.predict.forecaster import Forecaster
from costmodel.predict.units import expand

_UNSLOWED = Overlap(source="nothing slows anything")


def _forecaster(*, slowed: bool = True, variant: str | None = None) -> Forecaster:
    profile = load_profile("a100-sxm4-80gb")
    return Forecaster(
        source=resolve("llama-2-7b", overrides={"num_hidden_layers": 4}, seq_len=1024),
        profile=profile if slowed else profile.model_copy(update={"overlap": _UNSLOWED}),
        framework=load_framework("pytorch-bf16"),
        network_variant=variant,
    )


def _steps_s(plan: str, variant: str | None = None) -> tuple[float, float]:
    return tuple(  # type: ignore[return-value]
        _forecaster(slowed=slowed, variant=variant).forecast(Plan.parse(plan)).prediction.step_time_s
        for slowed in (False, True)
    )


@pytest.mark.parametrize("plan", ["dp8.mbs2", "dp8.mbs2.zero3"])
def test_a_step_is_longer_by_what_hidden_collectives_take(plan: str) -> None:
    forecaster = _forecaster()
    asked = Plan.parse(plan)
    units = expand(forecaster, asked)
    taken_s = 0.0
    for one in exchanges(forecaster, asked, units):
        gathered_s = 2.0 * one.gather_s * one.gather_takes
        taken_s += one.reduce_s * one.reduce_takes + gathered_s
        assert 0.0 <= one.reduce_takes < 0.3
    plain_s, slowed_s = _steps_s(plan)
    assert 0.0 < slowed_s - plain_s < taken_s + 1e-9
    # the first gather and the last reductions run beside nothing, and two of them may run at a time
    assert slowed_s - plain_s > 0.3 * taken_s


def test_a_slow_link_takes_little_however_long_it_runs() -> None:
    near_plain, near = _steps_s("dp8.mbs2")
    far_plain, far = _steps_s("dp16.mbs2", variant="ethernet-1x100g")
    assert far_plain > near_plain
    assert far / far_plain - 1.0 < 0.5 * (near / near_plain - 1.0)
