"""Sizes: the smallest count that meets the limits is found, and none that does is passed over."""

from __future__ import annotations

import json
import math

import pytest

from costmodel.errors import InfeasibleError, UsageError
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from planner.cli import main
from planner.objectives import Terms, log_sigma, training_time_s
from planner.sizes import parse_duration
from planner.sizing import Goal, Sizing, candidate_counts, size_training
from tests.planner.small import SIZES, small

HARDWARE = "a100-sxm4-80gb"
BATCH = 960
AMOUNT = Terms(tokens=1e10, usd_per_hour=2.0, board_w=400.0)


def replicas(forecaster: Forecaster, n_devices: int, batch: int) -> Prediction:
    """Data parallelism alone: any count that divides the batch."""
    if batch % n_devices:
        raise InfeasibleError(f"{n_devices} does not divide {batch}")
    return forecaster.forecast(Plan(dp=n_devices, micro_batch_size=1, global_batch_size=batch)).prediction


def size(goal: Goal, **changes) -> Sizing:  # type: ignore[no-untyped-def]
    wanted = {
        "terms": {"a": AMOUNT},
        "global_batch_size": BATCH,
        "most_devices": 128,
        "search": replicas,
        **changes,
    }
    return size_training({"a": small()}, goal=goal, **wanted)


def needed_s(count: int, confidence: float = 0.9) -> float:
    """The deadline that a count just meets with a probability."""
    p = replicas(small(), count, BATCH)
    z = {0.5: 0.0, 0.9: 1.2815515655}[confidence]
    return training_time_s(p, AMOUNT) * math.exp(z * log_sigma(p))


@pytest.mark.parametrize("count", [3, 5, 24, 40])
def test_the_smallest_count_that_is_in_time(count: int) -> None:
    found = size(Goal(deadline_s=needed_s(count) * 1.0001))
    assert found.fewest.n_devices == count
    assert found.fewest.p_deadline == pytest.approx(0.9, abs=0.01)
    tighter = size(Goal(deadline_s=needed_s(count) * 0.9999))
    assert tighter.fewest.n_devices > count


def test_less_confidence_needs_no_more_devices() -> None:
    deadline = needed_s(24) * 1.0001
    counts = [size(Goal(deadline_s=deadline, confidence=c)).fewest.n_devices for c in (0.5, 0.9, 0.99)]
    assert counts == sorted(counts)


def test_later_deadlines_need_no_more_devices() -> None:
    counts = [size(Goal(deadline_s=needed_s(16) * factor)).fewest.n_devices for factor in (0.5, 1.01, 2, 8)]
    assert counts == sorted(counts, reverse=True)


def test_without_limits_one_device_is_enough() -> None:
    assert size(Goal()).fewest.n_devices == 1


def test_candidates_add_up() -> None:
    found = size(Goal(deadline_s=needed_s(16) * 1.01, budget_usd=1e9))
    for c in found.candidates:
        if c.prediction is not None:
            assert c.cost_usd == pytest.approx(c.time_s / 3600 * c.n_devices * 2.0)
            assert c.probability == min(c.p_deadline, c.p_budget)
            low, high = c.interval(c.time_s)
            assert low < c.time_s < high
            wide = c.to_dict()["energy_interval_j"]
            assert wide[1] / wide[0] > high / low, "the power model adds its own spread"
    assert found.cheapest.cost_usd <= found.fewest.cost_usd
    json.dumps(found.to_dict())


def test_the_cheapest_of_two_devices() -> None:
    forecasters = {"a": small(), "b": small()}
    terms = {"a": AMOUNT, "b": Terms(tokens=1e10, usd_per_hour=1.0, board_w=400.0)}
    found = size_training(
        forecasters,
        goal=Goal(deadline_s=needed_s(8)),
        terms=terms,
        global_batch_size=BATCH,
        most_devices=32,
        search=replicas,
    )
    assert found.cheapest.hardware == "b"
    assert found.fewest.n_devices == found.cheapest.n_devices


def test_a_budget_that_no_count_keeps_names_the_nearest() -> None:
    cheapest = min(c.cost_usd for c in size(Goal()).candidates)
    with pytest.raises(InfeasibleError, match=r"a budget of [\d.]+ USD") as stop:
        size(Goal(budget_usd=cheapest / 2))
    assert stop.value.exit_code == 3
    budget = float(str(stop.value).split("a budget of ")[1].split(" USD")[0])
    assert size(Goal(budget_usd=budget * 1.001)).fewest.n_devices >= 1


def test_a_deadline_that_no_count_keeps_names_the_nearest() -> None:
    with pytest.raises(InfeasibleError, match=r"a deadline of [\d.e-]+ d") as stop:
        size(Goal(deadline_s=needed_s(64, 0.5) / 2))
    days = float(str(stop.value).split("a deadline of ")[1].split(" d ")[0])
    assert size(Goal(deadline_s=days * 86400 * 1.01)).fewest.n_devices <= 128


def test_a_bound_leaves_out_what_no_plan_can_do() -> None:
    found = size(Goal(deadline_s=needed_s(40) * 1.0001))
    searched = [c for c in found.candidates if c.prediction is not None]
    assert len(searched) < len(found.candidates), "at the datasheet's peak one device is too slow"
    with pytest.raises(InfeasibleError, match="peak rate"):
        size(Goal(deadline_s=1e-3))


def test_counts_to_try() -> None:
    assert candidate_counts(8, 100) == [1, 2, 4, 8, 16, 32, 64]
    assert candidate_counts(1, 5) == [1, 2, 4]
    assert candidate_counts(72, 300) == [1, 2, 4, 8, 16, 32, 64, 72, 144, 288]
    assert candidate_counts(8, 3) == [1, 2]


def test_prices_are_asked_for_where_a_budget_needs_them() -> None:
    with pytest.raises(UsageError, match="--price"):
        size(Goal(budget_usd=1.0), terms={"a": Terms(tokens=1e9)})


@pytest.mark.parametrize("wrong", [{"deadline_s": 0.0}, {"budget_usd": -1.0}, {"confidence": 1.0}])
def test_goals_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Goal(**wrong)


def test_durations() -> None:
    assert [parse_duration(t) for t in ("90s", "2m", "1.5h", "30d", "1w")] == [90, 120, 5400, 2592000, 604800]
    for text in ("", "30", "d", "-1d", "soon", "0h"):
        with pytest.raises(UsageError, match="--deadline"):
            parse_duration(text)


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    tiny = [f"--set={name}={value}" for name, value in SIZES.items()]
    with pytest.raises(SystemExit) as stop:
        main(["size", "gpt2", "-H", HARDWARE, *tiny, *arguments])
    return int(stop.value.code or 0), *capsys.readouterr()


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    train = ("--seq", "64", "--tokens", "1e9", "-B", "4", "--max-gpus", "2")
    code, out, _ = command(capsys, *train, "--deadline", "30d", "--price", f"{HARDWARE}=1", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["fewest"]["n_devices"] == 1
    assert data["fewest"]["cost_usd"] == pytest.approx(data["fewest"]["time_s"] / 3600)
    assert "given" in data["prices"][HARDWARE]
    code, out, _ = command(capsys, *train)
    assert code == 0
    assert "fewest GPUs: 1 x" in out
    code, _, err = command(capsys, *train, "--deadline", "1s")
    assert code == 3
    assert "deadline" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-B", "4"), "--tokens and --samples"),
        (("--tokens", "1e9"), "--global-batch"),
        (("--rate", "1"), "--prompt and --output"),
        (("--tokens", "1e9", "-B", "4", "--deadline", "soon"), "30d or 12h"),
        (("--tokens", "-1", "-B", "4"), "must be positive"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    code, _, err = command(capsys, *arguments)
    assert code == 2
    assert message in err
