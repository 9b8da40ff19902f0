"""Other ways to split a model over tensor-parallel ranks than Megatron-LM's.

tp2d, tp25d2, tp3d   on a mesh: 2-D, 2.5-D (of that depth) and 3-D (`costmodel.sharding.mesh`)
splitnet4            block-diagonal weights in 4 branches (`costmodel.models.splitnet`); with tp4 a branch on
                     each rank
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from costmodel.errors import PlanError
from costmodel.sharding.branches import branch_split
from costmodel.sharding.mesh import mesh_split
from costmodel.sharding.tensor_parallel_nd import mesh_side
from costmodel.strategies.registry import STRATEGIES, Strategy, number_of, word_of

if TYPE_CHECKING:
    from costmodel.graph.model_graph import ModelGraph
    from costmodel.plan import Plan
    from costmodel.sharding import ShardedGraph

__all__ = ["branches_of", "mesh_of", "split_otherwise", "splitting_words"]

_MESH, _MODEL = "mesh", "model"
_SCHEMES = {"tp2d": "2d", "tp25d": "2.5d", "tp3d": "3d"}
_ABOUT = {
    "tp2d": (_MESH, "tensor parallelism on a square mesh (SUMMA)"),
    "tp25d": (_MESH, "tensor parallelism on a square mesh of several layers"),
    "tp3d": (_MESH, "tensor parallelism on a cube"),
    "splitnet": (_MODEL, "block-diagonal weights: branches that do not communicate"),
}
for _name, (_family, _about) in _ABOUT.items():
    _numbered = _name in ("tp25d", "splitnet")
    STRATEGIES.register(_name)(Strategy(name=_name, family=_family, about=_about, numbered=_numbered))


def splitting_words(plan: Plan) -> tuple[str, ...]:
    """The words that change how the graph is split."""
    return tuple(flag for flag in plan.flags if flag.startswith(tuple(_ABOUT)))


def branches_of(plan: Plan) -> int:
    """Branches that the plan splits the model's blocks into; 0 = none. PlanError without a number."""
    if word_of(plan, _MODEL) is None:
        return 0
    groups = number_of(plan, "splitnet", 0)
    if groups < 2:
        raise PlanError(f"plan {plan}: splitnet needs a number of branches, for example splitnet4")
    return groups


def split_otherwise(graph: ModelGraph, plan: Plan) -> ShardedGraph | None:
    """The graph split as the plan's words say; None where they say nothing about it.

    Raises PlanError where the degree is no such mesh, or axes are combined that are not modelled.
    """
    word = word_of(plan, _MESH)
    groups = branches_of(plan)
    if word is None and (not groups or plan.tp != groups):
        return None
    if plan.cp > 1 or plan.ep > 1 or plan.sequence_parallel or (word and groups):
        raise PlanError(
            f"plan {plan}: {word or 'splitnet'} is modelled with dp and pp, not with cp, ep, sp or another "
            "split of products"
        )
    if word is None:
        return branch_split(graph, groups)
    return mesh_split(graph, _SCHEMES[word], plan.tp, depth=_depth(plan, word))


def _depth(plan: Plan, word: str) -> int:
    return number_of(plan, word, 2) if word == "tp25d" else 1


def mesh_of(plan: Plan) -> tuple[int, int]:
    """(side, layers) of the plan's mesh; (1, 1) where it has none. PlanError where tp is no such mesh."""
    word = word_of(plan, _MESH)
    if word is None:
        return 1, 1
    depth = _depth(plan, word)
    return mesh_side(_SCHEMES[word], plan.tp, depth=depth), depth
