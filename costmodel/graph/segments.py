"""Cutting the operators of a capture into segments: runs of one unit, or stretches between units."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from costmodel.graph.blocks import Unit
from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole

__all__ = ["are_chains", "boundaries_are_clean", "cut_segments", "ends_alike"]


def cut_segments(
    operators: Sequence[Operator],
    tensors: Mapping[int, TensorInfo],
    units: Sequence[Unit],
    unused: Sequence[int],
) -> tuple[Segment, ...]:
    """Segments in forward order. `unused`: parameters no operator reads (they go to their unit's segment, or
    to the last one).

    Forward operators are cut where the unit changes; a backward operator belongs to its forward
    operator's segment. Equal neighbours are merged into one segment with their counts added.
    """
    return _merged([segment for segment, _ in _cut(operators, tensors, units, unused)])


def ends_alike(
    operators: Sequence[Operator], tensors: Mapping[int, TensorInfo], units: Sequence[Unit]
) -> bool:
    """Whether the last unit of each shortened run does, makes and keeps what the one before it does.

    Else it stands for none but itself: what follows a run may read less of its last element (the mean of an
    output needs none of it for backward), or more.
    """
    cut = _cut(operators, tensors, units, ())
    return all(
        _shape(before) == _shape(segment)
        for (before, first), (segment, unit) in pairwise(cut)
        if unit is not None and first is not None and unit.run is not None and first.run == unit.run
    )


def _cut(
    operators: Sequence[Operator],
    tensors: Mapping[int, TensorInfo],
    units: Sequence[Unit],
    unused: Sequence[int],
) -> list[tuple[Segment, Unit | None]]:
    """Segments in forward order, equal neighbours apart, each with its unit."""
    groups, group_unit, group_of = _grouped(operators, units)
    last = len(groups) - 1
    for op in operators:
        if op.phase is Phase.BACKWARD:
            last = group_of.get(op.forward_index, last) if op.forward_index is not None else last
            groups[last].append(op)
            group_of[op.index] = last
    owner = _owners(operators, tensors, group_of)
    unit_of = {path: unit for unit in units for path in unit.elements}
    for index in unused:
        unit = _unit(tensors[index].name, unit_of)
        owner.setdefault(index, group_unit.index(unit) if unit in group_unit else len(groups) - 1)
    crossing = _crossing(operators, tensors, group_of, len(groups))
    needed = {i for i, t in tensors.items() if t.saved} | {
        _base(tensors, index)
        for op in operators
        if op.phase is Phase.FORWARD and group_unit[group_of[op.index]] is not None
        for index in op.inputs
    }
    # of a run of equal blocks one is there: what it hands on is the input of the next
    needed |= {
        _base(tensors, index)
        for op in operators
        if op.phase is Phase.FORWARD and (unit := group_unit[group_of[op.index]]) is not None
        if len(unit.instances) > 1
        for index in op.outputs
    }
    return [
        (_segment(groups[i], unit, tensors, owner, i, crossing[i], needed), unit)
        for i, unit in enumerate(group_unit)
    ]


def _grouped(
    operators: Sequence[Operator], units: Sequence[Unit]
) -> tuple[list[list[Operator]], list[Unit | None], dict[int, int]]:
    """Runs of forward operators of one unit (or of none), the unit of each, and each operator's run."""
    unit_of = {path: unit for unit in units for path in unit.elements}
    groups: list[list[Operator]] = []
    group_unit: list[Unit | None] = []
    group_of: dict[int, int] = {}
    for op in operators:
        if op.phase is not Phase.FORWARD:
            continue
        unit = _unit(op.module, unit_of)
        if not groups or unit is not group_unit[-1]:
            groups.append([])
            group_unit.append(unit)
        groups[-1].append(op)
        group_of[op.index] = len(groups) - 1
    return groups, group_unit, group_of


def boundaries_are_clean(
    operators: Sequence[Operator], tensors: Mapping[int, TensorInfo], units: Sequence[Unit]
) -> bool:
    """Whether one differentiable tensor crosses between neighbouring units: a pipeline can be cut there."""
    groups, group_unit, group_of = _grouped(operators, units)
    crossing = _crossing(operators, tensors, group_of, len(groups))
    return all(
        len(crossing[i]) <= 1
        for i in range(len(groups) - 1)
        if group_unit[i] is not None and group_unit[i + 1] is not None
    )


def are_chains(
    operators: Sequence[Operator], tensors: Mapping[int, TensorInfo], units: Sequence[Unit]
) -> bool:
    """Whether each run that was shortened passes its results on from element to element only.

    Where something else reads an element that is not the last (branches that are summed or stacked), or reads
    an element's parameters by itself (their moving average, a layer written out), a shorter run would change
    what follows it.
    """
    followers = {
        id(unit): after for unit, after in pairwise(units) if unit.run is not None and unit.run == after.run
    }
    unit_of = {path: unit for unit in units for path in unit.elements}
    maker: dict[int, Unit] = {}
    for op in operators:
        if op.phase is not Phase.FORWARD:
            continue
        unit = _unit(op.module, unit_of)
        for index in op.inputs:
            if unit is None and tensors[index].role is TensorRole.PARAMETER:
                owner = _unit(tensors[index].name, unit_of)
                if owner is not None and owner.run is not None:
                    return False
            made_by = maker.get(_base(tensors, index))
            if made_by is not None and unit is not made_by and unit is not followers[id(made_by)]:
                return False
        if unit is not None and id(unit) in followers:
            maker |= {index: unit for index in op.outputs if _base(tensors, index) == index}
    return True


def _unit(module: str, unit_of: Mapping[str, Unit]) -> Unit | None:
    path = module
    while path:
        if path in unit_of:
            return unit_of[path]
        path = path.rpartition(".")[0]
    return None


def _owners(
    operators: Sequence[Operator], tensors: Mapping[int, TensorInfo], group_of: Mapping[int, int]
) -> dict[int, int]:
    """Segment that counts each tensor: the one that makes it, for what comes from outside the first user."""
    owner: dict[int, int] = {}
    for op in operators:
        group = group_of[op.index]
        for index in op.outputs:
            owner.setdefault(index, group)
    for op in operators:
        for index in op.inputs:
            owner.setdefault(index, group_of[op.index])
            base = tensors[index].view_of
            if base is not None:
                owner.setdefault(base, group_of[op.index])
    return owner


def _crossing(
    operators: Sequence[Operator],
    tensors: Mapping[int, TensorInfo],
    group_of: Mapping[int, int],
    n_groups: int,
) -> list[list[int]]:
    """Tensors alive across the boundary after each segment: differentiable activations used later on.

    A forward without gradients counts every floating-point activation.
    """
    any_grad = any(t.requires_grad and t.role is TensorRole.ACTIVATION for t in tensors.values())
    made: dict[int, int] = {}
    used: dict[int, int] = {}
    for op in operators:
        if op.phase is not Phase.FORWARD:
            continue
        group = group_of[op.index]
        for index in op.outputs:
            made.setdefault(_base(tensors, index), group)
        for index in op.inputs:
            base = _base(tensors, index)
            used[base] = max(used.get(base, 0), group)
    found: list[list[int]] = [[] for _ in range(n_groups)]
    for index, start in made.items():
        t = tensors[index]
        if t.role is not TensorRole.ACTIVATION or (any_grad and not t.requires_grad):
            continue
        if t.dtype.startswith(("int", "bool")):
            continue
        for boundary in range(start, used.get(index, start)):
            found[boundary].append(index)
    return found


def _base(tensors: Mapping[int, TensorInfo], index: int) -> int:
    base = tensors[index].view_of
    return index if base is None else base


def _segment(
    group: list[Operator],
    unit: Unit | None,
    tensors: Mapping[int, TensorInfo],
    owner: Mapping[int, int],
    number: int,
    crossing: Sequence[int],
    needed: Collection[int],
) -> Segment:
    made = {_base(tensors, i) for op in group if op.phase is Phase.FORWARD for i in op.outputs}
    touched: dict[int, None] = {}
    for op in group:
        for index in (*op.inputs, *op.outputs):
            touched.setdefault(_base(tensors, index))
            touched.setdefault(index)
    for index, where in owner.items():
        if where == number:
            touched.setdefault(index)
    infos = []
    for index in sorted(touched):
        info = tensors[index]
        if owner.get(index, number) != number:
            info = replace(info, saved=False, tied=info.role is TensorRole.PARAMETER)
        infos.append(info)
    modules = unit.instances if unit is not None else _stretch_modules(group)
    return Segment(
        name=unit.instances[0] if unit is not None else _stretch_name(modules),
        count=len(unit.instances) if unit is not None else 1,
        modules=modules,
        operators=tuple(group),
        tensors=tuple(infos),
        output_bytes=sum(tensors[index].size_bytes for index in crossing),
        is_block=unit is not None,
        crossing=tuple(crossing),
        passing_bytes=sum(tensors[i].size_bytes for i in crossing if i not in made or i not in needed),
    )


def _stretch_modules(group: Sequence[Operator]) -> tuple[str, ...]:
    paths = dict.fromkeys(op.module for op in group if op.phase is Phase.FORWARD and op.module)
    leaves = [p for p in paths if not any(other.startswith(p + ".") for other in paths)]
    return tuple(leaves)


def _stretch_name(modules: Sequence[str]) -> str:
    if not modules:
        return "(outside modules)"
    return modules[0] if len(modules) == 1 else f"{modules[0]} .. {modules[-1]}"


def _shape(segment: Segment) -> tuple[object, ...]:
    """What two segments must share to be one: the same operators on the same sizes."""
    return (
        segment.output_bytes,
        tuple(
            (op.target, op.kind, op.variant, op.dtype, tuple(op.dims.items()), op.phase, op.flop)
            for op in segment.operators
        ),
        tuple((t.shape, t.dtype) for t in segment.parameters if not t.tied),
        segment.saved_bytes,
    )


def _merged(segments: list[Segment]) -> tuple[Segment, ...]:
    result: list[Segment] = []
    for segment in segments:
        if result and segment.modules and _shape(result[-1]) == _shape(segment):
            before = result[-1]
            result[-1] = replace(
                segment,
                name=before.name,
                count=before.count + segment.count,
                modules=(*before.modules, *segment.modules),
                passing_bytes=min(before.passing_bytes, segment.passing_bytes),
            )
        else:
            result.append(segment)
    return tuple(result)
