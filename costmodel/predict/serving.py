"""Continuous batching: requests that arrive all the time share one running batch.

Every iteration decodes one token of each of the running requests, and takes in the prompts that arrived
together; its mean t at a steady rate r, with k = r t prompts in it, is `costmodel.predict.steady`'s:

    first token    the way to the scheduler + what of t is left when it comes + its prefill + queue
    queue          r f^2 / (2 (1 - r f))         mean wait for other prompts (M/D/1), f = F(k) / k

Given a concurrency instead (clients that send the next request when one is answered), the server is played
through under them pass by pass (`costmodel.predict.clients`), their prompts and answers up to a tenth longer
and shorter; where a pass is not the whole replica's (pipelines, streamed weights), r is what they reach.
The rate that cannot be held is where the requests that run no longer fit the memory, or prompts fill all the
time.

Keys and values are kept in pages of a few tokens as a request grows, or contiguous for its whole length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import ceil
from typing import Any

from costmodel.errors import InfeasibleError, PlanError
from costmodel.plan import Plan
from costmodel.predict.clients import ClientsPrediction, serve_clients
from costmodel.predict.inference import InferenceForecaster, InferencePrediction
from costmodel.predict.loads import Load
from costmodel.predict.passes import Experts, PassCosts
from costmodel.predict.steady import BatchIterations, Iterations, PassIterations, prompts_s, steady_state
from costmodel.rendering import bytes_text

__all__ = ["ServingPrediction", "serve"]

_PAGE_TOKENS = 16
"""Tokens of a page, as vLLM's default."""
_MOST_RUNNING = 1024
_HALVINGS = 50
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
    """Requests whose keys and values fit beside parameters and a pass's activations."""
    parameter_bytes: int
    kv_cache_bytes: int
    """Of the requests that run, on average."""
    activation_bytes: int
    """Of a pass full of prompts."""
    overhead_bytes: int
    """What libraries and the device's context hold."""
    device_memory_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def time_s(self) -> float:
        """Latency of an answer."""
        return self.latency_s

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "plan": str(self.plan)}


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
    forecaster = forecaster.in_pages()
    replicas = plan.dp
    if rate_per_s is not None:
        rate_per_s = rate_per_s / replicas
    if concurrency is not None:
        replicas = min(replicas, concurrency)
        concurrency = ceil(concurrency / replicas)
    room = _room(forecaster, plan, prompt_len, output_len, paged=paged)
    alone, most = room.alone, room.most
    load = Load(clients=1, prompt_len=prompt_len, output_len=output_len)
    iterations = _iterations(forecaster, plan, load, most)
    tokens = output_len - 1
    # where `most` run, as many begin in an iteration as end
    capacity = most / (tokens * (iterations.decode_s(most) + prompts_s(iterations, most / tokens, most)))
    front_s = iterations.front_s
    sent = 1.0 / front_s if front_s else math.inf
    capacity = min(capacity, sent)
    if concurrency is not None and isinstance(iterations, PassIterations):
        clients = replace(load, clients=concurrency, lengths=_LENGTHS)
        played = _played(iterations, clients, room_tokens=room.tokens, paged=paged)
        rate_per_s, running = played.requests_per_s, played.running
        first_s, iteration_s = played.time_to_first_token_s, played.time_per_output_token_s
    else:
        at_once = float(most)
        if concurrency is not None:
            at_once = min(float(concurrency), at_once)
            rate_per_s = _closed_rate(iterations, tokens, at_once, below=min(2.0 * capacity, sent))
        assert rate_per_s is not None
        found = steady_state(iterations, tokens, rate_per_s=rate_per_s, most=at_once)
        if found is None or rate_per_s * front_s > 1.0:
            raise InfeasibleError(
                f"{plan}: {given:g} requests/s of {prompt_len} + {output_len} tokens are more than the "
                f"{replicas * capacity:.3g}/s that it can hold; use more replicas (dp) or a higher tp"
            )
        running, iteration_s = found
        first_s = _first_s(iterations, rate_per_s, running, iteration_s)
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
        kv_cache_bytes=ceil(running * room.request_bytes),
        activation_bytes=room.pass_bytes,
        overhead_bytes=alone.overhead_bytes,
        device_memory_bytes=alone.device_memory_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """What a replica has for keys and values. `alone`: one request by itself; `request_bytes`: of each that
    runs, on average; `tokens`: kept of all of them; `most`: requests that fit."""

    alone: InferencePrediction
    pass_bytes: int
    request_bytes: float
    tokens: float
    most: int


def _room(
    forecaster: InferenceForecaster, plan: Plan, prompt_len: int, output_len: int, *, paged: bool
) -> _Room:
    """Raises InfeasibleError where not one request fits."""
    alone = forecaster.generate(plan, batch_size=1, prompt_len=prompt_len, output_len=output_len)
    per_token = alone.kv_cache_bytes / (prompt_len + output_len)
    # pages fill as a request grows: half its output on average, half a page unused
    length = prompt_len + 0.5 * output_len + 0.5 * _PAGE_TOKENS if paged else prompt_len + output_len
    each = per_token * length
    passing = forecaster.pass_bytes(plan, prompt_len=prompt_len, output_len=output_len)
    beside = alone.parameter_bytes + passing + alone.overhead_bytes
    taken = forecaster.framework.device_memory_fraction * alone.device_memory_bytes
    room = forecaster.framework.free_memory_fraction * (taken - beside)
    most = min(_MOST_RUNNING, int(room / each)) if each else _MOST_RUNNING
    if most < 1:
        raise InfeasibleError(
            f"{plan}: parameters of {bytes_text(alone.parameter_bytes)}, activations and libraries of "
            f"{bytes_text(beside - alone.parameter_bytes)} and one request's cache of {bytes_text(each)} do "
            f"not fit {bytes_text(taken)} of {bytes_text(alone.device_memory_bytes)}; take a higher tp"
        )
    tokens = room / per_token if per_token else math.inf
    return _Room(alone=alone, pass_bytes=passing, request_bytes=each, tokens=tokens, most=most)


def _first_s(iterations: Iterations, rate_per_s: float, running: float, iteration_s: float) -> float:
    """Seconds to the first token at a rate: of those that came in an iteration, and of waiting for others."""
    together = max(1.0, rate_per_s * iteration_s)
    each_s = iterations.added_s(together, running) / together
    busy = rate_per_s * each_s
    own_s = iterations.first_s(together, running, iteration_s)
    return own_s + busy * each_s / (2.0 * (1.0 - busy))


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


def _iterations(
    forecaster: InferenceForecaster, plan: Plan, load: Load, most: int
) -> BatchIterations | PassIterations:
    """What a replica's iterations take: its passes where one is the whole replica's, else batches."""
    if plan.pp == 1 and not plan.flags:
        costs = _passes(forecaster, plan)
        return PassIterations(costs=costs, framework=forecaster.framework, load=load, most=most)
    batch = _batches(forecaster, plan, load.prompt_len, load.output_len)
    prompts = max(1, forecaster.framework.pass_tokens // load.prompt_len)
    framework = forecaster.framework
    return BatchIterations(batch=batch, framework=framework, load=load, most=most, prompts=prompts)


def _played(iterations: PassIterations, load: Load, *, room_tokens: float, paged: bool) -> ClientsPrediction:
    """One replica under its clients, pass by pass."""
    framework = iterations.framework
    if not paged:
        framework = framework.model_copy(update={"reserves_answers": True})
    return serve_clients(
        iterations.costs, framework, load, most_running=_MOST_RUNNING, room_tokens=room_tokens
    )


def _passes(forecaster: InferenceForecaster, plan: Plan) -> PassCosts:
    """Passes of one of the plan's replicas: independent ones, or those that share experts."""
    over = plan.experts_over
    if plan.ep == 1:
        return PassCosts(forecaster, plan.with_(dp=1, global_batch_size=0))
    shared = Experts(tp=max(1, plan.expert_width), ep=plan.ep)
    return PassCosts(forecaster, plan.with_(dp=over, ep=1, expert_tp=0, global_batch_size=0), experts=shared)


def _batches(
    forecaster: InferenceForecaster, plan: Plan, prompt_len: int, output_len: int
) -> Callable[[int], InferencePrediction]:
    """So many requests answered together; each number is priced once."""
    shaped = replace(plan, micro_batch_size=1, global_batch_size=plan.dp)

    @cache
    def priced(size: int) -> InferencePrediction:
        return forecaster.generate(shaped, batch_size=size, prompt_len=prompt_len, output_len=output_len)

    return priced


def _closed_rate(iterations: Iterations, tokens: int, clients: float, *, below: float) -> float:
    """Rate of clients that always have one request open, in its prefill or among the running: the largest r
    that keeps r (F(k) + tokens t) at their number, by bisection."""
    low, high = 0.0, below
    for _ in range(_HALVINGS):
        rate = 0.5 * (low + high)
        found = steady_state(iterations, tokens, rate_per_s=rate, most=clients)
        busy = None
        if found is not None:
            running, iteration_s = found
            prompts = max(1.0, rate * iteration_s)
            busy = rate * (iterations.added_s(prompts, running) + tokens * iteration_s)
        low, high = (rate, high) if busy is not None and busy <= clients else (low, rate)
    return low
