"""Clients of a server: closed forms, on passes whose seconds are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from costmodel.errors import PlanError
from costmodel.framework import FrameworkProfile
from costmodel.predict.clients import ClientsPrediction, serve_clients
from costmodel.predict.loads import Load
from costmodel.predict.passes import Attending, PassCosts
from costmodel.predict.uncertainty import error_model

_SPREAD = (0.83, 1.17)


@dataclass(frozen=True)
class _Given:
    """A pass takes `fixed_s` and `token_s` for each token."""

    fixed_s: float
    token_s: float
    operators: int = 1000

    def log_sigma(self, attending: Sequence[Attending]) -> float:
        """Prompts err three times as much as running requests."""
        return 0.3 if any(a.tokens > 1 for a in attending) else 0.1

    def seconds(self, attending: Sequence[Attending]) -> float:
        tokens = sum(a.requests * (a.tokens + a.drafted) for a in attending)
        return self.fixed_s + tokens * self.token_s if tokens else 0.0


def _serve(
    load: Load,
    *,
    most: int = 10**6,
    room: float = math.inf,
    fixed_s: float = 1e-2,
    token_s: float = 1e-5,
    **profile: Any,
) -> ClientsPrediction:
    framework = FrameworkProfile(name="server", source="test", **profile)
    costs = cast(PassCosts, _Given(fixed_s, token_s))
    return serve_clients(costs, framework, load, most_running=most, room_tokens=room)


def test_one_client_waits_for_nobody() -> None:
    found = _serve(Load(clients=1, prompt_len=1000, output_len=101))
    assert found.time_per_output_token_s == pytest.approx(1e-2 + 1e-5)
    assert found.time_to_first_token_s == pytest.approx(1e-2 + 1000e-5, rel=0.02)
    assert 0.9 < found.running < 1.0


def test_a_mixed_prompt_adds_its_tokens_and_one_of_its_own_passes_a_whole_pass() -> None:
    load = Load(clients=10, prompt_len=1000, output_len=1001, lengths=_SPREAD)
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
    varied = {"prompt_len": 1000, "output_len": 4001, "lengths": (0.9, 1.1)}
    steady = Load(clients=64, **varied)
    with_start = Load(clients=64, requests_each=4, **varied)
    quiet, waved = _serve(steady), _serve(with_start)
    work_s = 64 * (1e-2 / 8 + 1000e-5)  # eight prompts share a pass
    more_s = waved.time_to_first_token_s - quiet.time_to_first_token_s
    assert more_s == pytest.approx(0.5 * work_s / 4, rel=0.2)


def test_answers_of_one_length_that_began_together_end_together() -> None:
    sizes = {"clients": 8, "prompt_len": 1000, "output_len": 201, "requests_each": 10}
    alike, varied = Load(**sizes), Load(lengths=(0.9, 1.1), **sizes)
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


def test_a_request_takes_its_way_through_the_front_end_before_it_waits_for_passes() -> None:
    load = Load(clients=1, prompt_len=100, output_len=1001)
    plain = _serve(load)
    late = _serve(load, arrival_overhead_s=0.5, frontend_request_s=0.25, frontend_prompt_token_s=0.001)
    assert late.time_to_first_token_s - plain.time_to_first_token_s == pytest.approx(0.85, rel=0.01)
    assert late.time_per_output_token_s == pytest.approx(plain.time_per_output_token_s)


def test_a_front_end_that_streams_too_slowly_makes_first_tokens_wait() -> None:
    load = Load(clients=100, prompt_len=10, output_len=1001, lengths=_SPREAD)
    free, held = _serve(load), _serve(load, frontend_token_s=2e-4)
    cycle_s = 100 * 1001 * 2e-4  # a hundred answers, token by token
    assert free.time_to_first_token_s < 0.1
    assert held.requests_per_s == pytest.approx(100 / cycle_s, rel=0.15)
    assert held.time_to_first_token_s + 1000 * held.time_per_output_token_s == pytest.approx(
        cycle_s, rel=0.15
    )


def test_passes_that_are_settled_ahead_make_a_prompt_wait_for_them() -> None:
    load = Load(clients=8, prompt_len=100, output_len=2001, lengths=_SPREAD, requests_each=100)
    now, ahead = (_serve(load, passes_ahead=n).time_to_first_token_s for n in (0, 1))
    assert ahead - now == pytest.approx(1e-2 + 8e-5, rel=0.1)


def test_prompts_launched_kernel_by_kernel_take_the_host_s_time() -> None:
    load = Load(clients=1, prompt_len=1024, output_len=101)
    captured, launched, fast = (
        _serve(load, prompt_operator_s=seconds, captured_tokens=tokens).time_to_first_token_s
        for seconds, tokens in ((1e-4, 1024), (1e-4, 1023), (1e-6, 0))
    )
    assert captured == fast == pytest.approx(1e-2 + 1024e-5)
    assert launched == pytest.approx(1000 * 1e-4)


def test_prompts_beyond_what_is_captured_take_a_multiple_of_their_kernels() -> None:
    load = Load(clients=1, prompt_len=1024, output_len=101)
    plain, within, beyond = (
        _serve(load, uncaptured_factor=factor, captured_tokens=tokens)
        for factor, tokens in ((1.0, 0), (3.0, 1024), (3.0, 1023))
    )
    assert within == plain
    assert beyond.time_to_first_token_s == pytest.approx(3.0 * plain.time_to_first_token_s)
    assert beyond.time_per_output_token_s == pytest.approx(plain.time_per_output_token_s)


def test_a_cold_server_s_first_pass_holds_up_the_first_wave_alone() -> None:
    sizes = {"clients": 4, "prompt_len": 100, "output_len": 101, "lengths": _SPREAD, "requests_each": 10}
    warm, cold = _serve(Load(**sizes)), _serve(Load(start_s=20.0, **sizes))
    assert cold.time_to_first_token_s - warm.time_to_first_token_s == pytest.approx(2.0, rel=0.05)
    assert cold.time_per_output_token_s == pytest.approx(warm.time_per_output_token_s, rel=0.05)


def test_prompts_wait_for_others_so_many_passes_or_until_a_pass_is_full_enough() -> None:
    sizes = {"clients": 16, "prompt_len": 1000, "output_len": 2001, "lengths": _SPREAD, "requests_each": 100}
    at_once, late, filled = (
        _serve(Load(wait_steps=n, wait_fraction=fraction, **sizes)).time_to_first_token_s
        for n, fraction in ((0, 1.0), (10, 1.0), (10, 0.1))
    )
    assert late - at_once == pytest.approx(10 * (1e-2 + 16e-5), rel=0.2)
    assert filled == pytest.approx(at_once)


def test_a_client_without_a_slot_waits_for_the_next_answer_to_end() -> None:
    sizes = {"clients": 8, "prompt_len": 10, "output_len": 2001, "lengths": _SPREAD, "requests_each": 100}
    answer_s = 2000 * (1e-2 + 8e-5)
    assert _serve(Load(**sizes)).time_to_first_token_s < 0.02
    assert _serve(Load(spare_clients=1, **sizes)).time_to_first_token_s == pytest.approx(
        answer_s / 7, rel=0.1
    )


def test_reserved_answers_leave_room_for_so_many_requests() -> None:
    load = Load(clients=8, prompt_len=10, output_len=2001, lengths=_SPREAD, requests_each=100)
    room = 4.0 * 1.17 * (10 + 2001)
    reserved = _serve(load, room=room, reserves_answers=True)
    # half of them run: the others wait for as long as an answer takes
    assert reserved.running == pytest.approx(4.0, rel=0.1)
    answer_s = 2000 * reserved.time_per_output_token_s
    assert reserved.time_to_first_token_s == pytest.approx(answer_s, rel=0.2)


def test_answers_that_grow_share_room_that_reserved_ones_do_not_and_are_put_back_where_it_ends() -> None:
    load = Load(clients=8, prompt_len=10, output_len=2001, lengths=_SPREAD, requests_each=100)
    room = 4.0 * 1.17 * (10 + 2001)
    reserved, grown, free = (
        _serve(load, room=tokens, reserves_answers=whole)
        for tokens, whole in ((room, True), (room, False), (math.inf, False))
    )
    assert reserved.running < grown.running < free.running
    assert grown.time_to_first_token_s < reserved.time_to_first_token_s
    # answers that were put back wait until they go on: their tokens come later
    assert grown.time_per_output_token_s > 1.05 * free.time_per_output_token_s
    assert grown.requests_per_s < free.requests_per_s


@pytest.mark.parametrize("spare", [0.0, 0.5, 1.0, 1.5])
def test_a_request_put_back_comes_in_again_only_with_room_to_go_on(spare: float) -> None:
    load = Load(clients=8, prompt_len=100, output_len=101, draft_tokens=1, accepted_tokens=1.5)
    found = _serve(load, room=3 * 200 + spare, mixes_prompts=False)
    assert found.time_to_first_token_s > 0.0


def test_a_prompt_in_chunks_goes_on_behind_a_request_that_was_put_back() -> None:
    load = Load(clients=6, prompt_len=3000, output_len=301, lengths=_SPREAD, requests_each=20)
    found = _serve(load, room=8200.0, pass_tokens=512)
    assert 1.0 < found.running < 3.0
    assert found.time_to_first_token_s > 0.0


@pytest.mark.parametrize("sizes", [(0, 8, 8), (1, 0, 8), (1, 8, 1)])
def test_no_load_at_all_is_refused(sizes: tuple[int, int, int]) -> None:
    clients, prompt, output = sizes
    with pytest.raises(PlanError, match="at least"):
        Load(clients=clients, prompt_len=prompt, output_len=output)


def test_a_server_that_nothing_fits_is_refused() -> None:
    with pytest.raises(PlanError, match="fits"):
        _serve(Load(clients=1, prompt_len=8, output_len=8), most=0)
    with pytest.raises(PlanError, match="fits"):
        _serve(Load(clients=1, prompt_len=8, output_len=8), room=15.0)


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
    sizes = {"clients": 16, "prompt_len": 1000, "output_len": 2001, "lengths": _SPREAD}
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


def test_lengths_are_those_that_the_benchmark_s_generator_draws() -> None:
    prompts, outputs = Load(clients=1, prompt_len=1000, output_len=500, lengths=(0.8, 1.0)).drawn(500)
    for found, most in ((prompts, 1000), (outputs, 500)):
        assert sum(found) / 500 == pytest.approx(0.9 * most, rel=0.01)
        assert 0.8 * most <= min(found) < 0.81 * most
        assert 0.99 * most < max(found) <= most
    # numpy.random.seed(0); numpy.random.randint(800, 1001, size=500)
    assert prompts[:4] == [972, 847, 917, 992]
    alike = Load(clients=1, prompt_len=7, output_len=9).drawn(3)
    assert alike == ([7, 7, 7], [9, 9, 9])


def test_a_time_errs_as_the_passes_it_is_spent_in() -> None:
    load = Load(clients=1, prompt_len=1000, output_len=1001)
    found = _serve(load)
    assert found.first_token_log_sigma == pytest.approx(0.3, rel=0.01)
    assert found.per_token_log_sigma == pytest.approx(0.1, rel=0.05)


def test_what_the_host_takes_errs_as_host_times_do() -> None:
    host, load = error_model().host, Load(clients=1, prompt_len=1000, output_len=1001)
    held = _serve(load, prompt_operator_s=1e-3)
    before = _serve(load, arrival_overhead_s=10.0)
    assert held.first_token_log_sigma == pytest.approx(host, rel=0.01)
    assert before.first_token_log_sigma == pytest.approx(host, rel=0.01)
    assert before.per_token_log_sigma == pytest.approx(0.1, rel=0.05)


def test_a_profile_states_what_is_left_of_either_time() -> None:
    load = Load(clients=1, prompt_len=1000, output_len=1001)
    one = _serve(load, residual_log_sigma=0.4)
    two = _serve(load, residual_log_sigma=0.4, per_token_log_sigma=0.2)
    assert one.first_token_log_sigma == two.first_token_log_sigma == pytest.approx(0.5, rel=0.01)
    assert two.per_token_log_sigma == pytest.approx(math.hypot(0.1, 0.2), rel=0.02)
    assert two.per_token_log_sigma < one.per_token_log_sigma


@pytest.mark.parametrize("clients", [1, 7, 40])
def test_every_client_waits_or_runs(clients: int) -> None:
    load = Load(clients=clients, prompt_len=1000, output_len=401, lengths=_SPREAD)
    found = _serve(load)
    assert found.running + found.requests_per_s * found.time_to_first_token_s == pytest.approx(
        clients, rel=0.03
    )
