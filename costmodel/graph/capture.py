"""Recording a training step as one torch.fx graph: forward and backward on fake tensors.

The step runs eagerly under a FakeTensorMode, so that autograd does what it does in a real run, and a
dispatch mode writes every aten call into a torch.fx.Graph with its module path, phase, the forward call
whose gradient it is (by autograd's sequence numbers), its storages, and what autograd saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from costmodel.graph.autocast import autocast
from costmodel.graph.fake_calls import FakeCalls
from costmodel.graph.known_values import KnownValues
from costmodel.graph.workspaces import of_known_size, with_workspace

__all__ = ["CPU_ATTENTION", "Capture", "capture_step", "leaves", "packet_name", "storage_key"]

_INVISIBLE = ("prim.device", "prim.layout", "aten.detach", "aten.alias", "aten.is_pinned", "aten.lift_fresh")
_DEVICE = torch.ops.prim.device.default
_COPY = torch.ops.aten.copy_.default
_NEW = torch.ops.aten.new_empty_strided.default
_READ = torch.ops.aten._local_scalar_dense.default
_NONZERO = torch.ops.aten.nonzero.default
_INDEXED = frozenset(
    (
        torch.ops.aten.index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.index_put_.default,
    )
)
_MASKS = (torch.bool, torch.uint8)

CPU_ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu"
_HALF_ONLY = (torch.ops.aten._grouped_mm.default,)


def _grouped_mm(a: torch.Tensor, b: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
    """torch's shape function admits bf16 only, its CPU and GPU kernels other types: shapes from bf16."""
    made: torch.Tensor = torch.ops.aten._grouped_mm.default(
        a.to(torch.bfloat16), b.to(torch.bfloat16), *rest, **named
    )
    return made if made.dtype == a.dtype else made.to(a.dtype)


class Capture(TorchDispatchMode):
    """The recorder. After `capture_step`, `graph` holds call_function nodes with these meta keys:

    val         the fake result(s)
    module      path of the innermost module (of the forward call, for backward)
    backward    whether it ran in backward
    forward     name of the forward node whose gradient it computes, or None
    flop        FLOP by torch's formula
    """

    def __init__(self, mode: FakeTensorMode, *, fused_attention: bool = False) -> None:
        super().__init__()
        self.fused_attention = fused_attention
        self.graph = fx.Graph()
        self.saved_storages: set[int] = set()
        self.keep: list[Any] = []
        self.modules: list[str] = [""]
        self._nodes: dict[int, fx.Node] = {}
        self.known = KnownValues()
        self._constants: dict[int, torch.Tensor] = {}
        """id(fake tensor) -> the real one that the model made of numbers."""
        self._by_sequence: dict[int, fx.Node] = {}
        self._last_sequence = -1
        self._new_gradients: set[int] = set()
        self.stolen: dict[int, int] = {}
        """Storage of a parameter's gradient -> storage of the tensor that autograd would have taken."""
        self._last_backward_module = ""
        self._call = FakeCalls(mode)

    def placeholder(self, name: str, value: torch.Tensor, role: str) -> None:
        """Declare a parameter, buffer or input before the step."""
        node = self.graph.placeholder(name.replace(".", "_") or role)
        node.meta.update(val=value, role=role, name=name)
        if hasattr(value, "known_values"):
            node.meta["constant"] = value.known_values
        self._nodes[id(value)] = node
        self.keep.append(value)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the call and record it."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):  # most calls: autograd asks at every edge
            return args[0].fake_device
        # modes that watch the model's calls need not see what its operators do inside
        with torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is _COPY and self._takes_as_gradient(args):
            return args[0]
        if func in _INDEXED:
            args = (args[0], self._indices(args[1]), *args[2:])
        try:
            out = _grouped_mm(*args, **kwargs) if func in _HALF_ONLY else self._call(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            out = self._by_values(func, args, kwargs)
            if out is None:
                out = of_known_size(func, args)
            if out is None:
                raise
        out = with_workspace(func, args, out)
        if packet_name(func) in _INVISIBLE:
            self._alias(args, out)
            return out
        if func is _NEW and self._accumulates():
            self._new_gradients.add(storage_key(out))
            self.keep.append(out)
            return out
        if any(isinstance(t, torch.Tensor) for t in leaves(out)):
            self._record(func, args, kwargs, out)
        return out

    def _by_values(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What a call gives whose result's size, or itself (`.item()`), depends on what tensors hold; None
        where that is not known."""
        named = {key: self._as_node(value) for key, value in kwargs.items()}
        nodes = [self._as_node(value) for value in args]
        if func is _READ:
            return self.known.number(nodes[0])
        results = self.known.results(func, nodes, named)
        if results is None:
            return None
        like = next(a for a in args if isinstance(a, torch.Tensor))
        new = torch.ops.aten.new_empty.default
        made = tuple(self._call(new, (like, list(t.shape)), {"dtype": t.dtype}) for t in results)
        return made if len(func._schema.returns) > 1 else made[0]

    def _indices(self, indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Masks among indices as the places where they hold, which is how a GPU takes them."""
        found: list[torch.Tensor | None] = []
        for index in indices:
            if index is None or index.dtype not in _MASKS:
                found.append(index)
                continue
            places = self._run(_NONZERO, (index,), {})
            found += [self._run(torch.ops.aten.select.int, (places, 1, d), {}) for d in range(index.ndim)]
        return found

    def _alias(self, args: Sequence[Any], out: Any) -> None:
        source = next((a for a in args if isinstance(a, torch.Tensor)), None)
        if source is None or not isinstance(out, torch.Tensor):
            return
        if id(source) in self._nodes:
            self._nodes[id(out)] = self._nodes[id(source)]
            self.keep.append(out)
        elif not isinstance(source, FakeTensor):
            self._constants[id(out)] = source
            self.keep.append(out)

    def _record(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        grad_node = torch._C._current_autograd_node()
        node = self._call_node(
            func,
            tuple(self._as_node(value) for value in args),
            {key: self._as_node(value) for key, value in kwargs.items()},
        )
        forward: fx.Node | None = None
        if grad_node is None:
            sequence = torch.autograd._get_sequence_nr() - 1
            if sequence != self._last_sequence:
                self._last_sequence = sequence
                self._by_sequence[sequence] = node
            module = self.modules[-1]
        else:
            forward = self._by_sequence.get(grad_node._sequence_nr())
            module = forward.meta["module"] if forward is not None else self._last_backward_module
            self._last_backward_module = module
        flop = self._flop(func, args, kwargs, out)
        node.meta.update(val=out, module=module, backward=grad_node is not None, forward=forward, flop=flop)
        self.known.recorded(node)
        self.keep.append((args, kwargs, out))
        if isinstance(out, torch.Tensor):
            self._nodes[id(out)] = node
        else:
            for position, tensor in enumerate(leaves(out)):
                if not isinstance(tensor, torch.Tensor):
                    continue  # a gradient that nobody asked for
                item = self._call_node(_item, (node, position), {})
                item.meta.update(val=tensor, module=module, backward=grad_node is not None, item_of=node)
                self._nodes[id(tensor)] = item

    def _call_node(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """`create_node`, which looks through all arguments it is given for symbolic sizes: here are none."""
        node = self.graph.create_node("call_function", func, name=_node_name(func))
        node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def _as_node(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._nodes.get(id(value)) or self._constant(value)
        return [self._as_node(item) for item in value] if isinstance(value, (list, tuple)) else value

    # Autograd takes a new gradient as it is where the tensor is real, and copies a fake one into a new tensor
    # (torch/csrc/autograd/functions/accumulate_grad.h, "stealable"): neither call is recorded.
    def _accumulates(self) -> bool:
        grad_node = torch._C._current_autograd_node()
        return grad_node is not None and grad_node.name().endswith("AccumulateGrad")

    def _takes_as_gradient(self, args: Sequence[Any]) -> bool:
        """Whether `copy_` would fill such a new tensor, which stands for the gradient from then on."""
        if storage_key(args[0]) not in self._new_gradients or not self._accumulates():
            return False
        self.stolen[storage_key(args[0])] = storage_key(args[1])
        self._nodes[id(args[0])] = self._nodes[id(args[1])]
        self.keep.append(args)
        return True

    def _flop(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
        """FLOP by torch's registry; with `fused_attention`, CPU attention counts as a GPU's does."""
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            return int(formula(*args, **kwargs, out_val=out))
        name = packet_name(func)
        if self.fused_attention and name.startswith(CPU_ATTENTION):
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if name.endswith("backward"):
                return int(sdpa_backward_flop_count(*(t.shape for t in tensors[:4])))
            return int(sdpa_flop_count(*(t.shape for t in tensors[:3])))
        return 0

    def _constant(self, value: torch.Tensor) -> fx.Node:
        node = self.graph.placeholder(f"constant_{len(self._nodes)}")
        node.meta.update(val=value, role="buffer", name=node.name)
        if id(value) in self._constants:
            node.meta["constant"] = self._constants[id(value)]
        self._nodes[id(value)] = node
        self.keep.append(value)
        return node

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Saved-tensor hook: note the storage that autograd keeps."""
        self.saved_storages.add(storage_key(tensor))
        self.keep.append(tensor)
        return tensor

    @contextmanager
    def module_paths(self, paths: Mapping[int, str]) -> Iterator[None]:
        """Follow the innermost module of the forward; `paths`: id(module) -> path."""

        def enter(module: nn.Module, args: Any) -> None:
            self.modules.append(paths.get(id(module), self.modules[-1]))

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self.modules.pop()

        before = nn.modules.module.register_module_forward_pre_hook(enter)
        after = nn.modules.module.register_module_forward_hook(leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()


def _item(value: Any, position: int) -> Any:
    return leaves(value)[position]


@cache
def _node_name(func: Any) -> str:
    """The name that torch.fx starts from."""
    return fx.Graph()._target_to_str(func)


def leaves(value: Any) -> list[Any]:
    """What an operator's arguments or results hold, lists and dictionaries opened, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else [value]


@cache
def packet_name(func: Any) -> str:
    """Name of an operator without its overload, such as aten.mm."""
    return str(func.overloadpacket)


def storage_key(tensor: torch.Tensor) -> int:
    """Identity of the storage behind a tensor."""
    return int(tensor.untyped_storage()._cdata)


def capture_step(
    module: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    loss_of: Callable[[Any], torch.Tensor],
    training: bool,
    paths: Mapping[int, str],
    names: Mapping[int, str],
    mode: FakeTensorMode,
    fused_attention: bool = False,
    autocast_to: str = "",
) -> Capture:
    """Record forward, loss and backward (or the forward alone) on fake tensors of `mode`.

    `autocast_to`: half-precision type of a torch.autocast around forward and loss (`cpu:bf16`: a CPU's), ""
    for none.

    `paths`: id(module) -> path and `names`: id(parameter or buffer) -> qualified name, of the whole model.
    """
    capture = Capture(mode, fused_attention=fused_attention)
    seen: set[int] = set()
    for role, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, tensor in named:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                capture.placeholder(names.get(id(tensor), name), tensor, role)
    for number, value in enumerate(pytree.tree_leaves((tuple(args), dict(kwargs)))):
        if isinstance(value, torch.Tensor) and id(value) not in seen:
            seen.add(id(value))
            capture.placeholder(f"input_{number}", value, "input")
    hooks = torch.autograd.graph.saved_tensors_hooks(capture.pack, lambda t: t)
    with torch.set_grad_enabled(training), capture, capture.module_paths(paths):
        if training:
            with hooks, autocast(autocast_to):
                loss = loss_of(module(*args, **kwargs))
            loss.backward()
        else:
            with autocast(autocast_to):
                module(*args, **kwargs)
    return capture
