"""torch.autocast in a trace: what it casts, as a GPU's autocast does or a CPU's.

The trace runs on fake CPU tensors under torch's own autocast, so products, their casts, the cache of cast
weights (once in a forward) and the casts of gradients are torch's. A CPU's autocast runs fewer operators in
fp32 than a GPU's: for a GPU the rest is cast here, by the list of `costmodel/data/autocast.json`, and what a
model says of CUDA's autocast by name holds for the trace's (where a decorator said it when the model's module
was imported, it does not).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from costmodel.errors import TraceError

__all__ = ["autocast", "fp32_operators"]

_DATA = Path(__file__).parents[1] / "data" / "autocast.json"
_ON_CPU = "cpu:"
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SOFTMAX: Mapping[str, Callable[..., torch.Tensor]] = {
    "softmax": torch.ops.aten._softmax,
    "log_softmax": torch.ops.aten._log_softmax,
}


@lru_cache(maxsize=1)
def fp32_operators() -> tuple[frozenset[str], frozenset[str]]:
    """Names of functions that run in fp32: those whose arguments are cast, and those told to make fp32 (a
    softmax reads fp16 and writes fp32 in one kernel; bf16 is cast first, as are the others)."""
    data = json.loads(_DATA.read_text())
    return frozenset(data["fp32"]), frozenset(data["own_dtype"])


@contextmanager
def autocast(dtype: str) -> Iterator[None]:
    """Inside, functions run as under torch.autocast(dtype) on a GPU, of `cpu:dtype` on a CPU; an empty
    `dtype`: as they are.

    Raises TraceError for a type that autocast has not.
    """
    if not dtype:
        yield
        return
    name = dtype.removeprefix(_ON_CPU)
    if name not in _TYPES:
        raise TraceError(f"autocast={dtype!r}: autocast computes in one of {', '.join(_TYPES)}")
    on_cpu = name != dtype
    with ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", dtype=_TYPES[name]))
        if not on_cpu:
            stack.enter_context(_named_cuda())
            stack.enter_context(_InFp32())
        yield


@contextmanager
def _named_cuda() -> Iterator[None]:
    """Inside, `torch.autocast("cuda", ...)` and `torch.cuda.amp.autocast(...)` mean the autocast of fake CPU
    tensors; made without a GPU they would be turned off whatever is said."""
    plain = torch.autocast.__init__

    def named(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        plain(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.autocast.__init__ = named  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__init__ = plain  # type: ignore[method-assign]


class _InFp32(TorchFunctionMode):
    """Runs the listed functions in fp32."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = dict(kwargs or {})
        if not torch.is_autocast_enabled("cpu"):  # turned off for a part of the model
            return func(*args, **values)
        name = getattr(func, "__name__", "").strip("_")
        before, inside = fp32_operators()
        if name in before:
            args, values = pytree.tree_map(_as_fp32, (tuple(args), values))
        elif name in inside and args and _is_half(args[0]) and values.get("dtype") in (None, torch.float32):
            dim = values.get("dim", args[1] if len(args) > 1 else None)
            if name in _SOFTMAX and dim is not None and args[0].dtype == torch.float16:
                return _SOFTMAX[name](args[0], dim, True)
            values["dtype"] = torch.float32
        return func(*args, **values)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in _TYPES.values()


def _as_fp32(value: Any) -> Any:
    return value.float() if _is_half(value) else value
