"""Replicas on unlike devices: uniform ones are the plain forecast, slower ones take less of the batch."""

from __future__ import annotations

import pytest

from costmodel.errors import InfeasibleError, PlanError
from costmodel.plan import Plan
from costmodel.predict.mixed import best_shares
from costmodel.predict.pools import Interlink, Pool
from tests.costmodel.predict.test_staged import PLAIN, forecaster, pool


def samples_each(found: object, name: str) -> float:
    share = next(s for s in found.shares if s.pool == name)  # type: ignore[attr-defined]
    return float(share.samples / share.n_replicas)


@pytest.mark.parametrize("n", [1, 4])
def test_a_uniform_cluster_is_the_plain_forecast(n: int) -> None:
    found = best_shares([pool(1, n)], PLAIN, global_batch_size=16, micro_batch_size=2)
    plain = forecaster().forecast(Plan.parse(f"dp{n}.mbs2.gbs16")).prediction
    assert found.step_time_s == pytest.approx(plain.step_time_s)
    assert found.breakdown_s == pytest.approx(plain.breakdown_s)


def test_a_slower_group_gets_a_smaller_share() -> None:
    found = best_shares([pool(1, 2), pool(1, 2, "t4")], PLAIN, global_batch_size=64, micro_batch_size=1)
    assert sum(s.samples for s in found.shares) == 64
    fast, slow = samples_each(found, "a100-sxm4-80gb"), samples_each(found, "t4")
    speeds = [s.micro_batch_s for s in found.shares]
    assert fast > slow > 0
    assert fast / slow == pytest.approx(speeds[1] / speeds[0], rel=0.3), "all end together"
    assert sum(found.breakdown_s.values()) == pytest.approx(found.step_time_s, rel=1e-3)
    longest = max(n * s.micro_batch_s for s in found.shares for n, _ in s.micro_batches)
    assert longest < found.step_time_s < longest + found.reduction_s + 0.2 * longest


def test_even_shares_would_be_slower() -> None:
    """The fast group alone at the even share leaves the slow one behind."""
    mixed = best_shares([pool(1, 2), pool(1, 2, "t4")], PLAIN, global_batch_size=64, micro_batch_size=1)
    slow = best_shares([pool(1, 4, "t4")], PLAIN, global_batch_size=64, micro_batch_size=1)
    assert mixed.step_time_s < slow.step_time_s


def test_faster_links_are_never_worse() -> None:
    pools = [pool(1, 2), pool(1, 2, "t4")]
    times = [
        best_shares(
            pools,
            PLAIN,
            global_batch_size=32,
            micro_batch_size=2,
            links={frozenset((0, 1)): Interlink(bytes_per_s=rate)},
        ).step_time_s
        for rate in (1e11, 1e9, 1e8)
    ]
    assert times == sorted(times)
    assert times[0] < times[-1]


def test_a_group_that_cannot_hold_the_model_stands_aside() -> None:
    small = Pool(
        name="small",
        forecaster=forecaster("t4"),
        n_nodes=1,
        devices_per_node=2,
        memory_limit_bytes=1e6,
    )
    found = best_shares([pool(1, 2), small], PLAIN, global_batch_size=16, micro_batch_size=2)
    assert [s.samples for s in found.shares] == [16, 0]
    with pytest.raises(InfeasibleError, match="no device holds a replica"):
        best_shares([small], PLAIN, global_batch_size=16, micro_batch_size=2)
    with pytest.raises(PlanError, match="uneven replicas"):
        best_shares([small], Plan.parse("zero1"), global_batch_size=16)
