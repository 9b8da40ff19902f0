"""Units of stages: what data parallelism sends for experts, of which each rank of `ep` has others."""

from __future__ import annotations

from functools import lru_cache

import pytest

from costmodel.plan import Plan
from costmodel.predict import Forecaster
from costmodel.predict.units import expand, unit_costs
from planner import api

SIZES = ["num_hidden_layers=2", "hidden_size=1024", "intermediate_size=4096", "vocab_size=1024"]
ETHERNET_BYTES_PER_S = 12.5e9
"""One interface of 100 Gbit/s a node."""


@lru_cache(maxsize=2)
def mixture(link: str) -> Forecaster:
    return api.forecaster(
        "mixtral-8x7b",
        hardware=f"h100-sxm5-80gb{link}",
        framework="megatron-core",
        seq_len=128,
        overrides=SIZES,
    )


def sent(plan: str, link: str = "") -> tuple[float, float, int]:
    """(seconds of reducing gradients, of gathering parameters, elements of a rank's experts)."""
    made, parsed = mixture(link), Plan.parse(plan)
    units = expand(made, parsed)
    costs = unit_costs(made, parsed, units, utilisation=0.0, waiting=0.0)
    experts = sum(sum(unit.held(experts=True)[0]) for unit in units)
    return sum(c.reduce_s for c in costs), sum(c.gather_s for c in costs), experts


@pytest.mark.parametrize("words", ["", ".zero1", ".zero3"])
def test_experts_that_one_rank_has_are_not_sent(words: str) -> None:
    reduce_s, gather_s, experts = sent(f"dp8.ep8{words}")
    whole_s, all_s, none = sent(f"dp8{words}")
    others = sum(u.stored_elements for u in expand(mixture(""), Plan.parse("dp8.ep8"))) - experts
    assert none == 0
    assert others < experts
    # a rank's experts are an eighth of all; of what is sent without expert parallelism they are nine tenths
    assert reduce_s < 0.3 * whole_s
    assert gather_s <= 0.3 * all_s


@pytest.mark.parametrize(("words", "passes"), [("", 2), (".zero1", 1), (".zero3", 1)])
def test_each_rank_of_a_node_sends_its_own_experts_to_the_other_nodes(words: str, passes: int) -> None:
    link = ":ethernet-1x100g"
    reduce_s, gather_s, experts = sent(f"dp32.ep8{words}", link)
    # four nodes, eight ranks on each: every rank passes three quarters of its experts over the one interface
    least_s = 8 * 0.75 * passes * 4.0 * experts / ETHERNET_BYTES_PER_S
    assert reduce_s > least_s
    if words:
        assert gather_s > least_s / 2  # in half precision
    whole_s, _, _ = sent(f"dp32{words}", link)
    assert reduce_s == pytest.approx(whole_s, rel=0.3)  # eight times an eighth


def test_replicas_of_sharding_groups_share_experts_too() -> None:
    link = ":ethernet-1x100g"
    reduce_s, gather_s, experts = sent("dp32.ep8.zero3.hsdp8", link)
    assert reduce_s > 8 * 2 * 0.75 * 4.0 * experts / ETHERNET_BYTES_PER_S
    assert gather_s < sent("dp32.ep8.zero3", link)[1]  # inside a node


@pytest.mark.parametrize("words", ["", "sp."])
@pytest.mark.parametrize("degrees", ["tp8.ep8", "dp2.tp4.ep8", "dp2.tp2.cp2.ep8", "tp8.ep2", "dp8.ep8"])
def test_all_ranks_together_hold_the_whole_model(degrees: str, words: str) -> None:
    # `ep` over tensor-parallel ranks: these share what they hold of experts, which is not divided twice
    made, plan = mixture(""), Plan.parse(f"{degrees}.{words}mbs1")
    held = sum(unit.stored_elements for unit in expand(made, plan))
    assert plan.world_size * held >= made.graph(1).n_parameters
    flop = sum(
        op.flop
        for segment in made.sharded(plan).segments
        for op in segment.local.operators * segment.count
        if op.kind == "grouped_gemm"
    )
    whole = sum(
        op.flop
        for segment in made.graph(1).segments
        for op in segment.operators * segment.count
        if op.kind == "grouped_gemm"
    )
    assert flop * plan.tp * plan.cp == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize(
    ("plan", "among"), [("dp16.zero2", 16), ("dp16.ep8.zero2", 2), ("dp16.ep8.zero3.hsdp8", 1)]
)
def test_the_host_updates_a_ranks_share_of_its_experts(plan: str, among: int) -> None:
    made, parsed = mixture(""), Plan.parse(plan)
    costs = unit_costs(made, parsed, expand(made, parsed), utilisation=0.0, waiting=0.0)
    whole = max(costs, key=lambda unit: unit.parameter_bytes)  # a layer, nearly all of it experts
    assert among <= whole.shared_by < 1.1 * among + 0.2
