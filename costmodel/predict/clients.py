"""Clients that always have one request open: time to first token and per token of a server under them.

The server is played through pass by pass. Before each it takes the requests that have come, first come first
served, while running ones leave room for them (tokens of a pass, and memory):

    prompts     ride in the passes of running requests, cut to what room is left, or have passes of their own
    others      run until one of them ends or new ones are looked for: so many equal passes at once
    clients     send the next request when one is answered

Load generators start all clients at once. Lengths differ from request to request (golden-ratio sequences, so
that nothing is drawn), which spreads later ones; those that were taken in together otherwise end together.
Times are means over the requests, the first wave counted once in `requests_each`. A server that looks for new
requests only every `poll_steps` passes finds together what came meanwhile; a pass of prompts ends the pause.
What server and client do beside the passes (the framework's overheads) is added to the time to first token
and delays no pass: delayed as a whole, waves of short answers would stay together; measured ones do not.

With speculative decoding a request's pass checks `draft_tokens` guessed tokens beside its own and ends with
`accepted_tokens` of them all in the mean, its own among them (arXiv 2211.17192, section 3.1): fewer passes,
of more tokens each. What guesses cost beside that is left out.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.predict.passes import Attending, PassCosts

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = ["ClientsPrediction", "Load", "serve_clients"]

_LEAST_CHUNK = 256
_LEAST_WAVES = 4
_ENOUGH_REQUESTS = 1500
"""Requests after which further waves are taken to be like the last ones."""
_EXACT = 64
_STEPS_OF_OCTAVE = 16
_GOLDEN, _SILVER = (math.sqrt(5.0) - 1.0) / 2.0, math.sqrt(2.0) - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Clients of one replica of attention and what they send.

    `length_deviation`: of prompts' and answers' lengths over their mean; 0: all alike. `requests_each`: how
    many a client sends in all; 0: so many that the start does not count. `draft_tokens`, `accepted_tokens`:
    guessed in a step of speculative decoding, and what such a step yields in the mean; 0 and 1: none.
    `poll_steps`: after how many passes the server looks for new requests.
    """

    clients: int
    prompt_len: int
    output_len: int
    length_deviation: float = 0.0
    requests_each: int = 0
    draft_tokens: int = 0
    accepted_tokens: float = 1.0
    poll_steps: int = 1

    def __post_init__(self) -> None:
        if min(self.clients, self.prompt_len) < 1 or self.output_len < 2:
            raise PlanError(
                f"clients({self.clients}), prompt({self.prompt_len}) must be at least 1, output"
                f"({self.output_len}) at least 2 tokens"
            )
        if not 1.0 <= self.accepted_tokens <= 1 + self.draft_tokens:
            raise PlanError(
                f"accepted_tokens({self.accepted_tokens:g}) must be from 1 to 1 + "
                f"draft_tokens({self.draft_tokens})"
            )

    def lengths(self, number: int) -> tuple[int, int]:
        """Tokens of the prompt and of the answer of one request: uniform over the deviation's width."""
        width = 2.0 * math.sqrt(3.0) * self.length_deviation
        shares = (1.0 + width * ((number * step) % 1.0 - 0.5) for step in (_GOLDEN, _SILVER))
        prompt, output = (
            share * mean for share, mean in zip(shares, (self.prompt_len, self.output_len), strict=True)
        )
        return max(1, round(prompt)), max(2, round(output))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientsPrediction:
    """Means over requests, in seconds. `running`: requests past their first token, of one replica."""

    time_to_first_token_s: float
    time_per_output_token_s: float
    running: float
    log_sigma: float


def serve_clients(
    costs: PassCosts, framework: FrameworkProfile, load: Load, *, most_running: int
) -> ClientsPrediction:
    """A server under a load; at most `most_running` requests fit its memory at once.

    Raises PlanError where none fits.
    """
    if most_running < 1:
        raise PlanError("not one request fits beside the parameters; take more ranks")
    waves = max(_LEAST_WAVES, min(load.requests_each or _LEAST_WAVES, _ENOUGH_REQUESTS // load.clients))
    server = _Server(costs, framework, load, slots=min(load.clients, most_running))
    server.run(waves * load.clients)
    first_wave = server.waits_s[: load.clients]
    later = server.waits_s[load.clients :]
    share = 1.0 / load.requests_each if load.requests_each else 0.0
    first_s = share * sum(first_wave) / len(first_wave) + (1.0 - share) * sum(later) / len(later)
    beside_s = framework.arrival_overhead_s + load.clients * framework.client_overhead_s
    beside_s += load.prompt_len * framework.prompt_token_overhead_s
    return ClientsPrediction(
        time_to_first_token_s=first_s + beside_s,
        time_per_output_token_s=sum(server.paces_s) / len(server.paces_s),
        running=server.running_s / server.now_s,
        log_sigma=costs.log_sigma,
    )


@dataclass(slots=True)
class _Prompt:
    number: int
    sent_s: float
    tokens: int
    output: int
    done: int = 0


@dataclass(slots=True)
class _Server:
    """One replica, its clients, and the time. `waits_s`: to each request's first token, in their order."""

    costs: PassCosts
    framework: FrameworkProfile
    load: Load
    slots: int
    now_s: float = 0.0
    steps: float = 0.0
    """Passes that running requests have taken part in."""
    running_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    paces_s: list[float] = field(default_factory=list)
    _coming: deque[tuple[float, int]] = field(default_factory=deque)
    _waiting: deque[_Prompt] = field(default_factory=deque)
    _running: list[tuple[float, float, int]] = field(default_factory=list)
    _until_look: int = 0

    def run(self, requests: int) -> None:
        """Answer so many requests."""
        self.waits_s = [0.0] * requests
        for number in range(self.load.clients):
            self._send(number)
        sent = self.load.clients
        while len(self.paces_s) < requests:
            self._look()
            taken = self._take()
            if taken:
                self._pass(taken)
            else:
                self._decode()
            while self._running and self._running[0][0] <= self.steps + 1e-9:
                _, first_s, output = heapq.heappop(self._running)
                self.paces_s.append((self.now_s - first_s) / (output - 1))
                if sent < requests:
                    self._send(sent)
                    sent += 1

    def _send(self, number: int) -> None:
        """A client's next request."""
        self._coming.append((self.now_s, number))

    def _look(self) -> None:
        """Take in what has come, where the server looks."""
        if self._until_look > 0 and self._running:
            return
        self._until_look = self.load.poll_steps
        while self._coming:
            sent_s, number = self._coming.popleft()
            prompt, output = self.load.lengths(number)
            self._waiting.append(_Prompt(number, sent_s, prompt, output))

    def _take(self) -> list[tuple[_Prompt, int]]:
        """Prompts of the next pass, each with its tokens in it."""
        room = self.framework.pass_tokens
        if self.framework.mixes_prompts:
            room -= len(self._running) * (1 + self.load.draft_tokens)
        room = max(_LEAST_CHUNK, room)
        taken: list[tuple[_Prompt, int]] = []
        for prompt in self._waiting:
            if len(self._running) + len(taken) >= self.slots or room < 1:
                break
            tokens = min(room, prompt.tokens - prompt.done)
            taken.append((prompt, tokens))
            room -= tokens
        return taken

    def _pass(self, taken: list[tuple[_Prompt, int]]) -> None:
        """One pass with prompts in it."""
        mixed = self.framework.mixes_prompts
        calls = [
            Attending(requests=1, tokens=max(2, _near(tokens)), context=_near(prompt.done + tokens))
            for prompt, tokens in taken
        ]
        if mixed and self._running:
            calls.append(self._next_tokens())
        self._spend(self.costs.seconds(calls))
        self._until_look = 0
        self.steps += 1 if mixed else 0
        for prompt, tokens in taken:
            prompt.done += tokens
            if prompt.done >= prompt.tokens:
                self._waiting.remove(prompt)
                self.waits_s[prompt.number] = self.now_s - prompt.sent_s
                last = self.steps + (prompt.output - 1) / self.load.accepted_tokens
                heapq.heappush(self._running, (last, self.now_s, prompt.output))

    def _decode(self) -> None:
        """Passes of running requests alone, until one of them ends or the server looks for new ones."""
        each_s = self.costs.seconds([self._next_tokens()])
        passes = max(1, math.ceil(self._running[0][0] - self.steps - 1e-9))
        if self._coming:
            passes = min(passes, max(1, self._until_look))
        self._spend(passes * each_s)
        self.steps += passes
        left = self._until_look - passes
        self._until_look = left if left > 0 else left % self.load.poll_steps

    def _next_tokens(self) -> Attending:
        context = self.load.prompt_len + self.load.output_len // 2
        return Attending(
            requests=_near(len(self._running)), tokens=1, context=context, drafted=self.load.draft_tokens
        )

    def _spend(self, seconds: float) -> None:
        self.running_s += seconds * len(self._running)
        self.now_s += seconds


@lru_cache(maxsize=4096)
def _near(n: int) -> int:
    """A size near `n` out of 16 to the octave, so that few are priced."""
    if n <= _EXACT:
        return n
    return round(math.pow(2.0, round(_STEPS_OF_OCTAVE * math.log2(n)) / _STEPS_OF_OCTAVE))
