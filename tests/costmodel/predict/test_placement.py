"""Groups of ranks on nodes, against an enumeration of the ranks themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from costmodel.plan import Plan
from costmodel.predict.placement import axis_groups, crossings

powers = st.sampled_from([1, 2, 4, 8])


@given(powers, powers, powers, st.sampled_from([2, 4, 8]))
def test_groups_equal_an_enumeration(tp: int, dp: int, pp: int, per_node: int) -> None:
    plan = Plan(tp=tp, dp=dp, pp=pp)
    groups = axis_groups(plan, per_node)
    per_node = min(per_node, plan.world_size)
    tp_ranks = range(tp)
    dp_ranks = range(0, tp * dp, tp)
    for name, ranks in (("tp", tp_ranks), ("dp", dp_ranks)):
        assert groups[name].n_ranks == len(ranks)
        assert groups[name].n_nodes == len({r // per_node for r in ranks})
    if pp > 1:
        stages = [{rank // per_node for rank in (at * tp * dp, (at + 1) * tp * dp)} for at in range(pp - 1)]
        assert groups["pp"].n_nodes == max(len(nodes) for nodes in stages)


@given(powers, powers, st.integers(1, 6), st.integers(1, 8))
def test_neighbours_of_every_pipeline_count(tp: int, dp: int, pp: int, per_node: int) -> None:
    plan = Plan(tp=tp, dp=dp, pp=pp, flags=("pp-inside",)) if pp > 1 else Plan(tp=tp, dp=dp)
    group = axis_groups(plan, per_node)["pp"]
    per_node = min(per_node, plan.world_size)
    hops = [
        {rank // per_node, (rank + tp) // per_node}
        for replica in range(dp)
        for stage in range(pp - 1)
        for rank in range((replica * pp + stage) * tp, (replica * pp + stage + 1) * tp)
    ]
    assert group.n_ranks == min(pp, 2)
    assert group.n_nodes == max((len(nodes) for nodes in hops), default=1)


@given(powers, powers, powers, st.sampled_from([4, 8]))
def test_experts_whole_on_a_rank_lie_on_neighbours(tp: int, dp: int, ep: int, per_node: int) -> None:
    """Megatron-Core's groups with expert-tensor-parallel-size 1: ep consecutive ranks, the same experts again
    every ep ranks."""
    if ep % tp or (dp * tp) % ep or ep == 1:
        return
    plan = Plan(tp=tp, dp=dp, ep=ep, expert_tp=1)
    groups = axis_groups(plan, per_node)
    per_node = min(per_node, plan.world_size)
    assert groups["ep"].n_ranks == ep
    assert groups["ep"].n_nodes == len({rank // per_node for rank in range(ep)})
    same = range(0, tp * dp, ep)
    assert groups["expert_dp"].n_ranks == len(same)
    assert groups["expert_dp"].n_nodes == len({rank // per_node for rank in same})


@given(powers, st.integers(1, 6), st.integers(1, 8))
def test_crossings_of_one_replica(tp: int, pp: int, per_node: int) -> None:
    plan = Plan(tp=tp, pp=pp)
    hops = [
        {(rank // per_node, (rank + tp) // per_node) for rank in range(stage * tp, (stage + 1) * tp)}
        for stage in range(pp - 1)
    ]
    assert crossings(plan, per_node) == sum(any(a != b for a, b in hop) for hop in hops)
    assert (crossings(plan, per_node) > 0) == (pp > 1 and axis_groups(plan, per_node)["pp"].n_nodes > 1)
