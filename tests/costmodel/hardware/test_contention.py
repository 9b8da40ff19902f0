"""What ranks on one memory lose to each other, and how an optimizer's tensors use the cache."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.estimate import FloatArray
from costmodel.hardware.forms.optimizer import OptimizerForm
from costmodel.hardware.pricing import contended_s, operator_times
from costmodel.hardware.schema import HardwareProfile
from costmodel.predict.optimizer_costs import optimizer_s
from tests.costmodel.hardware.devices import device, profile

ROWS = {"rows": [1024.0], "cols": [1024.0], "bytes": [8 * 1024.0**2]}


def waiting_s(p: HardwareProfile, kind: str, variant: str, dims: dict[str, list[float]]) -> FloatArray:
    times_s = operator_times(p, kind, variant, "fp32", dims).median_s
    return contended_s(p, kind, variant, "fp32", dims, times_s)


def test_without_a_measurement_nothing_is_lost() -> None:
    assert waiting_s(profile(), "elementwise", "add", ROWS) == pytest.approx([0.0])


def test_every_byte_costs_the_same_more() -> None:
    p = profile().model_copy(update={"contention_s_per_byte": 1e-14})
    more = {name: [2.0 * value[0]] for name, value in ROWS.items()}
    assert waiting_s(p, "elementwise", "add", ROWS) == pytest.approx([8e-14 * 1024**2])
    assert waiting_s(p, "elementwise", "add", more) == pytest.approx([16e-14 * 1024**2])
    product = {"m": [2048.0], "n": [2048.0], "k": [2048.0]}
    assert waiting_s(p, "gemm", "nt", product) == pytest.approx([1e-14 * 3 * 4 * 2048**2])


def test_no_more_than_half_of_a_time_is_waiting() -> None:
    p = profile().model_copy(update={"contention_s_per_byte": 1.0})
    times = operator_times(p, "elementwise", "add", "fp32", ROWS).median_s
    assert waiting_s(p, "elementwise", "add", ROWS) == pytest.approx(0.5 * times)


def test_an_optimizer_alone_is_faster_by_what_it_would_wait() -> None:
    p = profile().model_copy(update={"contention_s_per_byte": 1e-13})
    busy, _ = optimizer_s([1 << 20] * 4, "adamw", p)
    alone, _ = optimizer_s([1 << 20] * 4, "adamw", p, utilisation=0.0)
    assert busy - alone == pytest.approx(1e-13 * 28 * 4 * (1 << 20))


def test_a_cpu_holds_one_tensor_of_an_update_a_gpu_streams_them_all() -> None:
    dims = {"rows": np.array([8.0]), "cols": np.array([100.0]), "bytes": np.array([22400.0])}
    cpu = device().model_copy(update={"kind": "cpu"})
    assert OptimizerForm().cached_bytes(cpu, dims) == pytest.approx([2800.0])
    assert OptimizerForm().cached_bytes(device(), dims) == pytest.approx([22400.0])


def test_large_tensors_take_longer_per_element_on_a_cpu() -> None:
    p = profile()
    p = p.model_copy(update={"device": p.device.model_copy(update={"kind": "cpu"})})
    small, _ = optimizer_s([1 << 16] * 256, "adamw", p)
    large, _ = optimizer_s([1 << 24], "adamw", p)
    assert large > small
