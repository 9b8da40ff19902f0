"""Clients that always have one request open: time to first token and per token of a server under them.

The server is played through pass by pass. Before each it takes the requests that it knows of, first come
first served, while running ones leave room for them (tokens of a pass, and memory):

    prompts     ride in the passes of running requests, cut to what room is left, or have passes of their own;
                the host launches their kernels one by one, so that such a pass takes no less than that
    others      run until one of them ends or new ones are looked for: so many equal passes at once
    clients     send the next request when one is answered

Memory fills as answers grow. A server that reserves whole answers lets a prompt wait until its own fits; any
other takes a prompt in as soon as that fits alone, and where it runs out of memory, the request that began
last is put back to the head of the queue and later computed anew, its answer so far with its prompt.

What a pass holds is settled while others before it still run (`passes_ahead`): a request that comes meanwhile
waits for them all. A server may look for new requests only every `poll_steps` passes (a pass of prompts ends
the pause), and may let prompts wait beside running requests for others to share a pass with.

Before the scheduler stands a front end, one process that reads requests, cuts prompts into tokens and
streams every token of every answer, in the order in which these come. Where answers come faster than it can
send them, its queue grows until clients wait for it: first tokens are late, later ones as fast as passes
make them.

Load generators start all clients at once; the first pass of a server that was not warmed up takes `start_s`
more. Lengths differ from request to request as the benchmarks' generator draws them (numpy's, seed 0),
which spreads later ones; those that were taken in together otherwise end together. Times are means over
requests, the first wave counted once in `requests_each`. Clients that never stop are found at work: of their
first answers evenly spread parts are left, and neither those nor the last ones count.

With speculative decoding a request's pass checks `draft_tokens` guessed tokens beside its own and ends with
`accepted_tokens` of them all in the mean, its own among them (arXiv 2211.17192, section 3.1): fewer passes,
of more tokens each. What guesses cost beside that is left out.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.predict.loads import Load
from costmodel.predict.passes import Attending, PassCosts
from costmodel.predict.uncertainty import error_model

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = ["LEAST_CHUNK", "ClientsPrediction", "near_size", "prompt_pass_s", "serve_clients"]

LEAST_CHUNK = 256
"""Tokens of prompts that a pass takes however many requests run beside them."""
_LEAST_WAVES = 4
"""Requests of each client that are played through, at least: the first wave is unlike later ones."""
_STEADY_WAVES = 16
"""The same where clients never stop, at most: what lengths average to settles."""
_ENOUGH_REQUESTS = 1500
"""Requests after which further waves are taken to be like the last ones."""
_EXACT = 64
"""Running requests up to which each number is priced as it is; beyond, `_STEPS_OF_OCTAVE` to the octave."""
_STEPS_OF_OCTAVE = 16
_ROUNDING = 1e-9
"""Seconds and steps that two moments may differ by and be the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsPrediction:
    """Means over requests, in seconds. `requests_per_s`: of all clients after the first wave (Little's law).
    `running`: requests past their first token, of one replica. The spreads are of ln of both times."""

    time_to_first_token_s: float
    time_per_output_token_s: float
    requests_per_s: float
    running: float
    first_token_log_sigma: float
    per_token_log_sigma: float


def serve_clients(
    costs: PassCosts,
    framework: FrameworkProfile,
    load: Load,
    *,
    most_running: int,
    room_tokens: float = math.inf,
) -> ClientsPrediction:
    """A server under a load, that runs `most_running` requests at once and keeps `room_tokens` tokens.

    Raises PlanError where not one request fits.
    """
    if most_running < 1 or room_tokens < load.mean_length:
        raise PlanError("not one request fits beside the parameters; take more ranks")
    steady, clients = not load.requests_each, load.clients
    asked = _STEADY_WAVES if steady else load.requests_each
    waves = max(_LEAST_WAVES, min(asked, _ENOUGH_REQUESTS // clients))
    prompts, outputs = load.drawn(max(waves, load.requests_each) * clients)
    if steady:
        outputs = _begun_before(outputs, clients)
    slots = max(1, min(clients - load.spare_clients, most_running))
    server = _Server(costs, framework, load, slots=slots, room_tokens=room_tokens, lengths=(prompts, outputs))
    server.run(waves * clients)
    # neither the first wave nor, where clients never stop, what runs when they do
    later = server.waits_s[clients : -clients if steady else None]
    paces = server.paces_s[clients:-clients] if steady else server.paces_s
    share = 0.0 if steady else 1.0 / load.requests_each
    first_wave_s = sum(server.waits_s[:clients]) / clients
    later_s = sum(later) / len(later)
    first_s = share * first_wave_s + (1.0 - share) * later_s
    pace_s = sum(paces) / len(paces)
    outputs = outputs[clients:] if steady else outputs
    answer_s = later_s + (sum(outputs) / len(outputs) - 1.0) * pace_s
    # while every client has a request open, neither as the first ones come nor as the last ones end
    (since_s, running_from), (until_s, running_to) = server.sends_s[0], server.sends_s[-1]
    first_sigma, pace_sigma = server.log_sigmas(first_s)
    return ClientsPrediction(
        time_to_first_token_s=first_s,
        time_per_output_token_s=pace_s,
        requests_per_s=clients / answer_s,
        running=(running_to - running_from) / (until_s - since_s),
        first_token_log_sigma=first_sigma,
        per_token_log_sigma=pace_sigma,
    )


def _begun_before(outputs: list[int], clients: int) -> list[int]:
    """Answers of clients that came one after another: of the first wave, evenly spread parts are left."""
    left = [max(2, round(n * (i + 0.5) / clients)) for i, n in enumerate(outputs[:clients])]
    return left + outputs[clients:]


def prompt_pass_s(
    costs: PassCosts, framework: FrameworkProfile, calls: Sequence[Attending], tokens: int
) -> tuple[float, float]:
    """Seconds of a pass of `tokens` tokens with prompts in it, and those of them that launching its kernels
    takes where that holds the device up."""
    seconds = costs.seconds(calls)
    if tokens <= framework.captured_tokens:
        return seconds, 0.0
    seconds *= framework.uncaptured_factor
    launching_s = costs.operators * framework.prompt_operator_s
    return max(seconds, launching_s), launching_s if launching_s > seconds else 0.0


@dataclass(slots=True)
class _Prompt:
    number: int
    sent_s: float
    tokens: int
    output: int
    done: int = 0
    first_s: float | None = None
    """When its first token was out: it has been put back."""
    left: float = 0.0
    """Steps that it has to go, where it has been put back."""


@dataclass(slots=True, order=True)
class _Running:
    ends: float
    """Steps at its end."""
    number: int
    begun: float
    kept: int
    """Tokens kept of it when it began."""
    first_s: float
    output: int


@dataclass(slots=True)
class _Server:
    """One replica, its clients, and the time. `waits_s`: to each request's first token, in their order;
    `paces_s`: seconds of each token after it."""

    costs: PassCosts
    framework: FrameworkProfile
    load: Load
    slots: int
    room_tokens: float
    lengths: tuple[list[int], list[int]]
    now_s: float = 0.0
    front_s: float = 0.0
    """When the front end has done what it was given."""
    steps: float = 0.0
    """Passes that running requests have taken part in."""
    running_s: float = 0.0
    sends_s: list[tuple[float, float]] = field(default_factory=list)
    """(time, `running_s`) as requests after the first wave were sent."""
    waits_s: list[float] = field(default_factory=list)
    paces_s: list[float] = field(default_factory=list)
    _coming: deque[tuple[float, _Prompt]] = field(default_factory=deque)
    """Requests on their way: when the scheduler could know of them, in order."""
    _waiting: deque[_Prompt] = field(default_factory=deque)
    _running: list[_Running] = field(default_factory=list)
    _kept: float = 0.0
    """Tokens kept of running requests when they began, and their answers where those are reserved."""
    _begun: float = 0.0
    """Sum of the steps at which they began."""
    prompted_s: float = 0.0
    """Seconds of the passes with prompts in them, and of those among them that the host holds up."""
    launched_s: float = 0.0
    _prompted: tuple[int, int] = (0, 0)
    """Passes with prompts in them, and their prompts' tokens."""
    _filling: int = 0
    """Tokens that prompts taken in, and not run through yet, take."""
    _settled_s: deque[float] = field(default_factory=deque)
    """When the last passes were settled: the one now at the front was before those that are still ahead."""
    _until_look: int = 0
    _waited: int = 0
    """Passes that prompts have waited for others."""

    def run(self, requests: int) -> None:
        """Answer so many requests."""
        self.waits_s, self.paces_s = [0.0] * requests, [0.0] * requests
        self._settled_s.extend([-1.0] * (self.framework.passes_ahead + 1))
        for number in range(self.load.clients):
            self._send(number, 0.0)
        sent = self.load.clients
        self.now_s = self.load.start_s
        ended_requests = 0
        while ended_requests < requests:
            self._make_room()
            self._look()
            taken = self._take()
            if taken:
                self._pass(taken)
            elif self._running:
                self._decode()
            else:
                self._idle()
            while self._running and self._running[0].ends <= self.steps + _ROUNDING:
                ended = heapq.heappop(self._running)
                self._leave(ended)
                seen_s = max(self.front_s, self.now_s)
                self.paces_s[ended.number] = (seen_s - ended.first_s) / (ended.output - 1)
                ended_requests += 1
                if sent < requests:
                    self._send(sent, seen_s)
                    sent += 1
                    self.sends_s.append((self.now_s, self.running_s))

    def _send(self, number: int, sent_s: float) -> None:
        """A client's next request, through the front end to the scheduler."""
        prompts, outputs = self.lengths
        framework = self.framework
        work_s = framework.frontend_request_s + prompts[number] * framework.frontend_prompt_token_s
        self.front_s = max(self.front_s, sent_s) + work_s
        known_s = self.front_s + framework.arrival_overhead_s
        self._coming.append((known_s, _Prompt(number, sent_s, prompts[number], outputs[number])))

    def _idle(self) -> None:
        """Nothing runs: prompts wait for nobody, or the next request is awaited."""
        if not self._waiting:
            self.now_s = max(self.now_s, self._coming[0][0])
            self._settled_s = deque([self.now_s] * len(self._settled_s))
        self._until_look = 0

    def _look(self) -> None:
        """Take in what had come when this pass was settled, where the server looks."""
        self._settled_s.append(self.now_s)
        self._settled_s.popleft()
        settled_s = self._settled_s[0] if self._running else self.now_s
        if self._until_look > 0 and self._running:
            return
        self._until_look = self.load.poll_steps
        while self._coming and self._coming[0][0] <= settled_s + _ROUNDING:
            self._waiting.append(self._coming.popleft()[1])

    def _needs(self, prompt: _Prompt) -> int:
        """Tokens that a prompt must find room for."""
        return prompt.tokens + (prompt.output if self.framework.reserves_answers else 0)

    def _held(self) -> float:
        """Tokens kept now."""
        grown = 0.0
        if not self.framework.reserves_answers:
            grown = self.load.accepted_tokens * (len(self._running) * self.steps - self._begun)
        return self._kept + grown + self._filling

    def _grow(self) -> float:
        """Tokens that a step adds to them."""
        return len(self._running) * self._step()

    def _step(self) -> float:
        """Tokens that a step adds to one request; without room for them it would be put back at once."""
        return 0.0 if self.framework.reserves_answers else self.load.accepted_tokens

    def _make_room(self) -> None:
        """Put the requests that began last back while the next step's tokens find no room."""
        while len(self._running) > 1 and self._held() + self._grow() > self.room_tokens:
            last = max(self._running, key=lambda r: (r.begun, r.number))
            self._running.remove(last)
            heapq.heapify(self._running)
            self._leave(last)
            grown = round(self.load.accepted_tokens * (self.steps - last.begun))
            self._waiting.appendleft(
                _Prompt(
                    last.number,
                    0.0,
                    last.kept + grown,
                    last.output,
                    first_s=last.first_s,
                    left=last.ends - self.steps,
                )
            )

    def _leave(self, running: _Running) -> None:
        self._kept -= running.kept + (running.output if self.framework.reserves_answers else 0)
        self._begun -= running.begun

    def _take(self) -> list[tuple[_Prompt, int]]:
        """Prompts of the next pass, each with its tokens in it."""
        whole = self.load.pass_tokens or self.framework.pass_tokens
        beside = len(self._running) * (1 + self.load.draft_tokens)
        room = max(LEAST_CHUNK, whole - beside if self.framework.mixes_prompts else whole)
        free = self.room_tokens - self._held() - self._grow()
        taken: list[tuple[_Prompt, int]] = []
        full = False
        for prompt in self._waiting:
            if len(self._running) + len(taken) >= self.slots or room < 1:
                break
            needs = 0 if prompt.done else self._needs(prompt)
            crowded = needs + self._step() > free
            full = full or (crowded and bool(taken or self._running or self._filling))
            if full and not prompt.done:
                continue
            free -= needs + (0.0 if prompt.done else self._step())
            tokens = min(room, prompt.tokens - prompt.done)
            taken.append((prompt, tokens))
            room -= tokens
        filled = beside + sum(tokens for _, tokens in taken) >= self.load.wait_fraction * whole
        if taken and self._running and not filled and self._waited < self.load.wait_steps:
            self._waited += 1
            return []
        self._waited = 0
        return taken

    def _pass(self, taken: list[tuple[_Prompt, int]]) -> None:
        """One pass with prompts in it."""
        framework = self.framework
        calls = [
            Attending(requests=1, tokens=max(2, near_size(tokens)), context=near_size(prompt.done + tokens))
            for prompt, tokens in taken
        ]
        beside = len(self._running) if framework.mixes_prompts else 0
        if beside:
            calls.append(self._next_tokens())
        seconds, launching_s = prompt_pass_s(
            self.costs, framework, calls, beside + sum(tokens for _, tokens in taken)
        )
        self.launched_s += launching_s
        self.prompted_s += seconds
        passes, tokens = self._prompted
        self._prompted = passes + 1, tokens + sum(own for _, own in taken)
        self._spend(seconds)
        self._until_look = 0
        self.steps += 1 if framework.mixes_prompts else 0
        ended = [prompt for prompt, tokens in taken if prompt.done + tokens >= prompt.tokens]
        self._stream(beside + len(ended), 1, seconds)
        for prompt, tokens in taken:
            self._filling += 0 if prompt.done else self._needs(prompt)
            prompt.done += tokens
        for prompt in ended:
            self._waiting.remove(prompt)
            self._filling -= self._needs(prompt)
            self._begin(prompt)

    def _begin(self, prompt: _Prompt) -> None:
        """A prompt has been run through: its request runs."""
        first_s, left = prompt.first_s, prompt.left
        if first_s is None:
            first_s = max(self.front_s, self.now_s)
            self.waits_s[prompt.number] = first_s - prompt.sent_s
            left = (prompt.output - 1) / self.load.accepted_tokens
        ends = self.steps + left
        running = _Running(ends, prompt.number, self.steps, prompt.tokens, first_s, prompt.output)
        heapq.heappush(self._running, running)
        self._kept += self._needs(prompt)
        self._begun += self.steps

    def _decode(self) -> None:
        """Passes of running requests alone, until one of them ends or the server may take in a prompt."""
        each_s = self.costs.seconds([self._next_tokens()])
        passes = max(1, math.ceil(self._running[0].ends - self.steps - _ROUNDING))
        grow = self._grow()
        free = self.room_tokens - self._held() - grow
        if grow and free < passes * grow:
            passes = max(1, int(free / grow))
        fits = bool(self._waiting) and self._needs(self._waiting[0]) + self._step() <= free
        if fits and len(self._running) < self.slots:
            passes = min(passes, max(1, self.load.wait_steps - self._waited))
            self._waited += passes - 1
        if self._coming:
            until_s = self._coming[0][0] - self.now_s
            known = max(1, math.ceil(until_s / each_s - _ROUNDING) + self.framework.passes_ahead)
            passes = min(passes, max(known, self._until_look))
        self._spend(passes * each_s)
        self._stream(len(self._running) * self.load.accepted_tokens, passes, each_s)
        self.steps += passes
        for n in range(min(passes - 1, len(self._settled_s)), 0, -1):
            self._settled_s.append(self.now_s - n * each_s)
            self._settled_s.popleft()
        left = self._until_look - passes
        self._until_look = left if left > 0 else left % self.load.poll_steps

    def log_sigmas(self, first_s: float) -> tuple[float, float]:
        """Spreads of ln(time to first token, whose mean is `first_s`) and of ln(time per token).

        A pass errs as its operators and collectives do; one with prompts that the host holds up, and what
        requests spend before the scheduler knows them, as host times do. What the profile states of either
        time comes on top.
        """
        framework, host = self.framework, error_model().host
        running = max(1, round(self.running_s / self.now_s))
        token = self._next_tokens(running)
        passes, tokens = self._prompted
        each = max(2, round(tokens / max(1, passes)))
        prompt = Attending(requests=1, tokens=each, context=max(each, self.load.prompt_len // 2))
        held = self.launched_s / self.prompted_s if self.prompted_s else 0.0
        mixed = [prompt, token] if framework.mixes_prompts else [prompt]
        of_prompts = math.hypot((1.0 - held) * self.costs.log_sigma(mixed), held * host)
        prompts = self.prompted_s / self.now_s
        pace = math.hypot((1.0 - prompts) * self.costs.log_sigma([token]), prompts * of_prompts)
        front_s = framework.arrival_overhead_s + framework.frontend_request_s
        front_s += self.load.prompt_len * framework.frontend_prompt_token_s
        front = min(1.0, front_s / first_s)
        first = math.hypot((1.0 - front) * of_prompts, front * host)
        left = framework.residual_log_sigma
        of_first, of_token = framework.first_token_log_sigma, framework.per_token_log_sigma
        return (
            math.hypot(first, left if of_first is None else of_first),
            math.hypot(pace, left if of_token is None else of_token),
        )

    def _next_tokens(self, running: int = 0) -> Attending:
        """The next token of so many requests; 0: of those that run."""
        return Attending(
            requests=near_size(running or len(self._running)),
            tokens=1,
            context=self.load.mean_context,
            drafted=self.load.draft_tokens,
        )

    def _spend(self, seconds: float) -> None:
        self.running_s += seconds * len(self._running)
        self.now_s += seconds

    def _stream(self, tokens: float, passes: int, each_s: float) -> None:
        """The front end sends the tokens of each of the last passes after it."""
        work_s = tokens * self.framework.frontend_token_s
        begun_s = max(self.front_s, self.now_s - (passes - 1) * each_s)
        self.front_s = max(begun_s + passes * work_s, self.now_s + work_s)


@lru_cache(maxsize=4096)
def near_size(n: int) -> int:
    """A size near `n` out of 16 to the octave, so that few are priced."""
    if n <= _EXACT:
        return n
    return round(math.pow(2.0, round(_STEPS_OF_OCTAVE * math.log2(n)) / _STEPS_OF_OCTAVE))
