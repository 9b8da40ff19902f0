"""The one place where what runs taught enters a forecast: profile and framework with the layer's shifts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from costmodel.framework import HOST_TIMES
from costmodel.hardware.learnt import (
    host_term,
    learning_constants,
    link_term,
    operator_term,
    step_term,
)

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.learnt import Learnt
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["residual_variance", "with_learnt"]

_COLLECTIVES = ("all_reduce", "p2p")


def with_learnt(
    profile: HardwareProfile, framework: FrameworkProfile
) -> tuple[HardwareProfile, FrameworkProfile]:
    """Both with the profile's learnt layer applied; the very same objects where there is none.

    Host costs are scaled; operators and collectives are shifted where they are priced, by
    `HardwareProfile.log_shifts` (operator kind, or link term -> ln(time)).
    """
    learnt = profile.learnt
    if learnt is None:
        return profile, framework
    step = learnt.log_shift(step_term(framework.name))
    host = math.exp(step + learnt.log_shift(host_term(framework.name)))
    shifts = {
        kind: step + learnt.log_shift(term) for kind, term in learning_constants().operator_terms.items()
    }
    for link in () if profile.network is None else (*profile.network.intra, *profile.network.inter):
        for op in _COLLECTIVES:
            term = link_term(op, link.name)
            shifts[term] = step + learnt.log_shift(term)
    costs = {
        name: value.model_copy(update={"value_s": value.value_s * host})
        for name, value in profile.host.items()
    }
    times = {name: getattr(framework, name) * host for name in HOST_TIMES}
    return (
        profile.model_copy(update={"host": costs, "log_shifts": shifts}),
        framework.model_copy(update=times),
    )


def residual_variance(learnt: Learnt | None, framework: FrameworkProfile, moved: dict[str, float]) -> float:
    """Variance of ln(step) from the terms, and from what the framework's profile leaves unexplained.

    `moved`: what moves together (an operator kind or a link term) -> standard deviation of ln(step) that it
    causes as fitted. Without a layer those are independent and the framework's residual stands beside them.
    With one, v = `moved` by term and the whole step's share of the residual:
    v' covariance v + model^2 + residual^2, the spreads of models and of single runs.
    """
    stated = framework.residual_log_sigma**2
    if learnt is None:
        return sum(sigma * sigma for sigma in moved.values()) + stated
    by_term: dict[str, float] = {}
    for what, sigma in moved.items():
        term = operator_term(what) or what
        by_term[term] = math.hypot(by_term.get(term, 0.0), sigma)
    whole = step_term(framework.name)
    shared = 0.0
    own = stated
    if framework.name in learnt.residual_log_sigma:
        shared = learnt.by_name[whole].prior_log_sigma if whole in learnt.by_name else 0.0
        spreads = (learnt.residual_log_sigma, learnt.model_log_sigma)
        own = sum(by.get(framework.name, 0.0) ** 2 for by in spreads)
    by_term[whole] = shared
    names = tuple(by_term)
    v = np.array([by_term[name] for name in names])
    return float(v @ learnt.covariance_of(names) @ v) + own
