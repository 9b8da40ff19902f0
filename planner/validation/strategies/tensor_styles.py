"""Tensor-parallel styles of layers, executed by DTensor where it can and by hand where it cannot.

    colwise          output features split; input whole, output this rank's features
    colwise:C        the same for C equal projections in one (fused QKV: C = 3); each is split, and a later
                     `split` or `chunk` of the output into the C parts works on the local sizes
    colwise_gather   output features split, then gathered (a vocabulary head)
    rowwise          input features split; input this rank's features, output summed over the ranks
    vocab            rows of an embedding table split, output summed
    channels         a normalisation over channels that are split already

nn.Linear and nn.Embedding use torch's ColwiseParallel / RowwiseParallel. Layers with the weight stored
[in, out] (transformers' Conv1D) get the same by DTensor placements of their own. Convolutions and batch
normalisation hold plain local tensors: DTensor splits convolutions by rows of the image only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from costmodel.errors import PlanError

__all__ = [
    "STYLES",
    "ChannelNorm",
    "ColwiseConvolution",
    "PackedColwise",
    "RowwiseConvolution",
    "TransposedRowwise",
    "apply_styles",
    "make_style",
]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
STYLES = ("colwise", "colwise:C", "colwise_gather", "rowwise", "vocab", "channels")


def apply_styles(module: nn.Module, mesh: DeviceMesh, styles: Mapping[str, str], *, prefix: str = "") -> None:
    """Shard the named modules over the mesh. Modules that another pipeline stage holds are passed over.

    Raises PlanError for an unknown style, a layer it does not fit, or a size that does not divide.
    """
    plan: dict[str, ParallelStyle] = {}
    for path, name in styles.items():
        try:
            target = module.get_submodule(prefix + path)
        except AttributeError:
            continue
        if any(True for _ in target.parameters()):
            plan[prefix + path] = make_style(path, target, name, mesh.size())
    if not plan:
        return
    parallelize_module(module, mesh, plan, src_data_rank=None)  # every rank has the same seeded weights


def make_style(path: str, layer: nn.Module, name: str, n: int) -> ParallelStyle:
    """The style object for one layer split over `n` ranks."""
    kind, _, chunks_text = name.partition(":")
    chunks = int(chunks_text or 1)
    weight = getattr(layer, "weight", None)
    if isinstance(layer, _CONVOLUTIONS):
        if layer.groups != 1:
            raise PlanError(
                f"{path}: a grouped convolution (groups={layer.groups}) has no tensor split to run"
            )
        if kind == "colwise":
            _divides(path, "output channels", layer.out_channels, n)
            return ColwiseConvolution()
        if kind == "rowwise":
            _divides(path, "input channels", layer.in_channels, n)
            return RowwiseConvolution()
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) and kind == "channels":
        _divides(path, "channels", layer.num_features, n)
        return ChannelNorm()
    elif isinstance(layer, nn.Embedding):
        if kind == "vocab":
            return RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate())
        if kind == "colwise":
            return ColwiseParallel()
    elif isinstance(weight, nn.Parameter) and weight.ndim == 2:
        transposed = not isinstance(layer, nn.Linear)  # [in, out]
        outputs, inputs = weight.shape if not transposed else tuple(reversed(weight.shape))
        if kind == "colwise":
            _divides(path, "output features", outputs, n * chunks)
            if transposed or chunks > 1:
                return PackedColwise(chunks=chunks, transposed=transposed)
            return ColwiseParallel()
        if kind == "colwise_gather" and not transposed:
            return ColwiseParallel(output_layouts=Replicate())
        if kind == "rowwise":
            _divides(path, "input features", inputs, n)
            return TransposedRowwise() if transposed else RowwiseParallel()
    raise PlanError(
        f"{path}: style {name!r} does not fit a {type(layer).__name__}; styles are {', '.join(STYLES)}"
    )


def _divides(path: str, what: str, size: int, n: int) -> None:
    if size % n:
        raise PlanError(f"{path}: {what}({size}) is not a multiple of {n}; take another tp degree")


def _piece(tensor: torch.Tensor, dim: int, rank: int, n: int, chunks: int = 1) -> torch.Tensor:
    """Rank's part of each of `chunks` equal pieces of dimension `dim`, as one contiguous tensor."""
    parts = [piece.chunk(n, dim)[rank] for piece in tensor.detach().chunk(chunks, dim)]
    return torch.cat(parts, dim).contiguous()


class _PackedLocal(torch.Tensor):
    """Output of a packed projection: split sizes that name the whole projection mean the local one."""

    n_ranks: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        me = next(a for a in (*args, *kwargs.values()) if isinstance(a, _PackedLocal))
        n = me.n_ranks
        plain = [_unwrap(a) for a in args]
        if getattr(func, "__name__", "") in ("split", "split_with_sizes"):
            sizes = plain[1] if len(plain) > 1 else kwargs.pop("split_size_or_sections", None)
            if sizes is None:
                sizes = kwargs.pop("split_size")
            local = sizes // n if isinstance(sizes, int) else [s // n for s in sizes]
            dim = kwargs.get("dim", plain[2] if len(plain) > 2 else 0)
            if dim in (-1, me.ndim - 1):
                return torch.split(plain[0], local, dim)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*plain, **{k: _unwrap(v) for k, v in kwargs.items()})


def _unwrap(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, _PackedLocal) else value


class PackedColwise(ParallelStyle):
    """Column split of `chunks` projections in one layer, the weight stored [out, in] or [in, out]."""

    def __init__(self, *, chunks: int, transposed: bool) -> None:
        super().__init__()
        self.chunks, self.transposed = chunks, transposed

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        n, rank = device_mesh.size(), device_mesh.get_local_rank()

        def partition(name: str, layer: nn.Module, mesh: DeviceMesh) -> None:
            for key, value in list(layer.named_parameters(recurse=False)):
                dim = 1 if self.transposed and value.ndim == 2 else 0
                local = _piece(value, dim, rank, n, self.chunks)
                sharded = DTensor.from_local(local, mesh, [Shard(dim)], run_check=False)
                setattr(layer, key, nn.Parameter(sharded, requires_grad=value.requires_grad))

        def outputs(layer: nn.Module, out: Any, mesh: DeviceMesh) -> Any:
            local = out.to_local()
            if self.chunks == 1:
                return local
            packed = local.as_subclass(_PackedLocal)
            packed.n_ranks = n
            return packed

        return distribute_module(module, device_mesh, partition, _whole_input, outputs)


class TransposedRowwise(ParallelStyle):
    """Row split of a layer whose weight is stored [in, out]."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        n, rank = device_mesh.size(), device_mesh.get_local_rank()

        def partition(name: str, layer: nn.Module, mesh: DeviceMesh) -> None:
            for key, value in list(layer.named_parameters(recurse=False)):
                if value.ndim == 2:
                    sharded = DTensor.from_local(_piece(value, 0, rank, n), mesh, [Shard(0)], run_check=False)
                else:
                    sharded = DTensor.from_local(value.detach(), mesh, [Replicate()], run_check=False)
                setattr(layer, key, nn.Parameter(sharded, requires_grad=value.requires_grad))

        def inputs(layer: nn.Module, args: Any, mesh: DeviceMesh) -> Any:
            return (DTensor.from_local(args[0], mesh, [Shard(args[0].ndim - 1)], run_check=False), *args[1:])

        def outputs(layer: nn.Module, out: Any, mesh: DeviceMesh) -> Any:
            return out.redistribute(placements=[Replicate()]).to_local()

        return distribute_module(module, device_mesh, partition, inputs, outputs)


def _whole_input(layer: nn.Module, args: Any, mesh: DeviceMesh) -> Any:
    return (DTensor.from_local(args[0], mesh, [Replicate()], run_check=False), *args[1:])


class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is summed over the group: a whole input read by split layers."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _SumOutput(torch.autograd.Function):
    """Sum over the group whose gradient passes as it is: partial outputs made whole."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Any) -> torch.Tensor:
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=group)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


def _localise(layer: nn.Module, mesh: DeviceMesh, dims: Mapping[str, int]) -> None:
    """Replace the named parameters and buffers by this rank's part along their dimension."""
    n, rank = mesh.size(), mesh.get_local_rank()
    for name, dim in dims.items():
        value = getattr(layer, name, None)
        if value is None:
            continue
        local = _piece(value, dim, rank, n)
        if isinstance(value, nn.Parameter):
            setattr(layer, name, nn.Parameter(local, requires_grad=value.requires_grad))
        else:
            layer.register_buffer(name, local)


class ColwiseConvolution(ParallelStyle):
    """Output channels split; whole input, this rank's output channels."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, _CONVOLUTIONS)
        _localise(module, device_mesh, {"weight": 0, "bias": 0})
        module.out_channels //= device_mesh.size()
        group = device_mesh.get_group()
        module.register_forward_pre_hook(lambda layer, args: (_SumGradient.apply(args[0], group), *args[1:]))
        return module


class RowwiseConvolution(ParallelStyle):
    """Input channels split; this rank's input channels, output summed. The bias is added by rank 0."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, _CONVOLUTIONS)
        if module.bias is not None:
            raise PlanError(
                "a convolution with a bias has no row-wise split to run; split its output channels"
            )
        _localise(module, device_mesh, {"weight": 1})
        module.in_channels //= device_mesh.size()
        group = device_mesh.get_group()
        module.register_forward_hook(lambda layer, args, out: _SumOutput.apply(out, group))
        return module


class ChannelNorm(ParallelStyle):
    """Batch normalisation of this rank's channels: no communication."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
        _localise(module, device_mesh, {"weight": 0, "bias": 0, "running_mean": 0, "running_var": 0})
        module.num_features //= device_mesh.size()
        return module
