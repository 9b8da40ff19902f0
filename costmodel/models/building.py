"""Calling a model's builder inside a FakeTensorMode: without weights where it can, else once with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from costmodel.errors import ModelArgumentError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["MEMORY_SHARE", "Made", "built"]

Made = TypeVar("Made")
MEMORY_SHARE = 0.5
"""Of this machine's memory that the parameters of a model built with values may take."""


def built(make: Callable[[], Made], name: str, *, without_values: bool = True) -> tuple[Made, bool]:
    """What `make` returns, and whether it could be made without values.

    Builders that look at values (rates out of `torch.linspace(...).tolist()`, say) are called again on real
    tensors. Raises what `make` raises there, ModelArgumentError where its parameters take too much memory.
    """
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None:
        return make(), True
    if without_values:
        try:
            with _as_real_modules():
                return make(), True
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    else:
        why = "it looks at values"
    with unset_fake_temporarily(), _of_bounded_size(name, why):
        return make(), False


@contextmanager
def _as_real_modules() -> Iterator[None]:
    """Inside, modules of fake tensors are converted (`.to(torch.bfloat16)`) and deep-copied as real ones."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    swap, deepcopy = torch.utils.swap_tensors, FakeTensor.__deepcopy__

    def swapped(a: torch.Tensor, b: torch.Tensor) -> None:
        if not isinstance(a, FakeTensor) or not isinstance(b, FakeTensor):
            swap(a, b)
            return
        a.data, a.fake_device, a.constant = b.data, b.fake_device, b.constant  # b is thrown away

    def copied(tensor: FakeTensor, memo: dict[int, Any]) -> torch.Tensor:
        if id(tensor) not in memo:
            with torch.no_grad():
                new = tensor.detach().clone()
            if isinstance(tensor, torch.nn.Parameter):
                memo[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad)
            else:
                memo[id(tensor)] = new.requires_grad_(tensor.requires_grad)
        made: torch.Tensor = memo[id(tensor)]
        return made

    torch.utils.swap_tensors = swapped
    FakeTensor.__deepcopy__ = copied  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.utils.swap_tensors = swap
        FakeTensor.__deepcopy__ = deepcopy  # type: ignore[method-assign]


@contextmanager
def _of_bounded_size(name: str, why: str) -> Iterator[None]:
    """Inside, a model whose parameters would take more than their share of memory is refused."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    limit = int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    taken = 0

    def count(module: nn.Module, key: str, parameter: Any) -> None:
        nonlocal taken
        if parameter is None or parameter.is_meta:
            return
        taken += parameter.nbytes
        if taken > limit:
            raise ModelArgumentError(
                f"model {name!r} cannot be built without values ({why}), and with them its parameters take "
                f"more than {limit} bytes, {MEMORY_SHARE:g} of this machine's memory; build it without "
                "reading values"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
