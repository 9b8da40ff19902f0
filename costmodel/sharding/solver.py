"""The best assignment of one segment on a mesh (FlexFlow's SOAP, HyPar and Alpa's intra-operator pass).

Each forward operator takes one strategy per mesh axis. The objective is the time of the local operators
(forward and the backward that belongs to it) plus every collective that the layouts imply in both directions
(Zheng et al., Alpa, OSDI 2022, section 4.2; FlexFlow, arXiv 1807.05358).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from costmodel.graph.model_graph import Segment
from costmodel.sharding.block import Block, read_block
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.cost import ShardingCost, reference_cost
from costmodel.sharding.placements import Layout, Placement, Transfer
from costmodel.sharding.problem import Problem, transfers
from costmodel.sharding.strategies import Strategy

__all__ = ["Assignment", "Conversion", "solve_segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A change of layout and the collective it takes. Positions count the block's forward operators."""

    tensor: int
    axis: Axis
    transfer: Transfer
    backward: bool
    after: int | None
    """Forward operator that makes the value (None: it enters the segment or is a parameter)."""
    before: int | None
    """Forward operator that uses it (None: several do, or it leaves the segment)."""
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A strategy per forward operator and axis, with everything that follows from them."""

    axes: tuple[Axis, ...]
    strategies: tuple[tuple[Strategy, ...], ...]
    parameters: Mapping[int, tuple[Placement, ...]]
    """Tensor index -> stored placement per axis."""
    used: Mapping[int, tuple[Layout, ...]]
    """Tensor index -> layout per axis in which its first user takes it."""
    entry: tuple[Layout, ...] | None
    leaves: tuple[Layout, ...] | None
    """Layout at the exit."""
    conversions: tuple[Conversion, ...]
    cost_s: float
    n_nodes: int = field(default=0)


def solve_segment(
    segment: Segment | Block,
    axes: tuple[Axis, ...],
    *,
    rules: Rules | None = None,
    cost: ShardingCost | None = None,
    boundary: tuple[Layout, ...] | None = None,
    time_limit_s: float = 60.0,
) -> Assignment:
    """Choose strategies for a segment on a mesh of one or two axes at least total time.

    `boundary` fixes the layout (per axis) at entry and exit; None leaves it free, but the same at both where
    both have one shape, so that a repeated block chains. Raises InfeasibleError where fixed placements
    contradict each other.
    """
    block = segment if isinstance(segment, Block) else read_block(segment)
    problem = Problem(block, axes, rules or Rules(), cost or reference_cost(), boundary)
    if not problem.network.n_nodes:
        return Assignment(
            axes=axes,
            strategies=(),
            parameters={},
            used={},
            entry=None,
            leaves=None,
            conversions=(),
            cost_s=0.0,
        )
    total, states = problem.network.solve(time_limit_s=time_limit_s)
    return _read(problem, block, states, total)


def _read(problem: Problem, block: Block, states: tuple[int, ...], total: float) -> Assignment:
    conversions: list[Conversion] = []
    used: dict[int, tuple[Layout, ...]] = {}
    for joint in problem.joints:
        value = block.values[joint.value]
        source = joint.source.layouts[states[joint.source.node]]
        target = joint.target.layouts[states[joint.target.node]]
        if joint.before is not None:
            used.setdefault(value.info.index, target)
        moves = transfers(source, target, value.size_bytes, problem.axes, gradient=value.has_gradient)
        conversions.extend(
            Conversion(
                tensor=value.info.index,
                axis=axis,
                transfer=transfer,
                backward=backward,
                after=joint.after,
                before=joint.before,
                what="parameter" if value.of_parameter else joint.what,
            )
            for axis, backward, transfer in moves
        )
    entry, leaves = problem.entry, problem.leaves
    return Assignment(
        axes=problem.axes,
        strategies=tuple(problem.states[p][states[p]] for p in range(len(block.forward))),
        parameters={
            block.values[v].info.index: tuple(x.forward for x in port.layouts[states[port.node]])
            for v, port in problem.stored.items()
        },
        used=used,
        entry=entry.layouts[states[entry.node]] if entry is not None else None,
        leaves=leaves.layouts[states[leaves.node]] if leaves is not None else None,
        conversions=tuple(conversions),
        cost_s=total,
        n_nodes=problem.network.n_nodes,
    )
