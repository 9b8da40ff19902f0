"""What clients send a server, and how it was told to take that in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodel.errors import PlanError

__all__ = ["Load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Clients of one replica of attention, what they send, and how the server was told to take it in.

    `lengths`: shortest and longest prompts and answers over `prompt_len` and `output_len`. `requests_each`:
    how many a client sends in all; 0: so many that the start does not count. `draft_tokens`,
    `accepted_tokens`: guessed in a step of speculative decoding, and what such a step yields in the mean; 0
    and 1: none. `poll_steps`: after how many passes the server looks for new requests. `wait_steps`,
    `wait_fraction`: passes for which prompts wait beside running requests, or until they fill that fraction
    of a pass. `pass_tokens`: of a pass at most; 0: the framework's. `spare_clients`: clients that the
    server runs no request of at a time. `start_s`: what the very first pass takes more.
    """

    clients: int
    prompt_len: int
    output_len: int
    lengths: tuple[float, float] = (1.0, 1.0)
    requests_each: int = 0
    draft_tokens: int = 0
    accepted_tokens: float = 1.0
    poll_steps: int = 1
    wait_steps: int = 0
    wait_fraction: float = 1.0
    pass_tokens: int = 0
    spare_clients: int = 0
    start_s: float = 0.0

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
    def mean_context(self) -> int:
        """Tokens that a running request attends to, in the mean."""
        mean = 0.5 * sum(self.lengths)
        return max(1, round(mean * (self.prompt_len + 0.5 * self.output_len)))

    @property
    def mean_length(self) -> float:
        """Tokens of a prompt and its answer, in the mean."""
        return 0.5 * sum(self.lengths) * (self.prompt_len + self.output_len)

    def drawn(self, requests: int) -> tuple[list[int], list[int]]:
        """Tokens of so many prompts and answers, uniform between the shortest and the longest.

        As benchmark_serving of vLLM draws them (numpy.random.randint after seed 0, prompts before answers).
        """
        draw = np.random.RandomState(0)
        shortest, longest = self.lengths

        def uniform(length: int, least: int) -> list[int]:
            low, high = int(length * shortest), int(length * longest)
            return [max(least, int(n)) for n in draw.randint(low, max(low, high) + 1, size=requests)]

        return uniform(self.prompt_len, 1), uniform(self.output_len, 2)
