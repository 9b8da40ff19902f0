"""The routed-expert layer: skew of its routing in closed form, bounds, and pooled variants."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.forms.moe import MoeForm
from tests.costmodel.hardware.devices import device

FORM = MoeForm()


def _dims(**changed: float) -> dict[str, np.ndarray]:
    sizes = {
        "num_tokens": 4096.0,
        "hidden": 4096.0,
        "inter": 2048.0,
        "topk": 2.0,
        "num_experts": 64.0,
        "moe_tp": 1.0,
        "moe_ep": 8.0,
    } | changed
    return {name: np.array([value]) for name, value in sizes.items()}


def _time_s(dims: dict[str, np.ndarray], variant: str, imbalance: float = 1.0) -> float:
    theta = {p.name: p.start for p in FORM.parameters(device(), "bf16", variant)}
    free = {"launch_s": 1e-12, "row_s": 1e-18, "expert_s": 1e-18, "memory_efficiency": 1e6, "padding": 1e-9}
    return float(FORM.physical(theta | free | {"imbalance": imbalance}, device(), dims, "bf16", variant)[0])


def test_skew_is_that_of_a_power_law() -> None:
    shares = np.arange(1.0, 65.0) ** -1.2
    shares /= shares.sum()
    # the first expert and seven average ones on a rank, over an eighth of all rows
    expected = 8 * (shares[0] + 7 * (1 - shares[0]) / 63)
    dims = _dims(num_tokens=1e6)
    assert _time_s(dims, "power_law_1.2") / _time_s(dims, "balanced") == pytest.approx(expected, rel=1e-3)


def test_one_rank_holds_everything_however_skewed() -> None:
    dims = _dims(moe_ep=1.0)
    assert _time_s(dims, "power_law_1.2") == pytest.approx(_time_s(dims, "balanced"))


def test_a_token_gives_an_expert_one_row_at_most() -> None:
    # one expert per rank: at most every token, which is 64 / 2 times the mean
    dims = _dims(moe_ep=64.0)
    assert _time_s(dims, "power_law_9") / _time_s(dims, "balanced") == pytest.approx(32.0, rel=0.05)


def test_features_tell_the_variants_apart() -> None:
    balanced, skewed = (
        FORM.features(device(), _dims(), "bf16", variant) for variant in ("balanced", "power_law_1.01")
    )
    assert balanced.shape == skewed.shape
    assert np.any(balanced != skewed)
