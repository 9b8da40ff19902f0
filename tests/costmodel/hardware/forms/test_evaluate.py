"""Host floors and framework adjustments of a fit."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.forms.evaluate import adjustment_for, evaluate_fit, floor_parameter, form_of
from costmodel.hardware.schema import Adjustment, Correction
from tests.costmodel.hardware.devices import device, plain_fit

DIMS = {name: np.array([512.0, 4096.0]) for name in ("m", "n", "k")}


def _flat(weight: float, sigma: float) -> Correction:
    """A correction that is the same everywhere near the sizes of DIMS."""
    return Correction(
        length=(1e6,) * 14,
        centres=((0.0,) * 14,),
        weights=(weight,),
        sigmas=(sigma,),
        far_sigma=sigma,
        limit=1.0,
    )


def _adjustment(framework: str, weight: float) -> Adjustment:
    return Adjustment(framework=framework, n_samples=50, correction=_flat(weight, 0.02))


def test_floors_belong_to_ways_of_timing() -> None:
    gpu = device()
    assert floor_parameter(gpu, "cuda_graph") is None
    assert floor_parameter(gpu, "event_eager") is not None
    assert floor_parameter(gpu.model_copy(update={"kind": "cpu"}), "eager_loop") is None


def test_loop_is_as_slow_as_the_slower_queue() -> None:
    fit = plain_fit(timing="eager_loop", floor_s=1e-3)
    assert evaluate_fit(fit, device(), DIMS).median_s == pytest.approx([1e-3, 1e-3], rel=0.1)


def test_frameworks_shift_the_shared_fit() -> None:
    adjustments = (_adjustment("vllm-0.14.0", -0.1), _adjustment("sglang-0.5", 0.2))
    fit = plain_fit().model_copy(update={"correction": _flat(0.05, 0.03), "adjustments": adjustments})
    plain = evaluate_fit(plain_fit(), device(), DIMS).median_s
    shared = evaluate_fit(fit, device(), DIMS)
    vllm = evaluate_fit(fit, device(), DIMS, framework="vllm-0.24.0")
    assert shared.median_s / plain == pytest.approx(np.exp([0.05, 0.05]), rel=1e-3)
    assert vllm.median_s / plain == pytest.approx(np.exp([-0.05, -0.05]), rel=1e-3)
    assert vllm.log_sigma == pytest.approx([0.02, 0.02], rel=1e-3)


def test_framework_names() -> None:
    known = (_adjustment("trtllm-1.3.0rc20:flow", 0.1), _adjustment("vllm-0.14.0:fa3", 0.1))
    assert adjustment_for(known, "vllm-0.24.0:fa3") is known[1]
    assert adjustment_for(known, "trtllm-1.3.0rc20:flow") is known[0]
    assert adjustment_for(known, "vllm-0.24.0:fa2") is None
    assert adjustment_for(known, None) is None


def test_names_are_tried_in_order_and_may_leave_the_kernel_open() -> None:
    known = (_adjustment("trtllm-1.3.0rc20:flow", 0.1), _adjustment("vllm-0.14.0:fa3", 0.1))
    assert adjustment_for(known, "vllm") is known[1]
    assert adjustment_for(known, ("sglang", "trtllm")) is known[0]
    assert adjustment_for(known, ("trtllm:*mla*", "vllm:fa*")) is known[1]
    assert adjustment_for(known, ("sglang",)) is None
    assert adjustment_for(known, ()) is None


def test_what_was_measured_on_a_transferred_fit_takes_what_transfer_left_unknown_away() -> None:
    """A size that was measured is known, one far off less than before, and a further transfer widens it."""
    dims = {name: np.array([512.0, 16.0]) for name in ("m", "n", "k")}
    fit = plain_fit().model_copy(update={"extra_log_sigma": 0.38})
    x = form_of("gemm").features(device(), dims, fit.dtype, fit.variant)[:1]
    update = Correction(
        length=(1.0,) * x.shape[1],
        centres=tuple(tuple(map(float, row)) for row in x),
        weights=(0.1,),
        sigmas=(0.03,),
        far_sigma=0.8,
        limit=0.2,
    )
    known = fit.model_copy(update={"update": update})
    before, after, further = (evaluate_fit(f, device(), dims) for f in (fit, known, known.widened(0.09)))
    assert before.log_sigma[0] > 0.38
    assert after.log_sigma[0] < 0.1
    assert after.log_sigma[1] == pytest.approx(0.8 * before.log_sigma[1], rel=0.01)
    assert np.all(after.common < before.common)
    assert np.all(after.common <= after.log_sigma)
    assert further.log_sigma[0] > max(0.08, float(after.log_sigma[0]))
