"""Peak bytes of live tensors on a device without an allocator that counts (CPU).

Every storage that an operator makes is watched until it is freed; its size is asked for anew at each
reading, since FSDP frees and refills storages in place.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["MemoryWatch", "local_tensors"]


def local_tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The plain tensors behind some values: of a DTensor its local one; what is no tensor is left out."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            local = getattr(value, "_local_tensor", value)
            found.append(getattr(local, "elem", local))
    return found


class MemoryWatch(TorchDispatchMode):
    """Context in which `peak_bytes` is the highest sum of live tensor bytes seen.

    `known` tensors (parameters, optimizer state) are there from the start.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._live: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in local_tensors(known):
            self._live.add(tensor.untyped_storage())
        self.peak_bytes = self.live_bytes()

    def live_bytes(self) -> int:
        """Bytes of all live storages now."""
        return sum(storage.nbytes() for storage in self._live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t is not torch.Tensor and "DTensor" in t.__name__ for t in types):
            return NotImplemented  # its local operators come by here again
        output = func(*args, **(kwargs or {}))
        fresh = False
        for tensor in local_tensors(pytree.tree_leaves(output)):
            if tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            if storage not in self._live:
                self._live.add(storage)
                fresh = True
        if fresh:
            self.peak_bytes = max(self.peak_bytes, self.live_bytes())
        return output
