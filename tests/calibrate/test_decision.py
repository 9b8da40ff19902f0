"""Conditioning a decision on measurements, against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.decision import Decision, Restated, chances_best
from calibrate.wanted import Item, Wanted, item_name, read_wanted
from costmodel.errors import InputFileError

NOTHING = ((0.0, 0.0), (0.0, 0.0))


def an_item(m: int, *weights: float, sigma: float = 0.2, together: str = "") -> Item:
    return Item(
        kind="gemm",
        variant="nt",
        dtype="fp32",
        dims={"m": m, "n": 64, "k": 64},
        predicted_s=1e-3,
        log_sigma=sigma,
        weights=weights,
        together=together or f"fit {m}",
    )


def a_choice(*items: Item, machine: float = 0.0, gap: float = 0.02) -> Wanted:
    """Two contenders `gap` apart."""
    return Wanted(
        contenders=("dp2", "tp2"),
        step_times_s=(1.0, math.exp(gap)),
        rest=NOTHING,
        shared=0.5,
        machine_log_sigma=machine,
        items=items,
    )


def test_before_anything_is_measured() -> None:
    decision = Decision(a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.4)))
    standing = decision.standing()
    assert (standing.winner, standing.challenger) == (0, 1)
    sigma = 0.2 * math.hypot(0.5, 0.4)
    assert decision.variance(0, 1) == pytest.approx(sigma**2)
    assert standing.probability == pytest.approx(0.5 * math.erfc(-0.02 / sigma / math.sqrt(2.0)))


def test_what_was_measured_is_known_and_what_errs_with_it_moves() -> None:
    decision = Decision(a_choice(an_item(8, 0.5, 0.0, together="one"), an_item(16, 0.0, 0.4, together="one")))
    decision.observe(0, 1e-3 * math.exp(0.3), noise_log_sigma=1e-6)
    # weight times ratio; the other item follows by its correlation of one half
    assert decision.log_times()[0] == pytest.approx(0.15, abs=1e-6)
    assert decision.log_times()[1] == pytest.approx(0.02 + 0.4 * 0.15, abs=1e-6)
    assert decision.variance(0, 1) == pytest.approx((0.2 * 0.4) ** 2 * (1 - 0.25), rel=1e-4)
    assert decision.standing().winner == 1


@given(st.floats(0.2, 5.0), st.lists(st.floats(0.05, 0.9), min_size=2, max_size=6))
def test_a_slower_machine_decides_nothing(slower: float, shares: list[float]) -> None:
    """All of both steps' items found slower by one factor: both are, and the order stays as sure."""
    a = [s / sum(shares) for s in shares]
    items = [an_item(8 * (i + 1), w, v) for i, (w, v) in enumerate(zip(a, reversed(a), strict=True))]
    decision = Decision(a_choice(*items, machine=0.3))
    for number in range(len(items)):
        decision.observe(number, 1e-3 * slower, noise_log_sigma=1e-6)
    assert decision.log_times()[1] - decision.log_times()[0] == pytest.approx(0.02, abs=1e-4)
    assert decision.standing().probability > 0.999


def test_the_machine_s_speed_follows_from_one_item() -> None:
    items = an_item(8, 0.5, 0.0, sigma=0.01), an_item(16, 0.5, 1.0, sigma=0.01)
    decision = Decision(a_choice(*items, machine=1.0))
    decision.observe(0, 2e-3, noise_log_sigma=1e-6)
    assert decision.log_times() == pytest.approx([math.log(2.0), 0.02 + math.log(2.0)], abs=1e-3)


def test_gains_are_the_variance_that_goes() -> None:
    items = an_item(8, 0.6, 0.0), an_item(16, 0.0, 0.1), an_item(32, 0.4, 0.4)
    decision = Decision(a_choice(*items))
    gains = decision.gains(np.ones(3), np.full(3, 1e-6))
    assert np.argmax(gains) == 0
    assert gains[2] == pytest.approx(0.0, abs=1e-12)  # both do as much of it
    before = decision.variance(0, 1)
    decision.observe(0, 1e-3, noise_log_sigma=1e-6)
    assert before - decision.variance(0, 1) == pytest.approx(gains[0], rel=1e-6)
    assert decision.gains(np.ones(3), np.full(3, 1e-6))[0] == pytest.approx(0.0, abs=1e-9)


def test_twice_as_long_tells_half_as_much_per_second() -> None:
    decision = Decision(a_choice(an_item(8, 0.6, 0.0), an_item(16, 0.6, 0.0)))
    gains = decision.gains(np.array([1.0, 2.0]), np.full(2, 0.05))
    assert gains[0] == pytest.approx(2.0 * gains[1])


def test_a_zero_says_nothing() -> None:
    decision = Decision(a_choice(replace(an_item(8, 0.5, 0.0), predicted_s=0.0), an_item(16, 0.0, 0.4)))
    before = decision.standing()
    decision.observe(0, 1e-3, noise_log_sigma=0.01)
    decision.observe(1, 0.0, noise_log_sigma=0.01)
    assert decision.standing() == before


def test_the_list_reads_back(tmp_path: Path) -> None:
    wanted = a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.4))
    path = tmp_path / "w.json"
    path.write_text(wanted.to_json())
    assert read_wanted(path) == wanted
    assert len({item_name(i) for i in wanted.items}) == 2
    for broken in ("{}", "no", json.dumps({**json.loads(wanted.to_json()), "format": 2})):
        path.write_text(broken)
        with pytest.raises(InputFileError, match="not a list of wanted"):
            read_wanted(path)


def test_lists_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        replace(a_choice(), contenders=("dp2",))
    with pytest.raises(ValueError, match="weights per item"):
        a_choice(an_item(8, 1.0))
    with pytest.raises(ValueError, match="correlation"):
        replace(a_choice(), shared=1.0)
    with pytest.raises(ValueError, match="finite"):
        an_item(8, math.nan, 0.0)


def test_a_winner_called_sure_is_one_as_often_as_said() -> None:
    """Synthetic machines drawn from the prior, measured in order of gain until sure: winners are right in at
    least 95 % of the cases less sampling error, and few of the items were needed."""
    rng = np.random.default_rng(5)
    right = measured = 0
    n_machines, n_items = 300, 12
    for _ in range(n_machines):
        shares = rng.dirichlet(np.ones(n_items), size=2)
        items = [
            an_item(8 * (i + 1), *shares[:, i], sigma=0.2, together=f"fit {i % 3}") for i in range(n_items)
        ]
        wanted = a_choice(*items, machine=0.25, gap=float(rng.normal(0.0, 0.05)))
        speed = 0.25 * rng.standard_normal()
        fits = math.sqrt(0.5) * 0.2 * rng.standard_normal(3)
        truth = speed + fits[np.arange(n_items) % 3] + math.sqrt(0.5) * 0.2 * rng.standard_normal(n_items)
        decision = Decision(wanted)
        left = list(range(n_items))
        while decision.standing().probability < 0.95 and left:
            gains = decision.gains(np.ones(n_items), np.full(n_items, 0.02))
            number = max(left, key=lambda i: gains[i])
            left.remove(number)
            noise = 0.02 * rng.standard_normal()
            decision.observe(number, 1e-3 * math.exp(truth[number] + noise), noise_log_sigma=0.02)
        measured += n_items - len(left)
        steps = np.log(wanted.step_times_s) + shares @ truth + (1.0 - shares.sum(1)) * speed
        right += int(decision.standing().winner == np.argmin(steps))
    assert right / n_machines > 0.93
    assert measured < 0.6 * n_machines * n_items


def test_a_winner_of_several_is_less_sure_than_each_of_its_pairs() -> None:
    items = tuple(
        replace(an_item(8 * (k + 1)), weights=tuple(0.3 * (j == k) for j in range(4))) for k in range(4)
    )
    wanted = Wanted(
        contenders=("a", "b", "c", "d"),
        step_times_s=(1.0, 1.14, 1.14, 1.14),
        rest=((0.0,) * 4,) * 4,
        shared=0.0,
        machine_log_sigma=0.0,
        items=items,
    )
    decision = Decision(wanted)
    pair = 0.5 * math.erfc(-math.log(1.14) / math.sqrt(2.0 * decision.variance(0, 1)))
    assert pair > 0.93
    assert 3.0 * pair - 2.0 < decision.standing().probability < pair - 0.03


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=5), st.integers(0, 10**6))
def test_chances_are_those_of_being_the_least(log_times: list[float], seed: int) -> None:
    n = len(log_times)
    loadings = 0.1 * np.random.default_rng(seed).standard_normal((n, 4))
    found = chances_best(np.array(log_times), loadings @ loadings.T)
    assert found.sum() == pytest.approx(1.0)
    assert np.all(found >= 0.0)


def test_contenders_that_are_alike_share_one_chance() -> None:
    """However rounding has it: neither which of them is a little faster nor how many there are matters."""
    sigma = 0.1 * np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    times = np.array([0.1, 0.0, 1e-13, -1e-13])
    alone = chances_best(times[:2], (sigma @ sigma.T)[:2, :2])
    together = chances_best(times, sigma @ sigma.T)
    assert together == pytest.approx([alone[0], alone[1], alone[1], alone[1]])
    assert chances_best(times[1:], (sigma @ sigma.T)[1:, 1:]) == pytest.approx(1.0)


def test_what_no_measurement_tells_apart_leaves_the_others_to_measure() -> None:
    """The nearest challenger runs the very same items; a third one's would still tell."""
    wanted = Wanted(
        contenders=("a", "b", "c"),
        step_times_s=(1.0, 1.001, 1.05),
        rest=((1e-3, 0.0, 0.0), (0.0, 1e-3, 0.0), (0.0, 0.0, 1e-3)),
        shared=0.5,
        machine_log_sigma=0.0,
        items=(replace(an_item(8), weights=(0.5, 0.5, 0.0)), replace(an_item(16), weights=(0.0, 0.0, 0.5))),
    )
    decision = Decision(wanted)
    assert decision.standing().challenger == 1
    assert np.all(decision.gains(np.ones(2), np.full(2, 0.05)) > 0.0)


def test_what_a_fit_says_takes_the_place_of_sums_and_moves_on() -> None:
    decision = Decision(a_choice(an_item(8, 0.5, 0.0), an_item(16, 0.0, 0.4), gap=0.1))
    decision.observe(0, 1e-3, noise_log_sigma=0.05)
    said = Restated(step_times_s=(2.0, 2.02), covariance=((0.02, 0.005), (0.005, 0.02)))
    decision.restate(said)
    assert decision.log_times() == pytest.approx(np.log(said.step_times_s))
    assert decision.covariance() == pytest.approx(np.array(said.covariance))
    assert decision.standing().probability == pytest.approx(said.chances()[0])
    decision.observe(1, 1e-3 * math.exp(0.5), noise_log_sigma=1e-6)
    assert decision.log_times() == pytest.approx([math.log(2.0), math.log(2.02) + 0.4 * 0.5], abs=1e-6)
    assert decision.variance(0, 1) < 0.03
    decision.restate(said)  # not on top of what was said before
    assert decision.log_times() == pytest.approx(np.log(said.step_times_s))
