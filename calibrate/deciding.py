"""Measuring what decides: rank 0 picks the next item by what it is expected to tell, all ranks measure it.

Ends when the winner is sure, when nothing left to measure would tell more, or with the time. Whether the
winner is sure says a fit of all that was measured. It is asked for where the sums of items say so, and now
and then: the figure that ends measuring is the one of the profile that comes of it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from calibrate.asking import Again
from calibrate.assemble import contention_of
from calibrate.benchmarks.base import Case, load_benchmarks
from calibrate.benchmarks.exact import exact_case
from calibrate.decision import NOISE_LOG_SIGMA, Decision, Standing, noise_log_sigma
from calibrate.drift import YARDSTICK
from calibrate.host_costs import CONTENTION, OVERLAP, host_costs, overlap_of, raw_cases
from calibrate.journal import Visit, merge_visits
from calibrate.runner import ALONE, TOGETHER, CasePair, Runner
from calibrate.wanted import CONSTANT, SURE, Item, Wanted
from costmodel.errors import MeasurementError
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.kinds import COLLECTIVE_KINDS

__all__ = [
    "BUDGET_ENDED",
    "NOTHING_LEFT",
    "SURE_BEFORE",
    "WINNER_SURE",
    "DecidingRunner",
    "Outcome",
    "read_outcome",
    "write_outcome",
]

WINNER_SURE = f"the winner is sure to {100 * SURE:g} %"
SURE_BEFORE = f"the winner was sure to {100 * SURE:g} % before, nothing had to be measured"
NOTHING_LEFT = "nothing left to measure tells more"
BUDGET_ENDED = "the budget ended"

_MOST_CONTENTION_CASES = 4
_TOGETHER_S = 0.1
"""First guess of one visit of a case that ranks run together: a few steps or transfers after computation."""
_FINISHED = -1
_ASK_EVERY = 32
"""Visits after which a fit is asked for again: a few seconds."""


@dataclass(slots=True)
class _Bundle:
    """The cases of one item, what a visit of them all takes, and how often they were visited."""

    pairs: tuple[CasePair, ...]
    seconds: float
    visits: int = 0
    failed: bool = False
    keys: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        self.keys = tuple(pair.key for pair in self.pairs)
        self.failed = not self.pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a decision stands at the end, and why measuring ended; `n_visits` of items were made now."""

    standing: Standing
    n_items: int
    n_visits: int = 0
    n_unmeasurable: int = 0
    reason: str

    def settled(self, standing: Standing) -> Outcome:
        """With the standing by the profile that was written: a winner that is sure by it is the reason."""
        reason = self.reason
        if standing.probability >= SURE:
            reason = WINNER_SURE if self.n_visits else SURE_BEFORE
        return replace(self, standing=standing, reason=reason)


class DecidingRunner(Runner):
    """A Runner that visits the items of a `Wanted` list instead of benchmarks."""

    def decide(self, wanted: Wanted, again: Again | None = None, *, known: int = 0) -> Outcome | None:
        """Measure until the decision stands; the outcome on rank 0 (which holds the journal), else None.

        `again`: asked on rank 0 what a fit of the journal says; without it the sums of items count. `known`:
        so many of the journal's first visits are in the list's predictions already.
        """
        self._known = known
        self._bundles = [self._bundle(item, wanted) for item in wanted.items]
        self._gauges = self._pairs([YARDSTICK])
        self._again, self._asked_at = again, 0
        decision = Decision(wanted) if self.journal is not None else None
        if decision is not None:
            for number, bundle in enumerate(self._bundles):
                bundle.visits = min((len(self.times.get(key, ())) for key in bundle.keys), default=0)
                if bundle.visits and self._visits(bundle):
                    self._observe(decision, number)
                    self._asked_at = -_ASK_EVERY  # what is known already may do
        reason, n_visits = "", 0
        while True:
            number = _FINISHED
            if decision is not None:
                number, reason = self._next(decision, n_visits)
            chosen = int(self.agree([float(number)])[0][0])
            if chosen == _FINISHED:
                break
            late = self._visit_bundle(chosen)
            n_visits += 1
            if decision is not None and not self._bundles[chosen].failed:
                self._observe(decision, chosen)
            if late:
                reason = BUDGET_ENDED
                break
        if decision is None:
            return None
        return Outcome(
            standing=decision.standing(),
            n_visits=n_visits,
            n_items=len(self._bundles),
            n_unmeasurable=sum(bundle.failed for bundle in self._bundles),
            reason=reason,
        )

    def _visit_bundle(self, number: int) -> bool:
        """Visit all cases of an item; returns whether the deadline has passed."""
        bundle = self._bundles[number]
        start = time.monotonic()
        late = [self._visit(pair, key, short=False) for pair, key in self._of(bundle)]
        late.append(self._gauge())
        took = time.monotonic() - start
        bundle.seconds = took if not bundle.visits else 0.5 * (bundle.seconds + took)
        bundle.visits += 1
        bundle.failed = any(_skipped(self.times.get(key, ())) for key in bundle.keys)
        return any(late)

    def _next(self, decision: Decision, n_visits: int) -> tuple[int, str]:
        """The item to measure, or `_FINISHED` and why."""
        if self._again is not None and n_visits >= self._asked_at + _ASK_EVERY:
            decision.restate(self._again())
            self._asked_at = n_visits
        if decision.standing().probability >= SURE and self._is_so(decision, n_visits):
            return _FINISHED, WINNER_SURE
        seconds = np.array([bundle.seconds for bundle in self._bundles])
        noise = np.array([NOISE_LOG_SIGMA / math.sqrt(bundle.visits + 1) for bundle in self._bundles])
        gains = decision.gains(seconds, noise) if len(self._bundles) else np.zeros(0)
        gains[[i for i, bundle in enumerate(self._bundles) if self._exhausted(bundle)]] = 0.0
        if not gains.size or gains.max() <= 0.0:
            return _FINISHED, NOTHING_LEFT
        return int(np.argmax(gains)), ""

    def _is_so(self, decision: Decision, n_visits: int) -> bool:
        """Whether a fit of all that was measured says, too, that the winner is sure."""
        if self._again is None:
            return True
        decision.restate(self._again())
        self._asked_at = n_visits
        return decision.standing().probability >= SURE

    def _exhausted(self, bundle: _Bundle) -> bool:
        return bundle.failed or all(self._done(key) for key in bundle.keys)

    def _of(self, bundle: _Bundle) -> list[tuple[CasePair, str]]:
        return list(zip(bundle.pairs, bundle.keys, strict=True))

    def _observe(self, decision: Decision, number: int) -> None:
        item, bundle = decision.wanted.items[number], self._bundles[number]
        value = self._value(item, bundle)
        if value is not None and math.isfinite(value) and value > 0.0:
            decision.observe(number, value, noise_log_sigma=self._noise(bundle))

    def _noise(self, bundle: _Bundle) -> float:
        return noise_log_sigma(merge_visits(self._visits(bundle)))

    def _visits(self, bundle: _Bundle) -> list[Visit]:
        """Those of a bundle that the list's predictions do not hold."""
        assert self.journal is not None
        return [v for v in self.journal.visits[self._known :] if v.key in bundle.keys]

    def _value(self, item: Item, bundle: _Bundle) -> float | None:
        if item.kind != CONSTANT:
            times = [v.time_s for v in self._visits(bundle) if v.time_s > 0]
            if not times:
                return None
            return statistics.fmean(times) if item.kind in COLLECTIVE_KINDS else statistics.median(times)
        assert self.journal is not None
        samples = merge_visits(self.journal.visits)
        if item.variant == OVERLAP:
            return overlap_of(samples).compute_slowdown
        if item.variant == CONTENTION:
            return contention_of(samples)
        found = host_costs(samples).get(item.variant)
        return None if found is None else found.value_s

    def _bundle(self, item: Item, wanted: Wanted) -> _Bundle:
        pairs: tuple[CasePair, ...]
        if item.kind != CONSTANT:
            case = exact_case(self.bench, item.kind, item.variant, item.dtype, item.dims, images=item.images)
            pairs = () if case is None else (CasePair(case=case, setting=TOGETHER),)
        elif item.variant == CONTENTION:
            pairs = self._contention_pairs(wanted)
        else:
            pairs = tuple(CasePair(case=case, setting=TOGETHER) for case in self._raw(item.variant))
        seconds = sum(_TOGETHER_S if pair.case.n_ranks else 1.5 * self.slice_s for pair in pairs)
        return _Bundle(pairs=pairs, seconds=max(seconds, self.slice_s))

    def _raw(self, name: str) -> list[Case]:
        """The cases a constant of the profile is computed from; none where one of them cannot be run here."""
        wanted = raw_cases(name)
        registry = load_benchmarks()
        there = {
            (case.kind, case.variant): case
            for benchmark in sorted({benchmark for benchmark, _ in wanted})
            for case in registry[benchmark](self.bench)
        }
        return [there[key] for key in wanted if key in there]

    def _contention_pairs(self, wanted: Wanted) -> tuple[CasePair, ...]:
        """The largest streaming operators of the list, with all ranks at work and with one."""
        forms = load_forms()
        streaming = [i for i in wanted.items if i.kind in forms and forms[i.kind].streams]
        largest = sorted(streaming, key=lambda i: -i.dims.get("bytes", 0))[:_MOST_CONTENTION_CASES]
        cases = [exact_case(self.bench, i.kind, i.variant, i.dtype, i.dims, images=i.images) for i in largest]
        return tuple(
            CasePair(case=case, setting=setting)
            for case in cases
            if case is not None
            for setting in (TOGETHER, ALONE)
        )


def _outcome_path(wanted: Path) -> Path:
    return wanted.with_suffix(".outcome.json")


def write_outcome(outcome: Outcome, wanted: Path) -> None:
    """Beside the list it is of."""
    _outcome_path(wanted).write_text(json.dumps(asdict(outcome)) + "\n")


def read_outcome(wanted: Path) -> Outcome:
    """The outcome of a list. Raises MeasurementError where measuring left none."""
    try:
        fields = json.loads(_outcome_path(wanted).read_text())
        return Outcome(**{**fields, "standing": Standing(*fields["standing"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MeasurementError(f"measuring {wanted} left no outcome: {error}; run it again") from error


def _skipped(times_s: Sequence[float]) -> bool:
    return any(t <= 0 for t in times_s)
