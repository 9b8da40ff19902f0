"""Module path -> tensor-parallel style: what a real run applies, and the prediction of exactly that.

`executable_styles` finds the styles; `shard(..., styles=...)` prices them. Both speak the same rules
(`costmodel.sharding.executable`), so that predicted and real collectives agree in kind and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from costmodel.errors import InfeasibleError, PlanError
from costmodel.graph.model_graph import ModelGraph, Segment
from costmodel.sharding.block import Block, read_block
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.cost import ShardingCost, reference_cost
from costmodel.sharding.executable import module_of, style_of
from costmodel.sharding.placements import REPLICATED, Shard
from costmodel.sharding.solver import Assignment, solve_segment

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LOCAL_RULES", "executable_styles", "instances_of", "segment_styles"]

LOCAL_RULES = Rules(insist=True, merge_gradients=False, local_modules=True)


def executable_styles(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    graph: ModelGraph,
    *,
    tp: int,
    cost: ShardingCost | None = None,
) -> dict[str, str]:
    """Styles that the module's own code runs with on tp ranks, for every instance of every block.

    The best assignment that styled modules can carry out is solved per block; then the forward is tried on
    meta tensors with local shapes, group by group (modules that hand split values to each other), and groups
    whose code pins the whole size are left whole. Raises PlanError where nothing is left to split.
    """
    from costmodel.sharding.trial import runs_locally, tied_modules

    barred = tied_modules(module)
    found: dict[str, str] = {}
    for number, segment in enumerate(graph.segments):
        block = read_block(segment, is_first=number == 0)
        refused: set[str] = set()
        while True:
            styles, groups = _solve(block, tp, cost, barred | refused)
            failing = {
                path
                for group in groups
                for path in group
                if not runs_locally(
                    module, args, kwargs, instances_of(segment, {p: styles[p] for p in group}), tp
                )
            }
            if not failing or failing <= refused:
                break
            refused |= failing
        found.update(instances_of(segment, styles))
    if not found:
        raise PlanError(
            f"tp({tp}): no module of the model can be split with its own code as it is (sizes that do not "
            f"divide by {tp}, or code that pins whole sizes); choose another tp or kind of parallelism"
        )
    return found


def _solve(
    block: Block, tp: int, cost: ShardingCost | None, barred: set[str]
) -> tuple[dict[str, str], list[set[str]]]:
    names = [t.name for t in block.segment.parameters if module_of(t.name) in barred]
    rules = replace(LOCAL_RULES, parameters=dict.fromkeys(names, REPLICATED.forward))
    try:
        assignment = solve_segment(
            block,
            (Axis(name="tp", n=tp),),
            rules=rules,
            cost=cost or reference_cost(),
            boundary=(REPLICATED,),
        )
    except InfeasibleError:
        return {}, []
    styles = segment_styles(block, assignment)
    return styles, _groups(block, assignment, styles)


def segment_styles(block: Block, assignment: Assignment) -> dict[str, str]:
    """Styles of one instance's modules under an assignment on one axis."""
    styles: dict[str, str] = {}
    for position, choice in enumerate(assignment.strategies):
        named = style_of(block, position, choice[0])
        if named is not None and block.forward[position].kind != "host":
            styles[named[0]] = named[1]
    gathered = {
        block.forward[change.after].module
        for change in assignment.conversions
        if change.transfer.op == "all_gather" and not change.backward and change.after is not None
    }
    for position, choice in enumerate(assignment.strategies):
        named = style_of(block, position, choice[0])
        if named and named[1].startswith("colwise") and block.forward[position].module in gathered:
            styles[named[0]] = "colwise_gather"
    return styles


def _groups(block: Block, assignment: Assignment, styles: Mapping[str, str]) -> list[set[str]]:
    """Styled modules joined by values that pass between them split."""
    parent = list(range(len(block.forward)))

    def root(p: int) -> int:
        while parent[p] != p:
            p = parent[p]
        return p

    for value in block.values:
        if value.producer is None or value.of_parameter:
            continue
        given = assignment.strategies[value.producer][0].outputs[value.slot].forward
        for user, slot in value.users:
            taken = assignment.strategies[user][0].inputs[slot].forward
            if isinstance(given, Shard) and isinstance(taken, Shard):
                parent[root(user)] = root(value.producer)
    groups: dict[int, set[str]] = {}
    for position, choice in enumerate(assignment.strategies):
        named = style_of(block, position, choice[0])
        if named is not None and block.forward[position].kind != "host" and named[0] in styles:
            groups.setdefault(root(position), set()).add(named[0])
    return list(groups.values())


def instances_of(segment: Segment, styles: Mapping[str, str]) -> dict[str, str]:
    """The styles of the first instance's modules, repeated for every instance of the segment."""
    found = dict(styles)
    if segment.count > 1 and len(segment.modules) == segment.count:
        for path, style in styles.items():
            own = next(
                ((m, i) for m, i in _parts(segment.modules) if path == m or path.startswith(m + ".")), None
            )
            if own is not None:
                name, place = own
                others = (modules.split("+")[place] for modules in segment.modules)
                found.update({other + path[len(name) :]: style for other in others})
    return found


def _parts(modules: Sequence[str]) -> list[tuple[str, int]]:
    """Module paths of instances that may be several modules in a row ('2+3'), with their place in it."""
    return [(path, place) for unit in modules for place, path in enumerate(unit.split("+"))]
