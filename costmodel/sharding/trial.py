"""Trying local shapes: a module's own forward on fake tensors, the named layers cut to one rank's part."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from costmodel.graph.capture import Capture
from costmodel.graph.libraries import as_on_real_tensors
from costmodel.graph.quiet import quiet_fake_tensors

__all__ = ["runs_locally", "tied_modules"]


def tied_modules(module: nn.Module) -> set[str]:
    """Paths of modules whose parameters are shared with another one: parallelising them would untie them."""
    owners: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    return {path for paths in owners.values() if len(paths) > 1 for path in paths}


def runs_locally(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], styles: Mapping[str, str], n: int
) -> bool:
    """Whether the forward runs with these modules local on n ranks and gives results of the same shapes."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with torch.no_grad(), fake:
        before = _results(_fake_copy(module), args, kwargs, fake)
        local = _fake_copy(module)
        mode = _LocalSplit(n)
        for path, style in styles.items():
            try:
                layer = local.get_submodule(path)
            except AttributeError:
                continue
            if not _cut(layer, style, n, mode):
                return False
        with mode:
            after = _results(local, args, kwargs, fake)
    return before is not None and before == after


def _results(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], fake: FakeTensorMode
) -> list[tuple[int, ...]] | None:
    """Shapes of what the forward gives, looking at values as a trace does; None where it cannot run."""
    try:
        with as_on_real_tensors(), Capture(fake), quiet_fake_tensors():
            return _shapes(module(*_fake(list(args)), **_fake(dict(kwargs))))
    except Exception:
        return None


def _empty(tensor: torch.Tensor, shape: Sequence[int] | None = None) -> torch.Tensor:
    return torch.empty(tuple(tensor.shape if shape is None else shape), dtype=tensor.dtype, device="cpu")


def _fake_copy(module: nn.Module) -> nn.Module:
    """A copy with fake tensors: shapes without storage."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        fake = _empty(tensor)
        if isinstance(tensor, nn.Parameter):
            fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = fake
    return copy.deepcopy(module, memo)


def _fake(tree: Any) -> Any:
    return tree_map(lambda x: _empty(x) if isinstance(x, torch.Tensor) else x, tree)


def _shapes(result: Any) -> list[tuple[int, ...]]:
    values = (
        vars(result)
        if hasattr(result, "__dict__") and not isinstance(result, dict | torch.Tensor)
        else result
    )
    return [tuple(x.shape) for x in tree_flatten(values)[0] if isinstance(x, torch.Tensor)]


class _LocalSplit(TorchFunctionMode):
    """Sizes in a split of a packed projection's output mean the whole projection: they are taken over n."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.packed: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            getattr(func, "__name__", "") in ("split", "split_with_sizes")
            and args
            and id(args[0]) in self.packed
        ):
            sizes = args[1] if len(args) > 1 else kwargs.pop("split_size", kwargs.pop("split_sizes", None))
            dim = args[2] if len(args) > 2 else kwargs.pop("dim", 0)
            if dim in (-1, args[0].ndim - 1) and sizes is not None:
                local = sizes // self.n if isinstance(sizes, int) else [s // self.n for s in sizes]
                return func(args[0], local, dim)
        return func(*args, **kwargs)


def _cut(layer: nn.Module, style: str, n: int, mode: _LocalSplit) -> bool:
    """Give the layer one rank's shapes and the border it has in a real run. False where it cannot be cut."""
    kind, _, chunks = style.partition(":")
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return False
    if kind == "channels":
        names = ("weight", "bias", "running_mean", "running_var")
        return all(_shrink(layer, name, 0, n) for name in names)
    if kind == "vocab":
        return weight.shape[0] % n == 0  # the sum over ranks has the whole shape
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return False
    out_dim = 0 if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) else 1
    if kind in ("colwise", "colwise_gather"):
        if weight.shape[out_dim] % (n * int(chunks or 1)):
            return False
        if kind == "colwise_gather":
            return True  # the gathered result has the whole shape
        done = _shrink(layer, "weight", out_dim, n) and _shrink(layer, "bias", 0, n)
        for name in ("out_features", "out_channels", "nf"):
            if isinstance(getattr(layer, name, None), int):
                setattr(layer, name, getattr(layer, name) // n)
        if chunks:
            layer.register_forward_hook(lambda _m, _a, out: mode.packed.__setitem__(id(out), out))
        return done
    if kind == "rowwise":
        for name in ("in_features", "in_channels", "nx"):
            if isinstance(getattr(layer, name, None), int):
                setattr(layer, name, getattr(layer, name) // n)
        return _shrink(layer, "weight", 1 - out_dim, n)
    return False


def _shrink(layer: nn.Module, name: str, dim: int, n: int) -> bool:
    tensor = getattr(layer, name, None)
    if tensor is None:
        return True
    if tensor.shape[dim] % n:
        return False
    shape = list(tensor.shape)
    shape[dim] //= n
    local = _empty(tensor, shape)
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(local, requires_grad=tensor.requires_grad))
    else:
        layer.register_buffer(name, local)
    return True
