"""What every operator of every module costs in one step, as the forecast of a plan counts it.

The same kernels at the same prices as `segment_costs` sums them up, kept apart: what a profiler trace is held
against.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from costmodel.estimate import expected_max
from costmodel.graph.fusion import fuse
from costmodel.graph.liveness import recomputed_operators
from costmodel.graph.model_graph import Phase, Segment, TensorRole
from costmodel.predict.optimizer_costs import optimizer_variant
from costmodel.predict.pricing import price_operators
from costmodel.predict.segment_costs import part_of
from costmodel.predict.units import accumulate_s
from costmodel.recompute import Recompute

if TYPE_CHECKING:
    from collections.abc import Iterator

    from costmodel.plan import Plan
    from costmodel.predict.forecaster import Forecaster
    from costmodel.sharding import ShardedSegment

__all__ = ["OperatorCost", "forward_calls", "operator_costs", "path_in_instance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One operator of one module for a mean micro-batch on one rank of the stage that holds it.

    `device_s` is the kernel's time while the other ranks are at work, `host_s` what dispatch or autograd add;
    `errors`: what it errs with (`costmodel.predict.uncertainty`) -> seconds of one standard deviation.
    """

    module: str
    phase: str
    """forward, backward or recompute."""
    target: str
    """As the profiler names it: aten::addmm."""
    kind: str
    device_s: float
    host_s: float
    errors: tuple[tuple[str, float], ...]


def operator_costs(forecaster: Forecaster, plan: Plan, *, bubble_fraction: float = 0.0) -> list[OperatorCost]:
    """Every operator of every module, in forward order of the modules; `bubble_fraction` of the plan's
    forecast says how busy the ranks keep each other's memory. Raises PlanError as `Forecaster.forecast`."""
    utilisation = 0.0 if plan.world_size == 1 else 1.0 - (bubble_fraction if plan.pp > 1 else 0.0)
    slower = 1.0 + forecaster.profile.rank_log_sigma * expected_max(plan.world_size)
    policy = Recompute.parse(plan.recompute)
    costs: list[OperatorCost] = []
    block = 0
    for segment in forecaster.sharded(plan).segments:
        operators = fuse(segment.local, forecaster.fusion).operators
        priced = price_operators(
            operators, forecaster.profile, forecaster.framework, long_run=forecaster.training
        )
        errors = priced.errors(operators)
        gradients = {t.index for t in segment.local.tensors if t.role is TensorRole.GRADIENT}
        device_s = (priced.device_s - priced.contended_s * (1.0 - utilisation)) * slower
        for instance in range(segment.count):
            costs += _accumulation(forecaster, plan, segment, instance)
            again = recomputed_operators(segment.local, policy.of_block(block))
            block += segment.local.is_block
            for position, op in enumerate(operators):
                phase = "forward" if part_of(op, gradients) == "forward" else "backward"
                for name in (phase, "recompute") if op.index in again else (phase,):
                    costs.append(
                        OperatorCost(
                            module=path_in_instance(segment.local, op.module, instance),
                            phase=name,
                            target=_profiler_name(op.target),
                            kind=op.kind,
                            device_s=float(device_s[position]),
                            host_s=float(priced.host_s[position]),
                            errors=errors[position],
                        )
                    )
    return costs


def _accumulation(
    forecaster: Forecaster, plan: Plan, segment: ShardedSegment, instance: int
) -> list[OperatorCost]:
    """Adding up gradients, by module: what every micro-batch but the first does, as a mean over all."""
    elements: dict[str, int] = {}
    for parameter in segment.parameters:
        if not parameter.tied:
            module = path_in_instance(segment.local, parameter.name.rpartition(".")[0], instance)
            elements[module] = elements.get(module, 0) + prod(parameter.local_shape)
    total = sum(elements.values())
    first = 1.0 / plan.num_microbatches if optimizer_variant(forecaster.optimizer).updates else 0.0
    seconds = accumulate_s(forecaster, total) * (1.0 - first)
    if not seconds:
        return []
    return [
        OperatorCost(
            module=module,
            phase="backward",
            target="aten::add_",
            kind="elementwise",
            device_s=seconds * n / total,
            host_s=0.0,
            errors=(),
        )
        for module, n in elements.items()
    ]


def forward_calls(forecaster: Forecaster, plan: Plan) -> Iterator[list[tuple[str, str]]]:
    """Of every unit (instance of a segment) in order the (operator as the profiler names it, module) of each
    forward call of one micro-batch, in order."""
    for segment in forecaster.sharded(plan).segments:
        forward = segment.local.phase(Phase.FORWARD)
        for i in range(segment.count):
            yield [
                (_profiler_name(op.target), path_in_instance(segment.local, op.module, i)) for op in forward
            ]


def path_in_instance(segment: Segment, module: str, instance: int) -> str:
    """The path of a module of the traced instance (any one of the segment's) in instance `instance`."""
    if not segment.is_block or instance >= len(segment.modules):
        return module
    elements = segment.modules[instance].split("+")
    place = {path: i for group in segment.modules for i, path in enumerate(group.split("+"))}
    inside, path = "", module
    while path:
        if path in place:
            return elements[place[path]] + inside
        path, _, last = path.rpartition(".")
        inside = f".{last}{inside}"
    return module


def _profiler_name(target: str) -> str:
    """`aten.addmm.default` as the profiler has it: aten::addmm."""
    namespace, _, rest = target.partition(".")
    return f"{namespace}::{rest.partition('.')[0]}"
