"""Continuous batching: requests that arrive all the time share one running batch.

Every iteration decodes one token of each of the c running requests, and takes in the prompts that arrived
(each a prefill of its own). At a steady rate r, with d(c) the seconds of a decode and f those of a prefill:

    iteration      t = d(c) / (1 - r f)          a share r f of the time goes to prompts
    concurrency    c = r (output - 1) t          Little's law over the tokens after the first
    first token    f + t / 2 + queue             half an iteration until it is taken in, then its prefill
    queue          r f^2 / (2 (1 - r f))         mean wait for other prompts (M/D/1)

Given a concurrency instead (clients that send the next request when one is answered), the server is played
through under them pass by pass (`costmodel.predict.clients`), their prompts and answers up to a tenth longer
and shorter; where a pass is not the whole replica's (pipelines, streamed weights), r is what they reach.
The rate that cannot be held is where c no longer fits the memory, or r f + r (output - 1) d'(c) >= 1.

Keys and values are kept in pages of a few tokens as a request grows, or contiguous for its whole length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.errors import InfeasibleError, PlanError
from costmodel.plan import Plan
from costmodel.predict.clients import ClientsPrediction, Load, serve_clients
from costmodel.predict.inference import InferenceForecaster
from costmodel.predict.passes import PassCosts
from costmodel.rendering import bytes_text

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ServingPrediction", "serve", "steady_state"]

_PAGE_TOKENS = 16
"""Tokens of a page, as vLLM's default."""
_MOST_RUNNING = 1024
_LENGTHS = (0.9, 1.1)
"""Of clients' prompts and answers: alike, those that began together would end together for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingPrediction:
    """A server in steady state: requests of all replicas, bytes of one rank. `concurrency`: requests that run
    at once, on average."""

    plan: Plan
    rate_per_s: float
    concurrency: float
    prompt_len: int
    output_len: int
    time_to_first_token_s: float
    time_per_output_token_s: float
    latency_s: float
    tokens_per_s: float
    """Output tokens of all requests."""
    capacity_per_s: float
    """The highest rate that can be held."""
    most_running: int
    """Requests whose keys and values fit beside the parameters."""
    parameter_bytes: int
    kv_cache_bytes: int
    device_memory_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def time_s(self) -> float:
        """Latency of an answer."""
        return self.latency_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "plan": str(self.plan)}


def steady_state(
    decode_s: Callable[[float], float], prefill_s: float, tokens: int, *, rate_per_s: float, most: float
) -> tuple[float, float] | None:
    """(concurrency, seconds of an iteration) at a rate, or None where `most` requests are not enough.

    `decode_s`: requests running -> seconds of a decode; `tokens`: decodes of a request. The least c with
    c >= r tokens t(c), by bisection (t rises slower than c below saturation).
    """
    load = rate_per_s * prefill_s
    if load >= 1.0:
        return None

    def needed(c: float) -> float:
        return rate_per_s * tokens * decode_s(c) / (1.0 - load)

    low, high = 0.0, most
    if needed(most) > most:
        return None
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if needed(middle) > middle else (low, middle)
    return high, decode_s(high) / (1.0 - load)


def serve(
    forecaster: InferenceForecaster,
    plan: Plan,
    *,
    prompt_len: int,
    output_len: int,
    rate_per_s: float | None = None,
    concurrency: int | None = None,
    paged: bool = True,
) -> ServingPrediction:
    """Requests of one shape at a steady rate, or from so many clients at once, spread evenly over the plan's
    `dp` replicas.

    Raises PlanError where not exactly one of the two is given, InfeasibleError (with the rate that can be
    held) where the rate is too high or nothing fits.
    """
    given = _require_one(rate_per_s, concurrency, output_len)
    replicas = plan.dp
    if rate_per_s is not None:
        rate_per_s = rate_per_s / replicas
    if concurrency is not None:
        replicas = min(replicas, concurrency)
        concurrency = ceil(concurrency / replicas)
    alone = forecaster.generate(plan, batch_size=1, prompt_len=prompt_len, output_len=output_len)
    per_token = alone.kv_cache_bytes / (prompt_len + output_len)
    # pages fill as a request grows: half its output on average, half a page unused
    length = prompt_len + 0.5 * output_len + 0.5 * _PAGE_TOKENS if paged else prompt_len + output_len
    each = per_token * length
    room = alone.device_memory_bytes - alone.parameter_bytes
    most = min(_MOST_RUNNING, int(room / each)) if each else _MOST_RUNNING
    if most < 1:
        raise InfeasibleError(
            f"{plan}: parameters of {bytes_text(alone.parameter_bytes)} and one request's cache of "
            f"{bytes_text(each)} do not fit {bytes_text(alone.device_memory_bytes)}; take a higher tp"
        )
    decode_s = _decode(forecaster, plan, prompt_len, output_len, most)
    prefill_s, tokens = alone.time_to_first_token_s, output_len - 1
    capacity = _capacity(decode_s, prefill_s, tokens, most)
    if concurrency is not None and plan.pp == 1 and not plan.flags:
        load = Load(clients=concurrency, prompt_len=prompt_len, output_len=output_len, lengths=_LENGTHS)
        room_tokens = room / per_token if per_token else math.inf
        played = _played(forecaster, plan, load, room_tokens=room_tokens, paged=paged)
        rate_per_s, running = played.requests_per_s, played.running
        first_s, iteration_s = played.time_to_first_token_s, played.time_per_output_token_s
    else:
        if concurrency is not None:
            # a client is in its prefill or among the running: r (f + tokens t) = clients, t = d / (1 - r f)
            clients = min(float(concurrency), float(most))
            rate_per_s = _closed_rate(decode_s, prefill_s, tokens, clients)
        assert rate_per_s is not None
        found = steady_state(decode_s, prefill_s, tokens, rate_per_s=rate_per_s, most=most)
        if found is None:
            raise InfeasibleError(
                f"{plan}: {given:g} requests/s of {prompt_len} + {output_len} tokens are more than the "
                f"{replicas * capacity:.3g}/s that it can hold; use more replicas (dp) or a higher tp"
            )
        running, iteration_s = found
        busy = rate_per_s * prefill_s
        first_s = prefill_s + 0.5 * iteration_s + busy * prefill_s / (2.0 * (1.0 - busy))
    return ServingPrediction(
        plan=plan,
        rate_per_s=replicas * rate_per_s,
        concurrency=replicas * running,
        prompt_len=prompt_len,
        output_len=output_len,
        time_to_first_token_s=first_s,
        time_per_output_token_s=iteration_s,
        latency_s=first_s + tokens * iteration_s,
        tokens_per_s=replicas * rate_per_s * output_len,
        capacity_per_s=plan.dp * max(capacity, rate_per_s),
        most_running=plan.dp * most,
        parameter_bytes=alone.parameter_bytes,
        kv_cache_bytes=ceil(running * each),
        device_memory_bytes=alone.device_memory_bytes,
    )


def _require_one(rate_per_s: float | None, concurrency: int | None, output_len: int) -> float:
    """The rate or the number of clients, whichever is given. Raises PlanError."""
    if (rate_per_s is None) == (concurrency is None):
        raise PlanError("give a rate of requests or a number of clients, and not both")
    given = rate_per_s if rate_per_s is not None else concurrency
    if given is None or not 0 < given < math.inf or output_len < 2:
        raise PlanError(
            f"rate({rate_per_s}), concurrency({concurrency}), output({output_len}): must be positive, and an "
            "answer at least 2 tokens"
        )
    return given


def _played(
    forecaster: InferenceForecaster, plan: Plan, load: Load, *, room_tokens: float, paged: bool
) -> ClientsPrediction:
    """One replica under its clients, pass by pass."""
    framework = forecaster.framework
    if not paged:
        framework = framework.model_copy(update={"reserves_answers": True})
    return serve_clients(
        PassCosts(forecaster, plan), framework, load, most_running=_MOST_RUNNING, room_tokens=room_tokens
    )


def _decode(
    forecaster: InferenceForecaster, plan: Plan, prompt_len: int, output_len: int, most: int
) -> Callable[[float], float]:
    """Requests running -> seconds of a decode, between priced batches of 1, 2, 4, ... requests."""
    sizes: Sequence[int] = sorted({*(2**k for k in range(most.bit_length())), most})

    @cache
    def priced(size: int) -> float:
        shaped = replace(plan, micro_batch_size=1, global_batch_size=plan.dp)
        batch = forecaster.generate(shaped, batch_size=size, prompt_len=prompt_len, output_len=output_len)
        return batch.time_per_output_token_s

    def seconds(c: float) -> float:
        above = next((s for s in sizes if s >= c), sizes[-1])
        below = max((s for s in sizes if s <= c), default=sizes[0])
        if above == below:
            return priced(above)
        return float(np.interp(c, [below, above], [priced(below), priced(above)]))

    return seconds


def _capacity(decode_s: Callable[[float], float], prefill_s: float, tokens: int, most: int) -> float:
    """The rate at which `most` requests run: r = c (1 - r f) / (tokens d(c))."""
    pace = most / (tokens * decode_s(most))
    return pace / (1.0 + pace * prefill_s)


def _closed_rate(decode_s: Callable[[float], float], prefill_s: float, tokens: int, clients: float) -> float:
    """Rate of clients that always have one request open: the largest r that keeps r (f + tokens t) at their
    number, by bisection."""
    low, high = 0.0, 1.0 / prefill_s
    for _ in range(60):
        rate = 0.5 * (low + high)
        found = steady_state(decode_s, prefill_s, tokens, rate_per_s=rate, most=clients)
        busy = None if found is None else rate * (prefill_s + tokens * found[1])
        low, high = (rate, high) if busy is not None and busy <= clients else (low, rate)
    return low
