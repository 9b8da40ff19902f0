"""A base profile updated by a few sizes: there it says what was measured, elsewhere what it said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibrate.collective_samples import CollectiveSample
from calibrate.journal import Sample
from calibrate.refit import updated_collective, updated_profile
from costmodel.errors import UsageError
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.pricing import operator_times
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile, save_profile
from tests.calibrate.machines import a_machine

SHAPES = [(128, 256, 1024), (128, 1024, 256), (512, 256, 256), (1024, 512, 512)]
FAR = (8192, 8192, 16)


def base() -> HardwareProfile:
    return load_profile("epyc-core")


def predicted(profile: HardwareProfile, shape: tuple[int, int, int]) -> tuple[float, float]:
    m, n, k = (np.array([float(size)]) for size in shape)
    estimate = operator_times(profile, "gemm", "nt", "fp32", {"m": m, "n": n, "k": k})
    return float(estimate.median_s[0]), float(estimate.log_sigma[0])


def softmax_s(profile: HardwareProfile) -> float:
    dims = {"rows": np.array([512.0]), "cols": np.array([64.0]), "bytes": np.array([262144.0])}
    return float(operator_times(profile, "softmax", "fwd", "fp32", dims).median_s[0])


def a_sample(shape: tuple[int, int, int], time_s: float, *, spread: float = 0.0, n_visits: int = 2) -> Sample:
    return Sample(
        kind="gemm",
        variant="nt",
        dtype="fp32",
        dims=dict(zip(("m", "n", "k"), shape, strict=True)),
        timing="eager_loop",
        setting="together",
        time_s=time_s,
        spread=spread,
        n=10,
        n_visits=n_visits,
    )


def updated(ratio: float, *, spread: float = 0.0, n_visits: int = 2) -> HardwareProfile:
    """The base after its products were found `ratio` times as long as it says."""
    samples = [
        a_sample(shape, ratio * predicted(base(), shape)[0], spread=spread, n_visits=n_visits)
        for shape in SHAPES
    ]
    return updated_profile(
        base(), "here", a_machine(), samples, frozenset(s.key for s in samples), shared=0.5
    )


@pytest.mark.parametrize("ratio", [0.6, 1.0, 1.7])
def test_measured_sizes_are_predicted_and_surer(ratio: float) -> None:
    profile = updated(ratio)
    for shape in SHAPES:
        before_s, before_sigma = predicted(base(), shape)
        after_s, after_sigma = predicted(profile, shape)
        assert after_s == pytest.approx(ratio * before_s, rel=0.08)
        assert after_sigma < before_sigma


def test_every_size_is_known_by_itself() -> None:
    """Errors without anything in common: each measured size is predicted to within what is said of it."""
    rng = np.random.default_rng(2)
    drawn = (2 ** rng.integers(5, 12, 3) for _ in range(24))
    shapes = sorted({(int(m), int(n), int(k)) for m, n, k in drawn})
    ratios = np.exp([predicted(base(), shape)[1] * rng.standard_normal() for shape in shapes])
    samples = [
        a_sample(shape, ratio * predicted(base(), shape)[0])
        for shape, ratio in zip(shapes, ratios, strict=True)
    ]
    profile = updated_profile(
        base(), "here", a_machine(), samples, frozenset(s.key for s in samples), shared=0.5
    )
    now = [predicted(profile, shape) for shape in shapes]
    left = np.log([time_s / s.time_s for (time_s, _), s in zip(now, samples, strict=True)])
    assert np.std(left) < 0.5 * np.std(np.log(ratios))
    assert np.sqrt(np.mean((left / [sigma for _, sigma in now]) ** 2)) < 1.2


def test_an_updated_profile_is_a_base_too() -> None:
    once = updated(1.7)
    more = [a_sample(shape, 1.3 * predicted(once, shape)[0]) for shape in [*SHAPES[:2], (64, 64, 64)]]
    twice = updated_profile(once, "again", a_machine(), more, frozenset(s.key for s in more), shared=0.5)
    for sample, shape in zip(more[:2], SHAPES[:2], strict=True):
        assert predicted(twice, shape)[0] == pytest.approx(sample.time_s, rel=0.1)
    kept = predicted(twice, SHAPES[3])[0] / predicted(base(), SHAPES[3])[0]
    assert 1.6 < kept < 1.05 * 1.7 * 1.3  # not measured again: it keeps its own, and moves with the others


def test_what_is_far_moves_by_what_all_sizes_share() -> None:
    near = predicted(updated(1.7), SHAPES[0])[0] / predicted(base(), SHAPES[0])[0]
    far = predicted(updated(1.7), FAR)[0] / predicted(base(), FAR)[0]
    assert 1.0 < far < near
    assert predicted(updated(1.7), FAR)[1] > predicted(updated(1.7), SHAPES[0])[1]


def test_kinds_that_were_not_measured_follow_the_machine() -> None:
    slower = softmax_s(updated(1.7)) / softmax_s(base())
    assert 1.1 < slower < 1.7
    assert softmax_s(updated(1.0)) == pytest.approx(softmax_s(base()))


def test_the_profile_is_one_like_any_other(tmp_path: Path) -> None:
    profile = updated(1.7)
    path = save_profile(profile, tmp_path / "here.json")
    assert predicted(load_profile(path), SHAPES[1]) == predicted(profile, SHAPES[1])
    assert profile.provenance["base"] == base().name


def test_on_a_cpu_what_was_not_measured_is_as_much_slower_as_its_operators() -> None:
    """One set of cores computes, dispatches and copies."""
    profile, slower = updated(1.7), softmax_s(updated(1.7)) / softmax_s(base())
    for name, cost in base().host.items():
        assert profile.host[name].value_s == pytest.approx(slower * cost.value_s)
    assert profile.contention_s_per_byte == pytest.approx(slower * base().contention_s_per_byte)
    assert profile.network is not None
    assert base().network is not None
    for op in ("all_reduce", "p2p"):
        sizes, group = np.array([1e4, 3e6, 1e8]), CollectiveGroup(n_ranks=2)
        before, after = (collective_times(n, op, sizes, group) for n in (base().network, profile.network))
        assert after.median_s == pytest.approx(slower * before.median_s)
        assert after.log_sigma == pytest.approx(before.log_sigma)


def test_many_visits_that_lie_apart_count_as_their_mean() -> None:
    """The calls of a visit lie as far apart as the fit may err: one visit is half believed, forty are."""
    once, often = (updated(1.7, spread=0.25, n_visits=n) for n in (1, 40))
    before_s, before_sigma = predicted(base(), SHAPES[0])
    (once_s, once_sigma), (often_s, often_sigma) = (predicted(p, SHAPES[0]) for p in (once, often))
    assert often_s == pytest.approx(1.7 * before_s, rel=0.08)
    assert before_s < once_s < often_s
    assert often_sigma < once_sigma < before_sigma


def test_a_base_of_another_kind_of_device_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda device, this machine's is cpu"):
        updated_profile(load_profile("a100-sxm4-80gb"), "here", a_machine(), [], frozenset(), shared=0.5)


def test_a_collective_s_curve_goes_through_what_was_measured() -> None:
    network = base().network
    assert network is not None
    sizes = np.array([3e5, 5e6])
    group = CollectiveGroup(n_ranks=2)
    before = collective_times(network, "all_reduce", sizes, group)
    samples = [
        CollectiveSample(
            op="all_reduce", n_ranks=2, size_bytes=float(b), time_s=1.5 * float(t), timing="torch_loop"
        )
        for b, t in zip(sizes, before.median_s, strict=True)
    ]
    place = next(i for i, fit in enumerate(network.fits) if fit.op == "all_reduce")
    fits = list(network.fits)
    fits[place] = updated_collective(network, fits[place], samples, shared=0.5)
    after = collective_times(network.model_copy(update={"fits": tuple(fits)}), "all_reduce", sizes, group)
    assert after.median_s == pytest.approx(1.5 * before.median_s, rel=0.12)
    assert np.all(after.log_sigma < before.log_sigma)
