"""Peak bytes of live tensors on a device without an allocator that counts (CPU).

Every storage that an operator makes is watched until it is freed; what FSDP does, which frees and refills
storages in place, is told by the storages themselves.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Self

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
        self._sizes: dict[weakref.ref[torch.UntypedStorage], int] = {}
        self._live_bytes = 0
        for tensor in local_tensors(known):
            self._note(tensor.untyped_storage())
        self.peak_bytes = self._live_bytes

    def live_bytes(self) -> int:
        """Bytes of all live storages now."""
        return self._live_bytes

    def __enter__(self) -> Self:
        resize = torch.UntypedStorage.resize_

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            found = resize(storage, size)
            if weakref.ref(storage) in self._sizes:
                self._note(storage)
            return found

        self._resize = resize
        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(t is not torch.Tensor and "DTensor" in t.__name__ for t in types):
            return NotImplemented  # its local operators come by here again
        output = func(*args, **(kwargs or {}))
        for tensor in local_tensors(pytree.tree_leaves(output)):
            if tensor.device.type != "meta":
                self._note(tensor.untyped_storage())
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        return output

    def _note(self, storage: torch.UntypedStorage) -> None:
        """Count a storage at the size that it has now."""
        key, size = weakref.ref(storage, self._forget), storage.nbytes()
        self._live_bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size  # under the first key, which is kept

    def _forget(self, key: weakref.ref[torch.UntypedStorage]) -> None:
        self._live_bytes -= self._sizes.pop(key, 0)
