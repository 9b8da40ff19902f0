"""Samples at a few sizes speak near them; away from them the nearest timed fit does."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.pricing import choose_fit, operator_times
from costmodel.hardware.reach import nearness, samples_of_kind, sizes_of_samples
from costmodel.hardware.schema import OperatorFit
from costmodel.hardware.store import load_profile
from costmodel.hardware.transfer import borrowed_fits
from tests.costmodel.hardware.devices import device, plain_fit, profile

DERIVED = "derived_from_efficiency"
SEEN = {"m": np.array([4096.0, 4096.0]), "n": np.array([4096.0, 4096.0]), "k": np.array([8192.0, 8192.0])}
AT = {"m": [4096.0], "n": [4096.0], "k": [8192.0]}
FAR = {"m": [1.0], "n": [4096.0], "k": [8192.0]}


def _derived(variant: str = "nt", **changed: float) -> OperatorFit:
    fit = plain_fit(variant=variant, timing=DERIVED, **changed)
    return fit.model_copy(update={"samples_at": sizes_of_samples("gemm", SEEN)})


def _seconds(
    fits: tuple[OperatorFit, ...], dims: dict[str, list[float]], variant: str, *timing: str
) -> float:
    return float(operator_times(profile(*fits), "gemm", variant, "bf16", dims, *timing).median_s[0])


def test_sizes_are_kept_once_and_nearness_falls_from_one_to_nothing() -> None:
    points = sizes_of_samples("gemm", SEEN)
    assert len(points) == 1
    rows = np.array([4096.0, 2048.0, 512.0, 1.0])
    weight = nearness(points, "gemm", {"m": rows, "n": np.full(4, 4096.0), "k": np.full(4, 8192.0)})
    assert weight[0] == pytest.approx(1.0, abs=1e-3)
    assert list(weight) == sorted(weight, reverse=True)
    assert weight[-1] < 1e-6


def test_a_product_is_a_batch_of_one() -> None:
    batch = samples_of_kind(sizes_of_samples("gemm", SEEN), "gemm", "bmm")
    dims = {name: np.asarray(value) for name, value in AT.items()}
    one, many = (nearness(batch, "bmm", dims | {"batch": np.array([n])})[0] for n in (1.0, 64.0))
    assert one == pytest.approx(1.0, abs=1e-3)
    assert many < 0.01


def test_few_derived_samples_decide_near_them_alone() -> None:
    slow, timed = _derived("nn", compute_efficiency=0.2, launch_s=1e-4), plain_fit()
    both = (slow, timed)
    assert _seconds(both, AT, "nn") == pytest.approx(_seconds((slow,), AT, "nn"), rel=1e-2)
    assert _seconds(both, FAR, "nn") == pytest.approx(_seconds((timed,), FAR, "nn"), rel=1e-6)
    assert _seconds((slow,), FAR, "nn") > 3.0 * _seconds((timed,), FAR, "nn")
    between = {"m": [1024.0], "n": [4096.0], "k": [8192.0]}
    alone = sorted(_seconds((fit,), between, "nn") for fit in both)
    assert alone[0] < _seconds(both, between, "nn") < alone[1]


def test_asked_for_as_derived_they_decide_everywhere() -> None:
    slow, timed = _derived(compute_efficiency=0.2, launch_s=1e-4), plain_fit()
    assert _seconds((slow, timed), FAR, "nt", DERIVED) == _seconds((slow,), FAR, "nt", DERIVED)


def test_own_derived_samples_leave_what_others_timed_to_be_borrowed() -> None:
    donors = [profile(plain_fit(dtype="bf16"), on="A100-SXM4-80GB")]
    target = device("A100-PCIe-80GB")
    assert [f.donor for f in borrowed_fits(target, [_derived()], donors)] == ["A100-SXM4-80GB"]
    assert borrowed_fits(target, [plain_fit()], donors) == []
    derived_alone = [profile(_derived(), on="A100-SXM4-80GB")]
    assert borrowed_fits(target, [_derived()], derived_alone) == []


def test_backward_attention_of_short_sequences_does_as_well_as_its_like_device_says() -> None:
    """Nine derived times of 4,096 tokens do not tell what 1,024 tokens cost."""
    dims = {"batch": 8.0, "q_len": 1024.0, "kv_len": 1024.0, "heads": 16.0, "kv_heads": 16.0}
    dims |= {"qk_dim": 64.0, "v_dim": 64.0, "window": 0.0, "causal": 1.0}
    pcie, sxm = load_profile("a100-pcie-80gb"), load_profile("a100-sxm4-80gb")
    own = choose_fit(pcie, "attention", "bwd", "bf16")
    assert own is not None
    assert own.samples_at
    times = [operator_times(p, "attention", "bwd", "bf16", dims).median_s[0] for p in (pcie, sxm)]
    assert times[0] == pytest.approx(times[1], rel=0.25)
