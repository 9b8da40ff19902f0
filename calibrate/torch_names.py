"""What torch has renamed, by the name that the installed release knows: the old ones warn where both are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["current_name", "unsynced_buffers"]


def current_name(new: str, old: str) -> Callable[..., object]:
    """A function of torch.distributed by its new name where torch has it, else by its old one."""
    import torch.distributed as dist

    found: Callable[..., object] = getattr(dist, new, None) or getattr(dist, old)
    return found


def unsynced_buffers() -> dict[str, Any]:
    """The argument of DistributedDataParallel with which forward passes leave each rank its own buffers.

    The new one still sends rank 0's once, when the module is wrapped.
    """
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
