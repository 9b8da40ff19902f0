"""From recorded fx nodes to the operators and tensors of a ModelGraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from costmodel.graph.capture import Capture, leaves, packet_name, storage_key
from costmodel.graph.model_graph import Operator, Phase, TensorInfo, TensorRole
from costmodel.operator_costs import OPERATOR_COSTS, Call, Piece, TensorMeta

__all__ = ["Reader", "dtype_name"]

_DTYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
    torch.float8_e4m3fn: "fp8",
}
_NO_WORK = ("aten.empty", "aten.empty_like", "aten.empty_strided", "aten.new_empty", "aten.new_empty_strided")


def dtype_name(dtype: torch.dtype) -> str:
    """The project's short name of a torch type."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What a call returned: positions among its results, tensor indices and the tensors."""

    positions: tuple[int, ...]
    nodes: tuple[fx.Node, ...]
    indices: tuple[int, ...]
    tensors: tuple[torch.Tensor, ...]

    def at(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Tensor indices of the results at these positions."""
        return tuple(i for at, i in zip(self.positions, self.indices, strict=True) if at in positions)


class Reader:
    """Numbers tensors and operators of one capture."""

    def __init__(self, capture: Capture, gradients: Sequence[torch.Tensor]) -> None:
        self.capture = capture
        self.tensors: dict[int, TensorInfo] = {}
        self.operators: list[Operator] = []
        self.node_of: list[fx.Node] = []
        """The node of each operator."""
        self._index: dict[fx.Node, int] = {}
        self._base: dict[int, int] = {}
        self._operator_of: dict[fx.Node, int] = {}
        self._metas: dict[fx.Node, TensorMeta] = {}
        self._trains = bool(gradients)
        keys = (storage_key(g) for g in gradients)
        self._gradients = {capture.stolen.get(key, key) for key in keys}
        for node in capture.graph.nodes:
            if node.op == "placeholder":
                self._tensor(node, node.meta["val"])
        for node in capture.graph.nodes:
            if node.op == "call_function" and "item_of" not in node.meta:
                self._operator(node)

    def _tensor(self, node: fx.Node, value: torch.Tensor) -> int:
        if node in self._index:
            return self._index[node]
        index = len(self.tensors)
        self._index[node] = index
        key = storage_key(value)
        base = self._base.setdefault(key, index)
        role = TensorRole(node.meta.get("role", "activation"))
        if role is TensorRole.ACTIVATION and node.meta.get("backward") and key in self._gradients:
            role = TensorRole.GRADIENT
        self.tensors[index] = TensorInfo(
            index=index,
            shape=tuple(value.shape),
            dtype=dtype_name(value.dtype),
            role=role,
            size_bytes=value.untyped_storage().nbytes() if base == index else 0,
            name=node.meta.get("name", node.name),
            view_of=None if base == index else base,
            saved=base == index
            and key in self.capture.saved_storages
            and role not in (TensorRole.PARAMETER, TensorRole.BUFFER),
            requires_grad=bool(value.requires_grad),
            frozen=role is TensorRole.PARAMETER and not value.requires_grad,
            unused=role is TensorRole.PARAMETER
            and self._trains
            and value.requires_grad
            and value.grad is None,
        )
        return index

    def _result(self, node: fx.Node) -> _Result:
        value = node.meta["val"]
        if isinstance(value, torch.Tensor):
            index = self._tensor(node, value)
            return _Result(positions=(0,), nodes=(node,), indices=(index,), tensors=(value,))
        items = [user for user in node.users if user.meta.get("item_of") is node]
        items.sort(key=lambda item: int(item.args[1]))  # type: ignore[arg-type]
        return _Result(
            positions=tuple(int(item.args[1]) for item in items),  # type: ignore[arg-type]
            nodes=tuple(items),
            indices=tuple(self._tensor(item, item.meta["val"]) for item in items),
            tensors=tuple(item.meta["val"] for item in items),
        )

    def _operator(self, node: fx.Node) -> None:
        func: Any = node.target
        inputs = [n for n in leaves((node.args, node.kwargs)) if isinstance(n, fx.Node)]
        result = self._result(node)
        call = self._call(node, func, inputs, result)
        forward = node.meta["forward"]
        for piece in self._pieces(node, call, inputs, result):
            made = result.positions if piece.outputs is None else piece.outputs
            index = len(self.operators)
            self._operator_of.setdefault(node, index)
            self.node_of.append(node)
            self.operators.append(
                Operator(
                    index=index,
                    target=str(func),
                    kind=piece.kind,
                    variant=piece.variant,
                    dtype=call.dtype,
                    dims=piece.dims,
                    flop=piece.flop,
                    bytes_read=piece.read_bytes,
                    bytes_written=piece.written_bytes,
                    inputs=tuple(self._index[n] for n in inputs),
                    outputs=result.at(made),
                    phase=Phase.BACKWARD if node.meta["backward"] else Phase.FORWARD,
                    module=node.meta["module"],
                    forward_index=None if forward is None else self._operator_of.get(forward),
                    arguments={**_integer_arguments(func, node.args, node.kwargs), **piece.arguments},
                )
            )

    def _call(self, node: fx.Node, func: Any, inputs: list[fx.Node], result: _Result) -> Call:
        return Call(
            target=packet_name(func),
            args=tuple(self._described(value) for value in node.args),
            kwargs={key: self._described(value) for key, value in node.kwargs.items()},
            tensors=tuple(self._meta(n) for n in inputs),
            outputs=tuple(self._meta(n) for n in result.nodes),
            flop=node.meta["flop"],
        )

    def _described(self, value: Any) -> Any:
        """An argument with its tensors as TensorMeta."""
        if isinstance(value, fx.Node):
            return self._meta(value)
        return [self._described(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _meta(self, node: fx.Node) -> TensorMeta:
        if node not in self._metas:
            self._metas[node] = _meta(self._index[node], node.meta["val"])
        return self._metas[node]

    def _pieces(self, node: fx.Node, call: Call, inputs: list[fx.Node], result: _Result) -> Sequence[Piece]:
        func: Any = node.target
        mutates = func._schema.is_mutable
        storages = {storage_key(n.meta["val"]) for n in inputs}
        view = not mutates and all(storage_key(t) in storages for t in result.tensors)
        nothing = call.target in _NO_WORK or all(t.numel == 0 for t in call.outputs)
        if (view and result.tensors and not call.flop) or nothing:
            return [Piece(kind="host")]
        rule = OPERATOR_COSTS.get(call.target)
        if rule is not None:
            return rule(call)
        moved = call.read_bytes + call.written_bytes
        if torch.Tag.pointwise in func.tags:
            base = OPERATOR_COSTS["aten.where"]
            return base(call)
        return [
            Piece(
                kind="unmodelled",
                dims={"bytes": moved},
                flop=call.flop,
                read_bytes=call.read_bytes,
                written_bytes=call.written_bytes,
            )
        ]


def _meta(index: int, t: torch.Tensor) -> TensorMeta:
    return TensorMeta(
        index=index,
        shape=tuple(t.shape),
        stride=tuple(t.stride()),
        dtype=dtype_name(t.dtype),
        element_bytes=t.element_size(),
        is_floating=t.is_floating_point(),
    )


def _integer_arguments(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, int | tuple[int, ...]]:
    found: dict[str, int | tuple[int, ...]] = {}
    for name, value in [*zip(_argument_names(func), args, strict=False), *kwargs.items()]:
        if type(value) is int:
            found[name] = value
        elif isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
            found[name] = tuple(value)
    return found


@cache
def _argument_names(func: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)
