"""This process among the others: which rank it is, its device, its process groups, and how ranks agree."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from calibrate.timing import Agree
from calibrate.torch_names import current_name
from costmodel.errors import UsageError
from costmodel.hardware.cores import core_ids

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

__all__ = ["Ranks", "agree_over", "join", "joined_by_launcher", "keep_freed_memory", "leave", "pin_rank"]

_MALLOC_SETTINGS = {
    "M_TRIM_THRESHOLD": (-1, -1),
    "M_TOP_PAD": (-2, 64 << 20),
    "M_MMAP_MAX": (-4, 0),
    "M_ARENA_MAX": (-8, 1),
}
"""Of mallopt(3), number and value: give nothing back, take large pieces, no mapping of single blocks, one
heap for all threads."""
_TOUCHED_BYTES = 768 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Rank 0 keeps the journal. `groups`: n -> this rank's group of n consecutive ranks, for n = 2, 4, ..,
    world_size; that of the first n for a rank that is left over. `per_core`: busy threads on each core."""

    rank: int
    world_size: int
    device: torch.device
    backend: str
    groups: dict[int, ProcessGroup]
    agree: Agree
    per_core: float = 1.0


def joined_by_launcher() -> bool:
    """Whether torchrun, Slurm or another launcher has started this process as one of several ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def join(*, backend: str | None, timeout_s: float) -> Ranks:
    """Join the ranks named by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Raises UsageError where the backend does not go with the device.
    """
    import torch
    import torch.distributed as dist

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    cuda = torch.cuda.is_available() and backend != "gloo"
    backend = backend or ("nccl" if cuda else "gloo")
    if backend not in ("gloo", "nccl") or (backend == "nccl" and not cuda):
        raise UsageError(
            f"backend {backend!r} does not go with this machine: nccl needs a CUDA device, gloo runs on a CPU"
        )
    device = torch.device("cpu")
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    if cuda:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
        pin_rank(threads=threads)
    limit = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=limit)
    sizes = {world_size} | {1 << p for p in range(1, world_size.bit_length()) if 1 << p <= world_size}
    groups = {}
    for n in sorted(sizes - {1}):
        for first in range(0, world_size - n + 1, n):  # every rank makes every group, in one order
            group = dist.new_group(list(range(first, first + n)), timeout=limit, backend=backend)
            if first == 0 or first <= rank < first + n:
                groups[n] = group
    control = dist.new_group(backend="gloo", timeout=limit)
    return Ranks(
        rank=rank,
        world_size=world_size,
        device=device,
        backend=backend,
        groups=groups,
        agree=agree_over(control, world_size, device=torch.device("cpu")),
        per_core=_threads_per_core(control, world_size, threads),
    )


def _threads_per_core(control: ProcessGroup, world_size: int, threads: int) -> float:
    """Busy threads of all ranks on this host, over the cores that any of them may use; at least 1."""
    import torch.distributed as dist

    here = socket.gethostname()
    places: list[tuple[str, set[int], int] | None] = [None] * world_size
    dist.all_gather_object(places, (here, core_ids(), threads), group=control)
    local = [place for place in places if place is not None and place[0] == here]
    cores = set().union(*(cores for _, cores, _ in local))
    return max(1.0, sum(n for _, _, n in local) / len(cores))


def pin_rank(*, threads: int) -> bool:
    """Give this CPU rank `threads` cores of its own, where there are enough for all local ranks.

    The backend's threads, started later, inherit them: communication takes its time from the rank's own
    cores, in calibration as in real runs. Returns whether it was done.
    """
    cores = sorted(core_ids())
    local = int(os.environ.get("LOCAL_RANK", "0"))
    n_local = _local_ranks()
    if n_local * threads > len(cores):
        return False
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, set(cores[local * threads : (local + 1) * threads]))
        return True
    return False


def keep_freed_memory(touch_bytes: int = _TOUCHED_BYTES) -> bool:
    """Let this process keep the memory it frees, as a GPU's caching allocator does, and touch some now.

    Without it the C library gives large blocks back to the system and a training step touches them anew:
    thousands of page faults a step, of one to ten microseconds each in a virtual machine. Calibration and
    real runs on a CPU both do this. `touch_bytes` are touched, at most a quarter of this rank's share of
    the memory there is. Returns whether the C library took every setting (glibc does).
    """
    import torch

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    if not all(mallopt(number, value) == 1 for number, value in _MALLOC_SETTINGS.values()):
        return False
    share = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _local_ranks()
    torch.empty(min(touch_bytes, share // 4), dtype=torch.uint8).fill_(0)
    return True


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


def leave() -> None:
    """Destroy the process group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def agree_over(group: ProcessGroup | None, n_ranks: int, *, device: torch.device) -> Agree:
    """An all-gather of a few numbers over the group; with one rank, its own numbers."""
    import torch

    gather = current_name("all_gather_single", "all_gather_into_tensor")

    def agree(values: Sequence[float]) -> list[list[float]]:
        if n_ranks == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64, device=device)
        whole = torch.empty(n_ranks * len(values), dtype=torch.float64, device=device)
        gather(whole, mine, group=group)
        return whole.view(n_ranks, len(values)).tolist()  # type: ignore[no-any-return]

    return agree
