"""Clients of a server: closed forms, on passes whose seconds are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from costmodel.errors import PlanError
from costmodel.framework import FrameworkProfile
from costmodel.predict.clients import ClientsPrediction, Load, serve_clients
from costmodel.predict.passes import Attending, PassCosts


@dataclass(frozen=True)
class _Given:
    """A pass takes `fixed_s` and `token_s` for each token."""

    fixed_s: float
    token_s: float
    log_sigma: float = 0.1

    def seconds(self, attending: Sequence[Attending]) -> float:
        tokens = sum(a.requests * (a.tokens + a.drafted) for a in attending)
        return self.fixed_s + tokens * self.token_s if tokens else 0.0


def _serve(
    load: Load, *, most: int = 10**6, fixed_s: float = 1e-2, token_s: float = 1e-5, **profile: Any
) -> ClientsPrediction:
    framework = FrameworkProfile(name="server", source="test", **profile)
    costs = cast(PassCosts, _Given(fixed_s, token_s))
    return serve_clients(costs, framework, load, most_running=most)


def test_one_client_waits_for_nobody() -> None:
    found = _serve(Load(clients=1, prompt_len=1000, output_len=101))
    assert found.time_per_output_token_s == pytest.approx(1e-2 + 1e-5)
    assert found.time_to_first_token_s == pytest.approx(1e-2 + 1000e-5, rel=0.02)
    assert 0.9 < found.running < 1.0


def test_a_mixed_prompt_adds_its_tokens_and_one_of_its_own_passes_a_whole_pass() -> None:
    load = Load(clients=10, prompt_len=1000, output_len=1001, length_deviation=0.1)
    mixed = _serve(load, mixes_prompts=True).time_per_output_token_s
    apart = _serve(load, mixes_prompts=False).time_per_output_token_s
    assert mixed == pytest.approx(1e-2 + 10e-5 + 10 / 1000 * 1000e-5, rel=0.02)
    assert apart == pytest.approx(1e-2 + 10e-5 + 10 / 1000 * (1e-2 + 1000e-5), rel=0.02)


def test_a_long_prompt_comes_in_chunks() -> None:
    load = Load(clients=1, prompt_len=8000, output_len=1001)
    whole = _serve(load, pass_tokens=10000).time_to_first_token_s
    chunks = _serve(load, pass_tokens=2001).time_to_first_token_s
    assert chunks - whole == pytest.approx(3 * 1e-2, rel=0.1)


def test_all_clients_start_at_once_and_wait_for_half_of_each_other() -> None:
    varied = {"prompt_len": 1000, "output_len": 4001, "length_deviation": 0.06}
    steady = Load(clients=64, **varied)
    with_start = Load(clients=64, requests_each=4, **varied)
    quiet, waved = _serve(steady), _serve(with_start)
    work_s = 64 * (1e-2 / 8 + 1000e-5)  # eight prompts share a pass
    more_s = waved.time_to_first_token_s - quiet.time_to_first_token_s
    assert more_s == pytest.approx(0.5 * work_s / 4, rel=0.2)


def test_answers_of_one_length_that_began_together_end_together() -> None:
    sizes = {"clients": 8, "prompt_len": 1000, "output_len": 201, "requests_each": 10}
    alike, varied = Load(**sizes), Load(length_deviation=0.06, **sizes)
    together = _serve(alike).time_to_first_token_s
    assert together == pytest.approx(1e-2 + 8 * 1000e-5, rel=0.02)
    assert _serve(varied).time_to_first_token_s < 0.6 * together


def test_clients_beyond_the_memory_wait_for_a_slot() -> None:
    load = Load(clients=20, prompt_len=100, output_len=1001)
    enough, half = _serve(load), _serve(load, most=10)
    cycle_s = half.time_to_first_token_s / 2 + 1000 * half.time_per_output_token_s
    assert half.running <= 10
    # ten wait, one slot ends every cycle / 10
    assert half.time_to_first_token_s == pytest.approx(cycle_s, rel=0.5)
    assert half.time_to_first_token_s > 100 * enough.time_to_first_token_s


def test_overheads_of_arrival_and_of_streams_count_once() -> None:
    load = Load(clients=8, prompt_len=100, output_len=1001)
    plain = _serve(load)
    late = _serve(load, arrival_overhead_s=0.5, client_overhead_s=0.25, prompt_token_overhead_s=0.01)
    assert late.time_to_first_token_s - plain.time_to_first_token_s == pytest.approx(3.5, rel=0.01)
    assert late.time_per_output_token_s == pytest.approx(plain.time_per_output_token_s)


@pytest.mark.parametrize("sizes", [(0, 8, 8), (1, 0, 8), (1, 8, 1)])
def test_no_load_at_all_is_refused(sizes: tuple[int, int, int]) -> None:
    clients, prompt, output = sizes
    with pytest.raises(PlanError, match="at least"):
        Load(clients=clients, prompt_len=prompt, output_len=output)


def test_a_server_that_nothing_fits_is_refused() -> None:
    with pytest.raises(PlanError, match="fits"):
        _serve(Load(clients=1, prompt_len=8, output_len=8), most=0)


def test_accepted_guesses_divide_the_passes_and_all_guesses_lengthen_them() -> None:
    plain = Load(clients=10, prompt_len=100, output_len=1001)
    guessing = Load(clients=10, prompt_len=100, output_len=1001, draft_tokens=3, accepted_tokens=2.0)
    one, two = (_serve(load).time_per_output_token_s for load in (plain, guessing))
    prompts_s = 10 / 1000 * 100e-5
    assert one == pytest.approx(1e-2 + 10e-5 + prompts_s, rel=5e-3)
    assert two == pytest.approx((1e-2 + 40e-5) / 2 + prompts_s, rel=5e-3)


@pytest.mark.parametrize(("drafted", "accepted"), [(0, 1.5), (3, 4.5), (3, 0.5)])
def test_no_more_tokens_are_accepted_than_guessed(drafted: int, accepted: float) -> None:
    with pytest.raises(PlanError, match="accepted_tokens"):
        Load(clients=1, prompt_len=1, output_len=2, draft_tokens=drafted, accepted_tokens=accepted)


def test_a_server_that_looks_seldom_lets_prompts_wait_for_half_the_steps_between() -> None:
    sizes = {"clients": 16, "prompt_len": 1000, "output_len": 2001, "length_deviation": 0.1}
    often, seldom = (_serve(Load(poll_steps=n, requests_each=100, **sizes)) for n in (1, 31))
    more_s = seldom.time_to_first_token_s - often.time_to_first_token_s
    assert more_s == pytest.approx(15 * (1e-2 + 16e-5), rel=0.25)


def test_passes_of_fewer_tokens_take_prompts_one_after_another() -> None:
    sizes = {"clients": 8, "prompt_len": 1000, "output_len": 101, "requests_each": 1}
    together, each = (
        _serve(Load(**sizes), mixes_prompts=False, pass_tokens=n).time_to_first_token_s for n in (8192, 1000)
    )
    assert together == pytest.approx(1e-2 + 8 * 1000e-5, rel=0.02)
    assert each == pytest.approx(4.5 * (1e-2 + 1000e-5), rel=0.02)


def test_requests_come_in_all_lengths_around_the_mean() -> None:
    load = Load(clients=1, prompt_len=1000, output_len=500, length_deviation=0.0642)
    prompts, outputs = zip(*(load.lengths(n) for n in range(500)), strict=True)
    for found, mean in ((prompts, 1000), (outputs, 500)):
        assert sum(found) / 500 == pytest.approx(mean, rel=0.01)
        assert min(found) == pytest.approx(8 / 9 * mean, rel=0.01)
        assert max(found) == pytest.approx(10 / 9 * mean, rel=0.01)
