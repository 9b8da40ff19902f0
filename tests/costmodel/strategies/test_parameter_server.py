"""Parameter servers: closed forms of Li et al. (OSDI 2014)."""

from __future__ import annotations

import pytest

from costmodel.errors import PlanError
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction
from planner import api


@pytest.fixture(scope="module")
def gpt() -> Forecaster:
    return api.forecaster(
        "gpt2",
        hardware="v100-sxm2-32gb",
        framework="pytorch",
        overrides=["n_layer=2", "n_embd=1024", "n_head=16"],
    )


def predict(forecaster: Forecaster, plan: str) -> Prediction:
    return forecaster.forecast(Plan.parse(plan)).prediction


def both_ways_s(forecaster: Forecaster, workers: int, servers: int) -> float:
    """2 W P / (s B): B as the profile's transfers between two ranks have it at that size."""
    plan = Plan.parse(f"dp{workers}.ps")
    size = 4.0 * forecaster.graph(1).n_parameters * workers / servers
    return 2.0 * float(forecaster.collective(plan, "p2p", size, "server").median_s[0])


@pytest.mark.parametrize(("workers", "servers"), [(2, 1), (4, 1), (4, 2), (8, 4)])
def test_synchronous_exposes_what_the_backward_does_not_hide(
    gpt: Forecaster, workers: int, servers: int
) -> None:
    prediction = predict(gpt, f"dp{workers}.ps{servers}")
    alone = predict(gpt, "dp1")
    moved = both_ways_s(gpt, workers, servers)
    exposed = prediction.breakdown_s["dp_comm"]
    assert exposed >= moved - alone.step_time_s, "no more than a step can hide it"
    assert exposed >= 0.5 * moved, "pulls come after the update: nothing hides them"
    assert exposed == pytest.approx(moved, rel=0.25, abs=alone.step_time_s)


def test_grows_with_workers_where_all_reduce_does_not(gpt: Forecaster) -> None:
    def exposed(plan: str) -> float:
        return predict(gpt, plan).breakdown_s["dp_comm"]

    assert exposed("dp8.ps") > 1.8 * exposed("dp4.ps") > 3.0 * exposed("dp2.ps")
    assert exposed("dp8") < 1.5 * exposed("dp2") + 1e-3
    assert exposed("dp8.ps8") < 0.2 * exposed("dp8.ps")


def test_asynchronous_workers_go_at_their_own_pace_until_the_servers_are_full(gpt: Forecaster) -> None:
    free, full = predict(gpt, "dp2.ps-async4"), predict(gpt, "dp8.ps-async")
    own = predict(gpt, "dp2.ps4")
    assert free.step_time_s <= own.step_time_s
    assert full.step_time_s == pytest.approx(both_ways_s(gpt, 8, 1), rel=0.1), "the one server's link"
    assert sum(full.breakdown_s.values()) == pytest.approx(full.step_time_s, rel=1e-3)


def test_state_lies_on_the_servers(gpt: Forecaster) -> None:
    assert predict(gpt, "dp2.ps").memory[0].optimizer == 0


@pytest.mark.parametrize("plan", ["dp1.ps", "dp2.zero1.ps", "dp2.pp2.ps", "dp2.ps.ps-async"])
def test_what_servers_cannot_serve(gpt: Forecaster, plan: str) -> None:
    with pytest.raises(PlanError, match=r"serve whole replicas|exclude each other"):
        predict(gpt, plan)
