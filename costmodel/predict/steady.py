"""A server's mean iteration at a steady rate of requests, and what its parts take.

With d(c) the seconds of a decode of c running requests, and F(n, c) those that n prompts, taken in beside
them, add to it (of more than a pass takes: as many passes):

    iteration      t = d(c) + E F(n, c),  n ~ Poisson(r t)  prompts that came while it ran
    concurrency    c = r (output - 1) t                     Little's law over the tokens after the first

Both come from the passes of a server (`costmodel.predict.passes`, as under clients), or, where a pass is not
the whole replica's (pipelines, streamed weights), from batches answered together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.predict.clients import LEAST_CHUNK, near_size, prompt_pass_s
from costmodel.predict.loads import Load
from costmodel.predict.passes import Attending

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.predict.inference import InferencePrediction
    from costmodel.predict.passes import PassCosts

__all__ = ["BatchIterations", "Iterations", "PassIterations", "prompts_s", "steady_state"]

_HALVINGS = 50
_MANY = 32.0
"""Prompts of an iteration from which on their mean tells enough."""
_NUMBERS: FloatArray = np.arange(1.0, _MANY + 40.0)
_LOG_FACTORIALS: FloatArray = np.cumsum(np.log(_NUMBERS))


class Iterations(Protocol):
    """What a server's iterations are made of."""

    def decode_s(self, running: float) -> float:
        """Seconds of a decode of so many requests."""

    def added_s(self, prompts: float, running: float) -> float:
        """Seconds that so many prompts (at least one) add to it."""

    def first_s(self, prompts: float, running: float, iteration_s: float) -> float:
        """Seconds to the first token of `prompts` taken in together, that find no others waiting."""


def prompts_s(iterations: Iterations, prompts: float, running: float) -> float:
    """Seconds that prompts add to an iteration which takes in so many on average, as they come."""
    return _Mixed(iterations, running).seconds(prompts)


class _Mixed:
    """Prompts as they come, beside so many running requests."""

    def __init__(self, iterations: Iterations, running: float) -> None:
        self._iterations, self._running = iterations, running
        self._each: FloatArray | None = None

    def seconds(self, prompts: float) -> float:
        if prompts >= _MANY:
            return self._iterations.added_s(prompts, self._running)
        if prompts <= 0.0:
            return 0.0
        if self._each is None:
            self._each = np.array([self._iterations.added_s(n, self._running) for n in _NUMBERS])
        chances = np.exp(_NUMBERS * math.log(prompts) - prompts - _LOG_FACTORIALS)
        return float(chances @ self._each)


def steady_state(
    iterations: Iterations, tokens: int, *, rate_per_s: float, most: float
) -> tuple[float, float] | None:
    """(concurrency, seconds of an iteration) at a rate, or None where `most` requests are not enough.

    `tokens`: decodes of a request. The least c with c >= r tokens t(c), by bisection (t rises slower than c
    below saturation).
    """

    def iteration_s(c: float) -> float:
        return _iteration_s(iterations, c, rate_per_s)

    low, high = 0.0, most
    if rate_per_s * tokens * iteration_s(most) > most:
        return None
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = rate_per_s * tokens * iteration_s(middle) <= middle
        low, high = (low, middle) if enough else (middle, high)
    return high, iteration_s(high)


def _iteration_s(iterations: Iterations, running: float, rate_per_s: float) -> float:
    """The least t = d + F(r t); infinite where prompts fill all the time."""
    decode_s, mixed = iterations.decode_s(running), _Mixed(iterations, running)
    high = decode_s
    for _ in range(_HALVINGS):
        if decode_s + mixed.seconds(rate_per_s * high) <= high:
            break
        high *= 2.0
    else:
        return math.inf
    low = 0.5 * high
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        enough = decode_s + mixed.seconds(rate_per_s * middle) <= middle
        low, high = (low, middle) if enough else (middle, high)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchIterations:
    """Batches answered together. `batch`: requests -> their forecast; `most`: that run at once; `prompts`:
    that a pass takes."""

    batch: Callable[[int], InferencePrediction]
    framework: FrameworkProfile
    load: Load
    most: int
    prompts: int

    @property
    def front_s(self) -> float:
        """What the front end spends on a request."""
        return _front_s(self.framework, self.load)

    def decode_s(self, running: float) -> float:
        """A token of each."""
        return _doubling(running, self.most, lambda size: self.batch(size).time_per_output_token_s)

    def added_s(self, prompts: float, running: float) -> float:
        """Passes of their own."""
        taken = min(prompts, float(self.prompts))
        one_s = _doubling(taken, self.prompts, lambda size: self.batch(size).time_to_first_token_s)
        return prompts / taken * one_s

    def first_s(self, prompts: float, running: float, iteration_s: float) -> float:
        """The way to the scheduler, half an iteration until they are taken in, then their prefill."""
        known_s = _known_s(self.framework, self.load)
        return known_s + self.added_s(prompts, running) + 0.5 * iteration_s


@dataclass(frozen=True, kw_only=True)  # no slots: its cached properties need a dictionary
class PassIterations:
    """Passes of a server under one shape of requests. `most`: requests that run at once."""

    costs: PassCosts
    framework: FrameworkProfile
    load: Load
    most: int

    @property
    def front_s(self) -> float:
        """What the front end, one process, spends on a request: no more than one in that time."""
        return _front_s(self.framework, self.load)

    def decode_s(self, running: float) -> float:
        """A pass of running requests alone."""
        return _doubling(running, self.most, self._decode_s)

    def added_s(self, prompts: float, running: float) -> float:
        """Prompts in passes of running requests, or in their own."""
        taken = min(prompts, float(self._together))
        others = near_size(round(running)) if self.framework.mixes_prompts and running >= 1.0 else 0
        one_s = _doubling(taken, self._together, lambda size: self._pass_s(size, others))
        return prompts / taken * one_s

    def first_s(self, prompts: float, running: float, iteration_s: float) -> float:
        """The way to the scheduler, the passes settled before, and those that take the prompts in."""
        framework, known_s = self.framework, _known_s(self.framework, self.load)
        settled = 0.5 + framework.passes_ahead
        beside = min(1.0, running)
        own_s = self.added_s(prompts, running)
        if framework.mixes_prompts:
            own_s += beside * self.decode_s(max(1.0, running))
        return known_s + beside * settled * iteration_s + own_s

    @cached_property
    def _together(self) -> int:
        """Prompts that a pass takes."""
        return max(1, self.framework.pass_tokens // self.load.prompt_len)

    @cached_property
    def _decode_s(self) -> Callable[[int], float]:
        return lru_cache(maxsize=None)(lambda size: self.costs.seconds([self._next(size)]))

    @cached_property
    def _pass_s(self) -> Callable[[int, int], float]:
        return lru_cache(maxsize=None)(self._chunks_s)

    def _next(self, running: int) -> Attending:
        return Attending(requests=max(1, running), tokens=1, context=self.load.mean_context)

    def _chunks_s(self, prompts: int, others: int) -> float:
        """So many whole prompts beside running requests: one pass, or of a longer one so many chunks."""
        framework, length = self.framework, self.load.prompt_len
        beside = [self._next(others)] if others else []
        alone_s = self.costs.seconds(beside)
        room = max(LEAST_CHUNK, framework.pass_tokens - others)
        added_s = 0.0
        for done in range(0, length, room):
            tokens = min(room, length - done)
            call = Attending(requests=1, tokens=max(2, tokens), context=done + tokens)
            calls = [call] * prompts + beside
            added_s += prompt_pass_s(self.costs, framework, calls, prompts * tokens + others)[0] - alone_s
        return added_s


def _known_s(framework: FrameworkProfile, load: Load) -> float:
    """From sending a request until the scheduler knows of it."""
    read_s = framework.frontend_request_s + load.prompt_len * framework.frontend_prompt_token_s
    return framework.arrival_overhead_s + read_s


def _front_s(framework: FrameworkProfile, load: Load) -> float:
    """What the front end, one process, spends on a request and its answer."""
    read_s = framework.frontend_request_s + load.prompt_len * framework.frontend_prompt_token_s
    return read_s + load.output_len * framework.frontend_token_s


def _doubling(n: float, most: int, seconds: Callable[[int], float]) -> float:
    """Seconds of n from 1 to `most`, between those of 1, 2, 4, ... and `most`."""
    low = 1 << max(0, math.floor(math.log2(max(1.0, n))))
    low, high = min(low, most), min(2 * low, most)
    if n <= low or low == high:
        return seconds(low)
    return seconds(low) + (seconds(high) - seconds(low)) * (min(n, high) - low) / (high - low)
