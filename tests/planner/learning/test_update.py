"""The update: closed form on a linear forecast; on real forecasts of a machine that is not as fitted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from costmodel.errors import UsageError
from costmodel.framework import FrameworkProfile, load_framework
from costmodel.hardware.learnt import host_term, operator_term
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile, save_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster
from planner.learning.check import check_learning
from planner.learning.spread import LearningRun
from planner.learning.update import forget, learn, linearise, predictions, update

NARROW = {"n_layer": 4, "n_embd": 512, "n_head": 8, "vocab_size": 2048, "n_positions": 256}
WIDE = {"n_layer": 6, "n_embd": 2048, "n_head": 16, "vocab_size": 8192, "n_positions": 256}
PLANS = (
    "mbs2",
    "mbs32.gbs64",
    "dp4.mbs64",
    "dp2.mbs8",
    "tp2.mbs32",
    "tp4.mbs2.gbs8",
    "pp2.mbs32.gbs64",
    "dp4.tp2.mbs64.gbs256",
)


@lru_cache(maxsize=1)
def framework() -> FrameworkProfile:
    """One framework whose figures stay as they are when those of the shipped one are fitted anew."""
    return load_framework("megatron").model_copy(update={"memory_bound_efficiency": 0.78})


@lru_cache(maxsize=1)
def as_fitted() -> HardwareProfile:
    return load_profile("a100-sxm4-80gb")


@lru_cache(maxsize=2)
def forecaster(wide: bool) -> Forecaster:
    source = resolve("gpt2", seq_len=256, overrides=WIDE if wide else NARROW)
    return Forecaster(source=source, profile=as_fitted(), framework=framework())


@lru_cache(maxsize=1)
def in_truth() -> tuple[Forecaster, Forecaster]:
    """The same models where a machine computes slower, moves bytes faster, has a slow host and slow links."""
    profile = as_fitted()
    rates = {"compute_efficiency": 0.85, "memory_efficiency": 1.15}
    operators = tuple(
        fit.model_copy(update={"parameters": {k: v * rates.get(k, 1.0) for k, v in fit.parameters.items()}})
        for fit in profile.operators
    )
    assert profile.network is not None
    links = tuple(
        fit.model_copy(
            update={
                "paths": tuple(
                    path.model_copy(
                        update={"intra_bytes_per_s": 0.75 * path.intra_bytes_per_s}
                        if path.intra_bytes_per_s
                        else {}
                    )
                    for path in fit.paths
                )
            }
        )
        for fit in profile.network.fits
    )
    network = profile.network.model_copy(update={"fits": links})
    other = profile.model_copy(update={"operators": operators, "network": network})
    slow = framework().model_copy(update={"host_operator_s": 1.4 * framework().host_operator_s})
    return tuple(  # type: ignore[return-value]
        Forecaster(source=forecaster(wide).source, profile=other, framework=slow) for wide in (False, True)
    )


@lru_cache(maxsize=1)
def runs() -> tuple[LearningRun, ...]:
    """Every plan of both models, timed on the true machine within 2 %."""
    noise = np.random.default_rng(7)
    found = []
    for wide in (False, True):
        for text in PLANS:
            plan = Plan.parse(text)
            time_s = in_truth()[wide].forecast(plan).prediction.step_time_s
            label = f"{'wide' if wide else 'narrow'}/{text}"
            found.append(
                LearningRun(
                    fingerprint=label,
                    label=label,
                    model=label.partition("/")[0],
                    source="synthetic",
                    plan=plan,
                    forecaster=forecaster(wide),
                    step_time_s=time_s * math.exp(0.02 * noise.standard_normal()),
                    log_sigma=0.02,
                )
            )
    return tuple(found)


@lru_cache(maxsize=1)
def taught() -> HardwareProfile:
    return learn(as_fitted(), runs()[::2])


def errors(profile: HardwareProfile, of: Sequence[LearningRun]) -> list[float]:
    pairs = zip(predictions(profile, of), of, strict=True)
    return [abs(math.log(p.step_time_s / run.step_time_s)) for p, run in pairs]


def widths(profile: HardwareProfile, of: Sequence[LearningRun]) -> list[float]:
    return [math.log(p.step_time_high_s / p.step_time_low_s) for p in predictions(profile, of)]


def test_configurations_that_were_not_run_are_forecast_far_better() -> None:
    held_back = runs()[1::2]
    before, after = (np.mean(errors(profile, held_back)) for profile in (as_fitted(), taught()))
    assert before > 0.08
    assert after < before / 3


def test_intervals_shrink_and_still_cover() -> None:
    held_back = runs()[1::2]
    assert np.mean(widths(taught(), held_back)) < np.mean(widths(as_fitted(), held_back))
    inside = [
        p.step_time_low_s <= run.step_time_s <= p.step_time_high_s
        for p, run in zip(predictions(taught(), held_back), held_back, strict=True)
    ]
    assert np.mean(inside) >= 0.9


def test_what_was_learnt_points_where_the_truth_lies() -> None:
    learnt = taught().learnt
    assert learnt is not None
    host = learnt.by_name[host_term("megatron")]
    assert host.log_shift == pytest.approx(math.log(1.4), abs=2.5 * host.log_sigma)
    products = learnt.by_name[operator_term("gemm") or ""]
    assert products.log_shift > 0
    for term in learnt.terms:
        assert 0 < term.log_sigma <= term.prior_log_sigma * (1 + 1e-9)
    assert all(run.bits >= 0 for run in learnt.runs)
    assert sum(abs(r.error_after) for r in learnt.runs) < 0.5 * sum(abs(r.error_before) for r in learnt.runs)


def test_undone_forecasts_are_bit_equal(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "taught.json"
    save_profile(taught(), path)
    read = load_profile(path)
    assert read.learnt == taught().learnt
    some = runs()[::5]
    assert [p.step_time_s for p in predictions(read, some)] == [
        p.step_time_s for p in predictions(taught(), some)
    ]
    back = forget(read)
    for a, b in zip(predictions(back, some), predictions(as_fitted(), some), strict=True):
        assert (a.step_time_s, a.step_time_low_s, a.breakdown_s) == (
            b.step_time_s,
            b.step_time_low_s,
            b.breakdown_s,
        )
    with pytest.raises(UsageError, match="nothing to undo"):
        forget(back)


def test_a_run_teaches_once() -> None:
    with pytest.raises(UsageError, match="all of them already behind"):
        learn(taught(), runs()[::2])
    again = learn(taught(), [*runs()[::2], runs()[1], runs()[1]])
    assert again.learnt is not None
    assert taught().learnt is not None
    assert len(again.learnt.runs) == len(taught().learnt.runs) + 1
    alone = learn(taught(), [runs()[1]])
    assert again.learnt == alone.learnt


def test_runs_one_after_another_teach_what_they_teach_together() -> None:
    first, second = runs()[0:20:4], runs()[2:20:4]
    stepwise = learn(learn(as_fitted(), first), second).learnt
    together = taught().learnt
    assert stepwise is not None
    assert together is not None
    for term in together.terms:
        after = stepwise.by_name[term.name]
        assert after.log_shift == pytest.approx(term.log_shift, abs=0.35 * term.prior_log_sigma)


def test_held_back_groups_are_scored_by_what_the_others_taught() -> None:
    held = check_learning(as_fitted(), runs()[::3])
    assert held.before.overall.n == held.after.overall.n == len(runs()[::3])
    assert held.after.overall.mape is not None
    assert held.before.overall.mape is not None
    assert held.after.overall.mape < held.before.overall.mape * 2 / 3
    assert held.after_ratio < held.before_ratio
    with pytest.raises(UsageError, match="one group"):
        check_learning(as_fitted(), runs()[:1])


def test_a_linear_forecast_gives_the_conjugate_posterior() -> None:
    """Against the textbook's form: mean = C J' S^-1 r, with C = (I + J' S^-1 J)^-1."""
    some = runs()[::5]
    of = linearise(as_fitted(), some)
    jacobian, sigma = of.jacobian, 1e-3
    # times that lie on the linear model for a small z, known so well that the residual does not count
    z = 0.01 * np.arange(1, jacobian.shape[1] + 1)
    exact = tuple(
        replace(run, step_time_s=float(np.exp(t)), log_sigma=sigma)
        for run, t in zip(some, of.log_times + jacobian @ z, strict=True)
    )
    learnt = update(as_fitted(), replace(of, runs=exact)).learnt
    assert learnt is not None
    blocks = np.array([[a.model == b.model for b in some] for a in some])
    noise = np.eye(len(some)) * (sigma**2 + learnt.residual_log_sigma["megatron"] ** 2)
    noise += blocks * learnt.model_log_sigma["megatron"] ** 2
    weight = np.linalg.inv(noise)
    covariance = np.linalg.inv(np.eye(len(z)) + jacobian.T @ weight @ jacobian)
    mean = covariance @ jacobian.T @ weight @ (jacobian @ z)
    assert np.array(learnt.covariance) == pytest.approx(covariance, abs=1e-9)
    assert np.array([t.mean for t in learnt.terms]) == pytest.approx(mean, abs=0.2 * np.abs(mean).max())
    for i, run in enumerate(learnt.runs):  # what it taught: the posterior of all others, computed anew
        others = [k for k in range(len(some)) if k != i]
        part = np.linalg.inv(noise[np.ix_(others, others)])
        without = np.eye(len(z)) + jacobian[others].T @ part @ jacobian[others]
        bits = -0.5 * np.log2(np.linalg.det(without) * np.linalg.det(covariance))
        assert run.bits == pytest.approx(bits, abs=1e-6)
