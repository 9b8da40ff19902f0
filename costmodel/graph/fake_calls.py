"""Operators on fake tensors: torch's own answers, most of them without asking it again.

A FakeTensorMode takes one to ten milliseconds a call, in Python functions of shapes and in a cache whose key
takes longer than many answers; a trace makes several hundred calls. Here sizes and strides come from
`costmodel.graph.layouts`. Types come from the mode's answer to the first call of that operator on arguments
of those types, which must agree with the rule as well; where it does not, and for what has no rule, the mode
is asked every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from costmodel.graph.layouts import FILLS, LAYOUTS, VIEWS, Layout, elementwise, is_plain_view

__all__ = ["FakeCalls"]

_aten = torch.ops.aten

_CPU = torch.device("cpu")
_META = torch.device("meta")
_RESHAPES = frozenset((_aten.view.default, _aten._unsafe_view.default))
_NUMBERS = (int, float)

_Types = tuple[torch.dtype | None, ...]


class FakeCalls:
    """Calls under one FakeTensorMode."""

    _known: ClassVar[dict[Any, _Types | None]] = {}
    """Operator and types of its arguments -> types of its results; None where the rule is wrong."""

    _shapes: ClassVar[dict[Any, Layout]] = {}
    """Layouts of views that torch's own two answers differ on, by what they are views of."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        template = FakeTensor(mode, torch.empty(0, device=_META), _CPU)
        self._attributes = dict(template.__dict__)

    def __call__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What `func(*args, **kwargs)` gives in the mode."""
        tensors: list[torch.Tensor] = []
        key = self._key(func, args, kwargs, tensors)
        if key is None or not tensors:
            return func(*args, **kwargs)
        if func in VIEWS or (func in _RESHAPES and is_plain_view(*args)):
            return self._view(func, args, kwargs)
        if func in _RESHAPES:
            return self._reshaped(func, *args)
        known = self._known.get(key, ())
        if known is None:
            return func(*args, **kwargs)
        rule = LAYOUTS.get(func)
        if rule is not None:
            layouts = rule(*args, **kwargs)
        elif func in FILLS:
            return self._in_place(func, args, kwargs, key, tensors)
        elif torch.Tag.pointwise in func.tags:
            if func._schema.is_mutable:
                return self._in_place(func, args, kwargs, key, tensors)
            layout = elementwise(tuple((tuple(t.shape), t.stride()) for t in tensors))
            layouts = None if layout is None else (layout,)
        else:
            return func(*args, **kwargs)
        if layouts is None:
            return func(*args, **kwargs)
        if not known:
            out = func(*args, **kwargs)
            self._known[key] = self._types_of(out, layouts, tensors)
            return out
        with torch._C._DisableTorchDispatch():
            made = tuple(
                None if layout is None or dtype is None else self._new(layout, dtype)
                for layout, dtype in zip(layouts, known, strict=True)
            )
        return made[0] if len(made) == 1 else made

    def _key(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: list[torch.Tensor]
    ) -> Any:
        """What the types of results follow from; None where a tensor is not one of this mode's."""
        try:
            kinds = [self._kind(value, tensors) for value in (*args, *kwargs.items())]
        except TypeError:
            return None
        return (func, torch.get_default_dtype(), *kinds)

    def _kind(self, value: Any, tensors: list[torch.Tensor]) -> Any:
        if isinstance(value, FakeTensor):
            other = value.fake_mode is not self._mode or value.fake_device != _CPU
            if other or value.constant is not None or value.layout is not torch.strided:
                raise TypeError
            tensors.append(value)
            return value.dtype, tuple(size == 1 for size in value.shape)
        if isinstance(value, torch.Tensor):
            raise TypeError
        if isinstance(value, (list, tuple)):
            if len(value) > 4 and isinstance(value[0], int):
                return int
            return tuple(self._kind(v, tensors) for v in value)
        if type(value) in _NUMBERS:
            return type(value)
        return value

    def _new(self, layout: Layout, dtype: torch.dtype) -> FakeTensor:
        return self._wrapped(torch.empty_strided(*layout, dtype=dtype, device=_META))

    def _wrapped(self, meta: torch.Tensor) -> FakeTensor:
        """`FakeTensor(mode, meta, cpu)`, in a sixth of the time."""
        made = torch.Tensor._make_subclass(
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=_CPU
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        made.__dict__.update(self._attributes)
        return made

    def _view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with in_kernel_invocation_manager(self._mode):
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor):
                return self._wrapped(out)
            return [self._wrapped(t) for t in out]

    def _reshaped(self, func: Any, tensor: torch.Tensor, size: Sequence[int]) -> Any:
        key = (func, tuple(tensor.shape), tensor.stride(), tuple(size))
        layout = self._shapes.get(key)
        if layout is not None:
            return self._view(_aten.as_strided.default, (tensor, *layout, tensor.storage_offset()), {})
        out = func(tensor, size)
        if out.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            self._shapes[key] = tuple(out.shape), out.stride()
        return out

    def _in_place(self, func: Any, args: Any, kwargs: Any, key: Any, tensors: list[torch.Tensor]) -> Any:
        own = tensors[0]
        layout = elementwise(tuple((tuple(t.shape), t.stride()) for t in tensors))
        if (
            args[0] is not own
            or layout is None
            or layout[0] != own.shape
            or not func._schema.name.endswith("_")
        ):
            return func(*args, **kwargs)
        if self._known.get(key):
            return own
        out = func(*args, **kwargs)
        self._known[key] = (own.dtype,) if out is own else None
        return out

    def _types_of(
        self, out: Any, layouts: Sequence[Layout | None], arguments: Iterable[torch.Tensor]
    ) -> _Types | None:
        results = (out,) if isinstance(out, torch.Tensor) else out
        if not isinstance(results, tuple) or len(results) != len(layouts):
            return None
        types: list[torch.dtype | None] = []
        storages = {t.untyped_storage()._cdata for t in arguments}
        for result, layout in zip(results, layouts, strict=True):
            if result is None and layout is None:
                types.append(None)
                continue
            if (
                not isinstance(result, FakeTensor)
                or layout is None
                or (tuple(result.shape), result.stride()) != layout
                or result.storage_offset()
                or result.fake_device != _CPU
                or result.constant is not None
                or result.untyped_storage()._cdata in storages
            ):
                return None
            types.append(result.dtype)
        return tuple(types)
