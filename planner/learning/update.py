"""The Bayesian update: terms of a profile, a priori independent, given whole measured runs.

    ln(measured_i) = ln f_i(z) + d_model(i) + e_i
    z ~ N(m0, C0),   d ~ N(0, model^2),   e_i ~ N(0, own_i^2 + residual^2)

d is what the forecast has wrong about a model, whatever the machine: ten runs of one model tell less of the
machine than one run each of ten.
f is the forecast itself; its sensitivities d ln f / d z are differences of real forecasts. The posterior is
the Gaussian at the maximum (Gauss-Newton on the log-posterior, its steps held to what forecasts really
become; Laplace's approximation of its width). `spread.py` estimates model and residual with it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from costmodel.errors import UsageError
from costmodel.hardware.collectives.constants import network_constants
from costmodel.hardware.fallback import fallback_spread
from costmodel.hardware.learnt import (
    Learnt,
    LearntRun,
    LearntTerm,
    host_term,
    learning_constants,
    link_term,
    step_term,
)
from planner.learning.spread import LearningRun, Spread, stated_variance

if TYPE_CHECKING:
    from costmodel.estimate import FloatArray
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Forecaster, Prediction

__all__ = [
    "LearningRun",
    "Sensitivities",
    "forget",
    "learn",
    "linearise",
    "new_runs",
    "predictions",
    "prior_terms",
    "update",
]

_STEP = 0.1
"""Difference for sensitivities, in prior standard deviations: wide enough to see across kinks."""
_ROUNDS = 4
_HALVINGS = 4
_SETTLED = 0.02
_UNSEEN = 1e-4
"""Terms that move no run by more than this per prior standard deviation are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivities:
    """ln(forecast) [n] of `runs` and its differential [n, terms] by each term's z, as the profile stands."""

    terms: tuple[LearntTerm, ...]
    log_times: FloatArray
    jacobian: FloatArray
    runs: tuple[LearningRun, ...]

    def of(self, places: Sequence[int]) -> Sensitivities:
        """Those of some of the runs."""
        return Sensitivities(
            terms=self.terms,
            log_times=self.log_times[list(places)],
            jacobian=self.jacobian[list(places)],
            runs=tuple(self.runs[i] for i in places),
        )


def predictions(profile: HardwareProfile, runs: Sequence[LearningRun]) -> list[Prediction]:
    """Every run's forecast on a profile, in the run's nodes; runs of one forecaster share priced segments."""
    at: dict[int, Forecaster] = {}
    found = []
    for run in runs:
        key = id(run.forecaster)
        if key not in at:
            there = profile.model_copy(update={"network": run.forecaster.profile.network})
            at[key] = run.forecaster.on(profile=there)
        found.append(at[key].forecast(run.plan).prediction)
    return found


def forget(profile: HardwareProfile) -> HardwareProfile:
    """The profile without what runs taught. Raises UsageError where nothing was learnt."""
    if profile.learnt is None:
        raise UsageError(f"profile {profile.name!r} has learnt from no run, so there is nothing to undo")
    return profile.model_copy(update={"learnt": None})


def linearise(
    profile: HardwareProfile,
    runs: Sequence[LearningRun],
    *,
    progress: Callable[[str], None] | None = None,
) -> Sensitivities:
    """ln(forecast) of the runs and how it depends on each term, by forward differences of real forecasts.

    Terms that no run depends on are left out, those that the profile has learnt of are kept.
    """
    before = profile.learnt or Learnt()
    terms = _terms(profile, before, runs)
    mean = np.array([term.mean for term in terms])
    at = _log_times(profile, terms, mean, runs)
    columns = []
    for k, term in enumerate(terms):
        if progress is not None:
            progress(f"how {len(runs)} runs depend on: {term.name}")
        moved = mean.copy()
        moved[k] += _STEP
        columns.append((_log_times(profile, terms, moved, runs) - at) / _STEP)
    kept = [
        k for k, term in enumerate(terms) if term.name in before.by_name or np.abs(columns[k]).max() > _UNSEEN
    ]
    if not kept:
        raise UsageError("nothing to learn: no term of the profile moves any of these runs")
    return Sensitivities(
        terms=tuple(terms[k] for k in kept),
        log_times=at,
        jacobian=np.array([columns[k] for k in kept]).T,
        runs=tuple(runs),
    )


def new_runs(profile: HardwareProfile, runs: Sequence[LearningRun]) -> list[LearningRun]:
    """Those that the profile has not learnt from, each once. Raises UsageError where none is new."""
    known = {run.fingerprint for run in (profile.learnt or Learnt()).runs}
    fresh = list({run.fingerprint: run for run in runs if run.fingerprint not in known}.values())
    if not fresh:
        raise UsageError(
            f"nothing to learn: {len(runs)} runs given, all of them already behind profile {profile.name!r}; "
            "give new runs, or take the layer off first with --undo"
        )
    return fresh


def learn(
    profile: HardwareProfile,
    runs: Sequence[LearningRun],
    *,
    progress: Callable[[str], None] | None = None,
) -> HardwareProfile:
    """The profile with its learnt layer updated by `runs`.

    Runs it already learnt from count once: they are left out. Raises UsageError where none is new.
    """
    return update(profile, linearise(profile, new_runs(profile, runs), progress=progress))


def update(profile: HardwareProfile, of: Sensitivities) -> HardwareProfile:
    """The profile with its learnt layer updated by runs whose sensitivities are known."""
    before = profile.learnt or Learnt()
    runs, j = of.runs, of.jacobian
    names = tuple(term.name for term in of.terms)
    mean = np.array([term.mean for term in of.terms])
    prior = _inverse(before.covariance_of(names))
    measured = np.log([run.step_time_s for run in runs])
    spread = Spread.stated(before, runs)
    z, times = mean.copy(), of.log_times
    for _ in range(_ROUNDS):
        weight = _inverse(spread.covariance(runs))
        after = _inverse(prior + j.T @ weight @ j)
        step = after @ (j.T @ weight @ (measured - times) - prior @ (z - mean))
        now = _loss(measured - times, weight, z - mean, prior)
        for _ in range(_HALVINGS):
            tried = _log_times(profile, of.terms, z + step, runs)
            if better := _loss(measured - tried, weight, z + step - mean, prior) <= now:
                z, times = z + step, tried
                break
            step = 0.5 * step
        n_fitted = float(np.trace(after @ j.T @ weight @ j))
        spread = Spread.estimated(before, runs, measured - times, n_fitted)
        if not better or np.abs(step).max() < _SETTLED:
            break
    weight = _inverse(spread.covariance(runs))
    after = _inverse(prior + j.T @ weight @ j)
    # without run i the precision is less by u u' / weight_ii, with u = J' weight e_i
    alone = np.einsum("ik,kl,il->i", weight @ j, after, weight @ j) / np.diag(weight)
    taught = [
        LearntRun(
            fingerprint=run.fingerprint,
            label=run.label,
            error_before=math.expm1(of.log_times[i] - measured[i]),
            error_after=math.expm1(times[i] - measured[i]),
            bits=max(0.0, -0.5 * math.log2(max(1.0 - float(alone[i]), 1e-12))),
        )
        for i, run in enumerate(runs)
    ]
    layer = Learnt(
        terms=tuple(
            term.model_copy(update={"mean": float(z[i]), "variance": float(after[i, i])})
            for i, term in enumerate(of.terms)
        ),
        covariance=tuple(tuple(float(x) for x in row) for row in after),
        residual_log_sigma={**before.residual_log_sigma, **spread.residual},
        model_log_sigma={**before.model_log_sigma, **spread.model},
        runs=(*before.runs, *taught),
    )
    return profile.model_copy(update={"learnt": layer})


def _log_times(
    profile: HardwareProfile, terms: Sequence[LearntTerm], z: FloatArray, runs: Sequence[LearningRun]
) -> FloatArray:
    """ln(forecast seconds) [n] of the runs with the terms at z."""
    there = tuple(t.model_copy(update={"mean": float(v)}) for t, v in zip(terms, z, strict=True))
    layer = Learnt(terms=there, covariance=tuple(map(tuple, np.eye(len(there)).tolist())))
    trial = profile.model_copy(update={"learnt": layer})
    log_s: FloatArray = np.log(np.array([p.step_time_s for p in predictions(trial, runs)]))
    return log_s


def _inverse(matrix: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def _loss(off: FloatArray, weight: FloatArray, away: FloatArray, prior: FloatArray) -> float:
    return float(off @ weight @ off + away @ prior @ away)


def _terms(profile: HardwareProfile, before: Learnt, runs: Sequence[LearningRun]) -> list[LearntTerm]:
    """Those learnt before as they are, then those that the runs' frameworks and links add."""
    found = dict(before.by_name)
    for term in prior_terms(profile, runs):
        found.setdefault(term.name, term)
    return list(found.values())


def prior_terms(profile: HardwareProfile, runs: Sequence[LearningRun]) -> list[LearntTerm]:
    """Every term that the runs may tell of, with its prior width: of operators and links from the fits' own
    uncertainty, of a framework from its stated residual, of its host costs from the data file."""
    constants = learning_constants()
    widths: dict[str, float] = {}
    of_fits: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for fit in profile.operators:
        if term := constants.operator_terms.get(fit.kind):
            variance = fit.residual.log_sigma**2 + fit.extra_log_sigma**2
            of_fits[term].append((max(fit.n_samples, 1), variance))
    for term in _operators_of(runs):
        widths[term] = _rms(of_fits.get(term, []), fallback_spread().datasheet_log_sigma)
    if profile.network is not None:
        links: Mapping[str, list[tuple[float, float]]] = defaultdict(list)
        for known in profile.network.fits:
            if known.impl in ("nccl", "gloo"):
                variance = known.log_sigma**2 + known.extra_log_sigma**2
                links[link_term(known.op, known.link)].append((max(known.n_samples, 1), variance))
        for run in runs:
            for name in _links_of(run):
                widths[name] = _rms(links.get(name, []), network_constants().nominal_log_sigma)
    for run in runs:
        widths[host_term(run.framework)] = constants.host_log_sigma
        widths[step_term(run.framework)] = math.sqrt(stated_variance(run) * constants.shared_fraction)
    return [LearntTerm(name=name, prior_log_sigma=width) for name, width in widths.items() if width > 0]


def _operators_of(runs: Sequence[LearningRun]) -> list[str]:
    """Operator terms that the runs' models hold; every one has an optimizer."""
    terms = learning_constants().operator_terms
    forecasters = {id(run.forecaster): run for run in runs}.values()
    kinds = {op.kind for run in forecasters for s in run.forecaster.graph(1).segments for op in s.operators}
    return sorted({terms[kind] for kind in (*kinds, "optimizer") if kind in terms})


def _links_of(run: LearningRun) -> list[str]:
    """Link terms that the run's plan uses."""
    plan = run.plan
    axes = {"tp": plan.tp, "cp": plan.cp, "ep": plan.ep, "dp": plan.dp * plan.cp}
    found = [run.forecaster.link_term(plan, "all_reduce", axis) for axis, n in axes.items() if n > 1]
    return found + ([run.forecaster.link_term(plan, "p2p", "pp")] if plan.pp > 1 else [])


def _rms(weighted: Sequence[tuple[float, float]], otherwise: float) -> float:
    if not weighted:
        return otherwise
    total = sum(weight for weight, _ in weighted)
    return math.sqrt(sum(weight * variance for weight, variance in weighted) / total)
