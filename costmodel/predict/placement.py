"""Where each axis of a plan lies on the machine: tensor parallel innermost, pipeline outermost.

Rank = ((pp_index * dp + dp_index) * cp + cp_index) * tp + tp_index, as Megatron-LM orders its groups
("tp-cp-ep-dp-pp", arXiv 2104.04473 section 3.1 takeaway 1: tensor parallelism inside a node). With the word
pp-inside the pipeline lies inside data parallelism: ((dp_index * pp + pp_index) * cp + cp_index) * tp +
tp_index.
"""

from __future__ import annotations

from functools import lru_cache

from costmodel.hardware.kinds import CollectiveGroup
from costmodel.plan import Plan
from costmodel.strategies.placing import pipeline_inside
from costmodel.strategies.splitting import mesh_of

__all__ = ["axis_group", "axis_groups", "crosses_node", "crossings"]


@lru_cache(maxsize=4096)
def axis_group(degree: int, stride: int, ranks_per_node: int) -> CollectiveGroup:
    """The group of `degree` ranks that are `stride` apart, on nodes of `ranks_per_node`.

    Ranks of the group on one node: the largest divisor of `degree` that fits `ranks_per_node / stride`.
    The node's other ranks form groups of the same kind that share its network interfaces.
    """
    room = max(1, ranks_per_node // stride)
    local = max(d for d in range(1, min(degree, room) + 1) if degree % d == 0)
    n_nodes = degree // local
    sharing = max(1, ranks_per_node // local) if n_nodes > 1 else 1
    return CollectiveGroup(n_ranks=degree, n_nodes=n_nodes, nic_sharing=sharing)


def axis_groups(plan: Plan, ranks_per_node: int) -> dict[str, CollectiveGroup]:
    """The group of every axis: tp, cp, ep, dp, dp_shard, dp_replicate, and pp (the pair of neighbours that
    sets a pipeline's pace; pp_near: one on one node).

    expert_dp, expert_dp_shard and expert_dp_replicate: of the ranks in dp, dp_shard and dp_replicate those
    with the same experts, one in ep (arXiv 2201.05596, section 4.1.3).
    """
    per_node = min(ranks_per_node, plan.world_size)
    shard = plan.dp_shard or plan.dp
    inner = plan.tp * plan.cp
    side, layers = mesh_of(plan)
    inside = pipeline_inside(plan)
    depth = plan.pp if inside else 1
    apart = plan.expert_width * plan.ep * depth  # ranks that hold the same experts
    copies, among = (max(1, n * plan.cp // plan.experts_over) for n in (plan.dp, shard))
    return {
        "mesh_row": axis_group(side, 1, per_node),
        "mesh_column": axis_group(side, side, per_node),
        "mesh_depth": axis_group(side, side * side, per_node),
        "mesh_layer": axis_group(layers, side * side, per_node),
        "tp": axis_group(plan.tp, 1, per_node),
        "cp": axis_group(plan.cp, plan.tp, per_node),
        "ep": axis_group(plan.ep, plan.expert_width, per_node),
        "dp": _replicas(plan, plan.dp, depth, per_node),
        "dp_shard": _replicas(plan, shard, depth, per_node),
        "dp_replicate": axis_group(plan.dp // shard, inner * shard * depth, per_node),
        "expert_dp": axis_group(copies, apart, per_node),
        "expert_dp_shard": axis_group(among, apart, per_node),
        "expert_dp_replicate": axis_group(max(1, copies // among), apart * among, per_node),
        # a worker and a server, on another node where there are several
        "server": CollectiveGroup(n_ranks=2, n_nodes=2 if plan.world_size > ranks_per_node else 1),
        # replicas of stages that lie at both ends of a pipeline (Chimera): on one node where all ranks are
        "copies": _copies(plan, per_node, ranks_per_node),
        "pp": _neighbours(plan.pp, inner * (1 if inside else plan.dp), per_node),
        "pp_near": CollectiveGroup(n_ranks=min(plan.pp, 2), n_nodes=1),
    }


def _neighbours(depth: int, stride: int, per_node: int) -> CollectiveGroup:
    """Two stages of `depth` that follow each other, `stride` ranks apart.

    Across nodes as soon as a pipeline does not fit one, since the stages at a node's edge set its pace; they
    alone use its interfaces. Pipelines shorter than a node lie within it where they divide it.
    """
    if depth == 1 or per_node % (depth * stride) == 0:
        return CollectiveGroup(n_ranks=min(depth, 2), n_nodes=1)
    return CollectiveGroup(n_ranks=2, n_nodes=2, nic_sharing=min(stride, per_node))


def crossings(plan: Plan, ranks_per_node: int) -> int:
    """Of the `pp` - 1 hops of one replica of its own (dp1) those that leave a node."""
    stage = plan.tp * plan.cp
    ranks = range(stage)
    return sum(
        any((at + rank) // ranks_per_node != (at + stage + rank) // ranks_per_node for rank in ranks)
        for at in range(0, (plan.pp - 1) * stage, stage)
    )


def _replicas(plan: Plan, degree: int, depth: int, per_node: int) -> CollectiveGroup:
    """`degree` replicas and their context-parallel ranks, which hold the same parameters; `depth` stages lie
    between two replicas."""
    if depth == 1:
        return axis_group(degree * plan.cp, plan.tp, per_node)
    near = axis_group(plan.cp, plan.tp, per_node)
    far = axis_group(degree, plan.tp * plan.cp * depth, per_node)
    local = plan.cp // near.n_nodes * (degree // far.n_nodes)
    n_ranks = degree * plan.cp
    n_nodes = n_ranks // local
    sharing = max(1, per_node // local) if n_nodes > 1 else 1
    return CollectiveGroup(n_ranks=n_ranks, n_nodes=n_nodes, nic_sharing=sharing)


def _copies(plan: Plan, per_node: int, ranks_per_node: int) -> CollectiveGroup:
    dp = axis_group(plan.dp * plan.cp, plan.tp, per_node)
    if plan.world_size <= ranks_per_node:
        return CollectiveGroup(n_ranks=2 * dp.n_ranks, n_nodes=1, nic_sharing=1)
    sharing = max(1, ranks_per_node * dp.n_nodes // dp.n_ranks)
    return CollectiveGroup(n_ranks=2 * dp.n_ranks, n_nodes=2 * dp.n_nodes, nic_sharing=sharing)


def crosses_node(group: CollectiveGroup) -> bool:
    """Whether the group spans more than one node."""
    return group.n_nodes > 1
