"""From a spec to something that takes steps.

Order on each rank: stage cut -> tensor shards -> recomputation -> replicas -> schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError, UsageError
from planner.validation.model_source import load_model, loss_of, split_batch, unused_parameters
from planner.validation.strategies.answering import Answerer, build_answerer
from planner.validation.strategies.blocks import (
    checkpoint_blocks,
    default_blocks,
    default_stages,
    present,
)
from planner.validation.strategies.busy import Busy
from planner.validation.strategies.pipeline import make_schedule, stages_of_rank
from planner.validation.strategies.replicas import build_optimizer, gradient_sync, replicate
from planner.validation.strategies.tied import TiedParameter, shared_parameters, tied_parameters

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from costmodel.plan import Plan
    from planner.validation.run_spec import RunSpec

__all__ = ["Runner", "build_mesh", "build_runner", "check_runnable"]


@dataclass(slots=True, kw_only=True)
class Runner:
    """A plan ready to run on this rank.

    `forward_backward` returns the mean loss of the rank's micro-batches, None off the last stage.
    """

    spec: RunSpec
    modules: list[nn.Module]
    optimizer: Optimizer
    forward_backward: Callable[[], torch.Tensor | None]
    mesh: DeviceMesh | None
    tied: list[TiedParameter]
    busy: Busy | None = None
    busy_s: float | None = None
    """Of the last step of a pipeline on a CPU: time in which the rank computed."""
    first_token_s: None = None

    def step(self) -> torch.Tensor | None:
        """One training step: gradients cleared, all micro-batches, gradients reduced, optimizer."""
        from torch.profiler import record_function

        begun = time.perf_counter()
        with record_function("foreshard::zero_grad"):
            self.optimizer.zero_grad(set_to_none=True)
        if self.busy is not None:
            self.busy.take()
        start = time.perf_counter()
        with record_function("foreshard::forward_backward"):
            loss = self.forward_backward()
        scheduled_s = time.perf_counter() - start
        for parameter in self.tied:
            parameter.add_gradients()
        with record_function("foreshard::optimizer"):
            self.optimizer.step()
        if self.busy is not None:
            self.busy_s = time.perf_counter() - begun - scheduled_s + self.busy.take()
        return loss


def build_mesh(spec: RunSpec, device: str) -> DeviceMesh | None:
    """Mesh of the plan's axes over ranks 0..world_size-1, outermost first: pp, dp, tp.

    Every rank of the job calls this, also those outside the mesh. One device needs none.
    """
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    plan = spec.plan
    check_runnable(plan)
    if plan.world_size == 1:
        return None
    names = ["pp", "dp", "tp"]
    sizes = [plan.pp, plan.dp, plan.tp]
    if plan.zero_stage >= 2 and 0 < plan.dp_shard < plan.dp:
        names[1:2] = ["dp_replicate", "dp_shard"]
        sizes[1:2] = [plan.dp // plan.dp_shard, plan.dp_shard]
    ranks = torch.arange(plan.world_size).reshape(sizes)
    return DeviceMesh(device, ranks, mesh_dim_names=tuple(names))


def _axis_rank(mesh: DeviceMesh | None, *names: str) -> int:
    rank = 0
    for name in names:
        if mesh is not None and name in (mesh.mesh_dim_names or ()):
            size = mesh.size((mesh.mesh_dim_names or ()).index(name))
            rank = rank * size + mesh.get_local_rank(name)
    return rank


def build_runner(spec: RunSpec, mesh: DeviceMesh | None, device: torch.device) -> Runner | Answerer:
    """Build this rank's part of the plan. Called on the ranks of the mesh only."""
    plan = spec.plan
    replica = _axis_rank(mesh, "dp", "dp_replicate", "dp_shard")
    if spec.output_len:
        return build_answerer(spec, mesh, device, replica=replica)
    loaded = load_model(spec.model, batch=plan.global_batch_size, device=device.type, seed=spec.seed)
    inputs = split_batch(loaded.inputs, batch=loaded.batch, parts=plan.dp, index=replica)
    blocks = spec.blocks or default_blocks(loaded.module)
    batch = loaded.batch // plan.dp
    unused: frozenset[str] = frozenset()
    if plan.dp > 1 and plan.zero_stage < 2:
        one = split_batch(inputs, batch=batch, parts=plan.num_microbatches, index=0)
        unused = unused_parameters(loaded.module, one)
    if plan.pp > 1:
        return _pipeline_runner(spec, loaded.module, inputs, batch, blocks, mesh, device, unused=bool(unused))
    module = _distribute(spec, loaded.module, mesh, blocks, prefix="", unused=bool(unused))
    micro_batches = [
        split_batch(inputs, batch=batch, parts=plan.num_microbatches, index=i)
        for i in range(plan.num_microbatches)
    ]
    return Runner(
        spec=spec,
        modules=[module],
        optimizer=build_optimizer(spec, [module], mesh),
        forward_backward=lambda: _accumulate(module, micro_batches, plan),
        mesh=mesh,
        tied=[],
    )


def _accumulate(module: nn.Module, micro_batches: list[dict[str, Any]], plan: Plan) -> torch.Tensor:
    total: torch.Tensor | None = None
    m = len(micro_batches)
    for i, micro_batch in enumerate(micro_batches):
        with gradient_sync(module, plan, last=i == m - 1):
            loss = loss_of(module(**micro_batch))
            if m > 1:
                loss = loss / m
            loss.backward()  # type: ignore[no-untyped-call]
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total


def _distribute(
    spec: RunSpec,
    module: nn.Module,
    mesh: DeviceMesh | None,
    blocks: tuple[str, ...],
    prefix: str,
    *,
    unused: bool = False,
) -> nn.Module:
    """Tensor shards, then checkpoints, then replicas (FSDP must see the checkpointed forward inside).

    `unused`: the loss does not depend on some of the parameters."""
    plan = spec.plan
    if plan.tp > 1:
        from planner.validation.strategies.tensor_styles import apply_styles

        assert mesh is not None
        if not spec.tp_styles:
            raise UsageError(f"plan {plan}: tp({plan.tp}) needs tp_styles (module path -> style)")
        apply_styles(module, mesh["tp"], spec.tp_styles, prefix=prefix)
    here = present(module, blocks, prefix)
    if plan.recompute == "full":
        checkpoint_blocks(here)
    if mesh is None:
        return module
    return replicate(module, plan, mesh, here, spec.bucket_cap_mb, unused=unused)


def _pipeline_runner(
    spec: RunSpec,
    model: nn.Module,
    inputs: Mapping[str, Any],
    batch: int,
    blocks: tuple[str, ...],
    mesh: DeviceMesh | None,
    device: torch.device,
    *,
    unused: bool,
) -> Runner:
    import copy

    import torch
    from torch.distributed.pipelining import PipelineStage

    from planner.validation.tape import StageModule, cut, first_called, record

    assert mesh is not None
    plan = spec.plan
    n_stages = plan.pp * plan.vpp
    stages = spec.stage_modules or default_stages(model, n_stages)
    points = [
        first_called(model, stage, (path for earlier in stages[:i] for path in earlier))
        for i, stage in enumerate(stages)
    ]
    m = plan.num_microbatches
    one = split_batch(inputs, batch=batch, parts=m, index=0)
    tape = record(model, one, batch=batch // m, cut_points=points, loss_of=loss_of)
    plans = cut(tape, points)
    mine = stages_of_rank(plan, mesh.get_local_rank("pp"))
    modules: list[nn.Module] = []
    pipeline_stages = []
    shared = shared_parameters(model, tape, plans)
    local: dict[int, dict[str, torch.nn.Parameter]] = {}
    for number, index in enumerate(mine):
        own = model if number == len(mine) - 1 else copy.deepcopy(model)
        last = index == n_stages - 1
        stage = StageModule(own, tape, plans[index], is_last=last)
        first = (one[stage.first_input],) if index == 0 else ()
        received = first or tuple(_example(tape.samples[v], device) for v in plans[index].receives)
        sent = tuple(_example(tape.samples[v], device) for v in plans[index].sends)
        if last:
            sent = (torch.zeros((), device=device),)
        module = _distribute(spec, stage, mesh, blocks, prefix="model.", unused=unused)
        modules.append(module)
        local[index] = dict(stage.model.named_parameters(remove_duplicate=False))
        pipeline_stages.append(
            PipelineStage(
                module,
                index,
                n_stages,
                device,
                input_args=received,
                output_args=sent,
                group=mesh.get_group("pp"),
            )
        )
    busy = Busy(pipeline_stages) if device.type == "cpu" else None
    schedule = make_schedule(plan, pipeline_stages)
    is_first, is_last = 0 in mine, n_stages - 1 in mine
    args = (inputs[plans[0].inputs[0]],) if is_first else ()
    needed = {name for index in mine for name in plans[index].inputs[0 if index else 1 :]}
    kwargs = {name: inputs[name] for name in sorted(needed)}
    target = torch.zeros(batch, device=device) if is_last else None

    def forward_backward() -> torch.Tensor | None:
        losses: list[torch.Tensor] | None = [] if is_last else None
        schedule.step(*args, target=target, losses=losses, return_outputs=False, **kwargs)
        return torch.stack([x.detach() for x in losses]).sum() if losses else None

    return Runner(
        spec=spec,
        modules=modules,
        optimizer=build_optimizer(spec, modules, mesh),
        forward_backward=forward_backward,
        mesh=mesh,
        tied=tied_parameters(shared, local, plan, mesh.get_group("pp")),
        busy=busy,
    )


def _example(sample: torch.Tensor, device: torch.device) -> torch.Tensor:
    import torch

    return torch.empty(sample.shape, dtype=sample.dtype, device=device, requires_grad=True)


def check_runnable(plan: Plan) -> None:
    """Raise PlanError for what no real run follows, so that nothing is left out silently."""
    for name, present_, instead in (
        ("context parallelism", plan.cp > 1, "cp1"),
        ("expert parallelism", plan.ep > 1, "ep1"),
        ("sequence parallelism", plan.sequence_parallel, "a plan without sp"),
        ("recomputation of parts of blocks", plan.recompute not in ("none", "full"), "none or full"),
        (f"the choice {' '.join(plan.flags)!r}", bool(plan.flags), "a plan without it"),
        ("ZeRO under a pipeline's own optimizer", plan.zero_stage == 1 and plan.pp > 1, "zero0 or zero3"),
    ):
        if present_:
            raise PlanError(f"plan {plan}: {name} has no real run here; use {instead}")
