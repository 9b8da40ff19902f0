"""What whole measured runs taught about a machine, kept beside what was measured of its parts.

A term is what one cause moves together: an operator kind, the host under a framework, collectives over a
link, or the whole step. Its unknown is z with ln(time) = ln(time as fitted) + prior_log_sigma z, and a
priori z ~ N(0, 1), the terms independent. Runs make that N(mean, covariance). The fits themselves stay as
they were measured: without the layer a profile forecasts what it did before.

>>> term = LearntTerm(name="attention", prior_log_sigma=0.2, mean=0.5, variance=0.25)
>>> round(term.log_shift, 3), round(term.log_sigma, 3)
(0.1, 0.1)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from costmodel.estimate import FloatArray

__all__ = [
    "LearningConstants",
    "Learnt",
    "LearntRun",
    "LearntTerm",
    "host_term",
    "learning_constants",
    "link_term",
    "operator_term",
    "step_term",
]

_FILE = Path(__file__).resolve().parent.parent / "data" / "learning.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LearningConstants(_Frozen):
    """Prior widths that no fit gives; `source` says where they come from."""

    source: str
    operator_terms: dict[str, str]
    """Operator kind -> the term that corrects it."""
    host_log_sigma: float = Field(gt=0)
    shared_fraction: float = Field(gt=0, lt=1)
    """Share of the variance that a framework's profile leaves unexplained which is common to all runs on one
    machine."""
    model_fraction: float = Field(gt=0, lt=1)
    """Share that is common to all runs of one model; the rest is each run's own."""
    least_residual_log_sigma: float = Field(gt=0)
    prior_runs: float = Field(gt=0)
    """How many runs the stated residual counts as against the spread of the runs themselves."""


class LearntTerm(_Frozen):
    """One term: its prior width in ln(time), and mean and variance of z."""

    name: str
    prior_log_sigma: float = Field(gt=0)
    mean: float = 0.0
    variance: float = Field(default=1.0, ge=0)

    @property
    def log_shift(self) -> float:
        """ln(time) correction."""
        return self.prior_log_sigma * self.mean

    @property
    def log_sigma(self) -> float:
        """What is still unknown of ln(time)."""
        return self.prior_log_sigma * float(self.variance**0.5)


class LearntRun(_Frozen):
    """One run that taught: what it was, how far off its forecast was before and is now, and how much it
    taught beyond all others."""

    fingerprint: str
    label: str
    error_before: float
    """Predicted / measured - 1."""
    error_after: float
    bits: float = Field(ge=0)
    """Half the binary logarithm of how much larger the volume of what is unknown was without this run."""


class Learnt(_Frozen):
    """The layer: terms, the covariance of their z, each framework's residuals, and the runs behind them."""

    terms: tuple[LearntTerm, ...] = ()
    covariance: tuple[tuple[float, ...], ...] = ()
    """Of z, in the order of `terms`."""
    residual_log_sigma: dict[str, float] = {}
    """Framework -> spread of ln(measured / predicted) that is each run's own."""
    model_log_sigma: dict[str, float] = {}
    """Framework -> spread of ln(measured / predicted) that all runs of a model have in common."""
    runs: tuple[LearntRun, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Learnt:
        n = len(self.terms)
        if len(self.covariance) != n or any(len(row) != n for row in self.covariance):
            raise ValueError(f"covariance must have {n} x {n} values, one row and column per term")
        if len({term.name for term in self.terms}) != n:
            raise ValueError("terms share a name")
        return self

    @cached_property
    def by_name(self) -> Mapping[str, LearntTerm]:
        """Term by name."""
        return {term.name: term for term in self.terms}

    def log_shift(self, name: str) -> float:
        """ln(time) correction of a term; 0 where nothing was learnt of it."""
        term = self.by_name.get(name)
        return 0.0 if term is None else term.log_shift

    def covariance_of(self, names: tuple[str, ...]) -> FloatArray:
        """Covariance [n, n] of the z of these terms; the prior's for those nothing was learnt of."""
        found = np.eye(len(names))
        place = {term.name: i for i, term in enumerate(self.terms)}
        for a, first in enumerate(names):
            for b, second in enumerate(names):
                if first in place and second in place:
                    found[a, b] = self.covariance[place[first]][place[second]]
        return found


@lru_cache(maxsize=1)
def learning_constants() -> LearningConstants:
    """The shipped constants."""
    return LearningConstants.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))


def operator_term(kind: str) -> str | None:
    """The term that corrects an operator kind; None for kinds that take no time of their own."""
    return learning_constants().operator_terms.get(kind)


def host_term(framework: str) -> str:
    """The term of all host costs under a framework."""
    return f"host under {framework}"


def step_term(framework: str) -> str:
    """The term of everything at once under a framework."""
    return f"whole step under {framework}"


def link_term(op: str, link: str) -> str:
    """The term of a collective over a link: messages of one rank to another, or of a group."""
    return f"{'messages' if op.startswith('p2p') else 'collectives'} over {link}"
