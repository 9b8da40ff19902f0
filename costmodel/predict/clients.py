"""Clients that always have one request open: time to first token and per token of a server under them.

With c requests running, `steps` = output - 1 tokens each after the first, and a prompt adding e seconds to
the passes that take it in (its whole forward where prompts have passes of their own):

    step        t = pass(c) + (c / steps) e             a request's steps see one prompt of every other one
    first token the rest of the running pass + own passes + wait for other prompts
    cycle       first token + steps t                   c counts those past their first token

Load generators start all clients at once: in the mean a prompt of the first wave waits for half the wave's
work w. The next ones come as far apart as their forerunners were taken in, over w, and as the lengths of
answers differ, over sqrt(12 j) deviations of a cycle in wave j; they wait as in M/D/1 at w over that width,
but no longer than a queue at full load grows to over one wave. Clients beyond those that fit wait for one to
end. A server that looks for new requests only every `poll_steps` steps takes in together what came meanwhile,
after (poll_steps - 1) / 2 steps more in the mean.

With speculative decoding a request's step checks `draft_tokens` guessed tokens beside its own and ends with
`accepted_tokens` of them all in the mean, its own among them (arXiv 2211.17192, section 3.1): fewer steps, of
more tokens each. What guesses cost beside that is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.predict.passes import Attending, PassCosts

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = ["ClientsPrediction", "Load", "serve_clients"]

_ROUNDS = 6
_LEAST_CHUNK = 256
_WALK = 2.0 / 3.0 * math.sqrt(2.0 / math.pi)
"""Mean over n steps of a walk of unit steps that is kept from falling below 0, over sqrt(n)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Clients of one replica of attention and what they send.

    `length_deviation`: of prompts' and answers' lengths over their mean; 0: all alike. `requests_each`: how
    many a client sends in all; 0: so many that the start does not count. `draft_tokens`, `accepted_tokens`:
    guessed in a step of speculative decoding, and what such a step yields in the mean; 0 and 1: none.
    `poll_steps`: after how many steps the server looks for new requests.
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

    @property
    def steps(self) -> float:
        """Passes that a request takes part in after its first token."""
        return (self.output_len - 1) / self.accepted_tokens


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
    slots = min(load.clients, most_running)
    steps = load.steps
    context = load.prompt_len + load.output_len // 2
    running, first_s, step_s = float(slots), 0.0, 1.0
    for _ in range(_ROUNDS):
        c = max(1, round(running))
        decoding = Attending(requests=c, tokens=1, context=context, drafted=load.draft_tokens)
        decode_s = costs.seconds([decoding])
        together = round(c * load.poll_steps / steps)
        together = max(1, min(together, framework.pass_tokens // load.prompt_len))
        beside = decoding if framework.mixes_prompts else None
        passes = _prompt_passes(costs, framework, load.prompt_len, together, beside)
        prompt_s = sum(passes) / together
        added_s = prompt_s - (len(passes) * decode_s / together if framework.mixes_prompts else 0.0)
        step_s = decode_s + c / steps * added_s
        share = min(1.0, c / steps * len(passes) / together)  # of all passes take in prompts
        rest_s = _rest_of_pass(decode_s, sum(passes) / len(passes), share)
        cycle_s = first_s + steps * step_s
        wait_s = _waves(costs, framework, load, slots, cycle_s)
        first_s = rest_s + 0.5 * (load.poll_steps - 1) * decode_s + sum(passes) + wait_s
        first_s += framework.arrival_overhead_s + load.clients * framework.client_overhead_s
        running = max(1.0, slots * steps * step_s / (steps * step_s + first_s))
    cycle_s = first_s + steps * step_s
    without_slot = load.clients - slots
    return ClientsPrediction(
        time_to_first_token_s=first_s + without_slot * cycle_s / slots,
        time_per_output_token_s=step_s / load.accepted_tokens,
        running=running,
        log_sigma=costs.log_sigma,
    )


def _prompt_passes(
    costs: PassCosts, framework: FrameworkProfile, prompt: int, together: int, beside: Attending | None = None
) -> list[float]:
    """Seconds of the passes that take in `together` prompts, `beside` running requests in each of them."""
    decoding = [beside] if beside else []
    room = framework.pass_tokens - sum(a.requests * (a.tokens + a.drafted) for a in decoding)
    room = max(_LEAST_CHUNK, room)
    if prompt <= room:
        return [costs.seconds([Attending(requests=together, tokens=prompt, context=prompt), *decoding])]
    seconds = []
    for start in range(0, prompt, room):
        end = min(prompt, start + room)
        seconds.append(
            costs.seconds([Attending(requests=1, tokens=max(2, end - start), context=end), *decoding])
        )
    return seconds * together


def _rest_of_pass(decode_s: float, prompt_s: float, share: float) -> float:
    """Mean time until the running pass ends, for one who comes at any moment: E[t^2] / (2 E[t])."""
    mean = (1.0 - share) * decode_s + share * prompt_s
    return ((1.0 - share) * decode_s**2 + share * prompt_s**2) / (2.0 * mean)


def _waves(costs: PassCosts, framework: FrameworkProfile, load: Load, slots: int, cycle_s: float) -> float:
    """Mean wait of a prompt for the others of its wave."""
    full = max(1, framework.pass_tokens // load.prompt_len)
    together = min(full, slots)
    each_s = sum(_prompt_passes(costs, framework, load.prompt_len, together)) / together
    work_s = slots * each_s
    waves = load.requests_each or 1
    if not load.requests_each:
        return 0.0
    total = 0.5 * work_s  # all at once
    for wave in range(1, waves):
        if not load.length_deviation:
            break  # answers of one length end one after another, as their prompts were taken in
        width_s = min(cycle_s, math.hypot(work_s, math.sqrt(12.0 * wave) * load.length_deviation * cycle_s))
        busy = min(work_s / width_s, 1.0 - 1e-6)
        queue_s = busy * each_s / (2.0 * (1.0 - busy))
        total += min(queue_s, _WALK * math.sqrt(slots) * each_s)
    return total / waves
