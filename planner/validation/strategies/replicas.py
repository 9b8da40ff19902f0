"""Data parallelism of one stage's module: DDP, ZeRO by FSDP2 (2 and 3, hybrid), ZeRO-1 by its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from calibrate.torch_names import unsynced_buffers
from costmodel.plan import Plan

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer

    from planner.validation.run_spec import RunSpec

__all__ = ["build_optimizer", "gradient_sync", "replicate"]


def replicate(
    module: nn.Module,
    plan: Plan,
    mesh: DeviceMesh,
    blocks: Sequence[nn.Module],
    bucket_cap_mb: float | None,
    *,
    unused: bool = False,
) -> nn.Module:
    """Wrap the module for the plan's data-parallel axis; `mesh` has "dp" or ("dp_replicate", "dp_shard").

    `unused`: DDP looks each time for parameters whose gradients it need not wait for."""
    if plan.dp == 1:
        return module
    if plan.zero_stage >= 2:
        from torch.distributed.fsdp import fully_shard

        names = mesh.mesh_dim_names or ()
        axes = mesh["dp_replicate", "dp_shard"] if "dp_shard" in names else mesh["dp"]
        # None is torch's default: blocks are gathered again for backward, the root's own parameters are kept.
        reshard = None if plan.zero_stage == 3 else False
        for block in blocks:
            fully_shard(block, mesh=axes, reshard_after_forward=reshard)
        fully_shard(module, mesh=axes, reshard_after_forward=reshard)
        return module
    from torch.nn.parallel import DistributedDataParallel

    if plan.tp > 1:
        from torch.distributed.tensor.parallel.ddp import _pre_dp_module_transform

        _pre_dp_module_transform(module)  # DTensor parameters become local ones for DDP's buckets
    return DistributedDataParallel(
        module,
        process_group=mesh.get_group("dp"),
        bucket_cap_mb=bucket_cap_mb,
        find_unused_parameters=unused,
        **unsynced_buffers(),
    )


def gradient_sync(module: nn.Module, plan: Plan, *, last: bool) -> AbstractContextManager[Any]:
    """Context of one micro-batch: gradients are reduced on the last one only, under ZeRO-3 each time.

    The latter is FSDP2's default (`set_requires_gradient_sync` True): a rank adds up its share of gradients,
    where without it would keep them whole. Under ZeRO-2, which keeps them whole, the default is turned off.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    if isinstance(module, FSDPModule) and plan.zero_stage < 3:
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
    return nullcontext()


def build_optimizer(spec: RunSpec, modules: Sequence[nn.Module], mesh: DeviceMesh | None) -> Optimizer:
    """AdamW or SGD over the local parameters; under ZeRO-1 its state is split over the replicas."""
    import torch

    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    classes: dict[str, Any] = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    kind = classes[spec.optimizer]
    if spec.plan.zero_stage == 1 and spec.plan.dp > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        assert mesh is not None
        zero: Optimizer = ZeroRedundancyOptimizer(
            parameters, optimizer_class=kind, process_group=mesh.get_group("dp"), lr=spec.learning_rate
        )
        return zero
    optimizer: Optimizer = kind(parameters, lr=spec.learning_rate)
    return optimizer
