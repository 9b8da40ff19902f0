"""What a benchmark is: a function that lists cases, each able to prepare one call.

    @register_benchmark("softmax")
    def softmax(bench: Bench) -> list[Case]: ...

Inputs come out of an arena of random numbers several times as large as the last-level cache. A training
step streams through far more memory than the cache holds, so what a call would find cold there (weights,
activations saved by forward) is rotated through the arena, and what it would find warm (the output of
the operator before) is one buffer. Outputs of forward operators stay alive in a ring, since a step keeps
them for backward: every call then writes memory it has not touched for a while.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

__all__ = [
    "BENCHMARKS",
    "ITEM_BYTES",
    "Bench",
    "Benchmark",
    "Call",
    "Case",
    "Rotation",
    "load_benchmarks",
    "register_benchmark",
]

Call = Callable[[], object]

ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Of the types that are measured."""
_GEMM_SIDE = 384


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator at one size. `prepare` makes its inputs and returns the call that is timed.

    `saved_output`: the result outlives the call in a real step (forward), so results are kept in a ring of
    `output_bytes` each. `n_ranks` > 0: a call that so many ranks make together, the others none.
    `calls`: how many of what is priced one call makes (a round trip is 2 transfers). `host_clock`: the
    host's time is wanted, also where kernels run beside it. `self_timed`: the call returns its seconds.
    `between_computation`: on a CPU, ranks compute for a while before each call, as in a step. `visits`: in
    how many places of the first round the case is timed; more than one where a small difference of two
    cases counts, which a slow moment of the machine would decide.
    """

    kind: str
    variant: str
    dtype: str
    dims: Mapping[str, int]
    prepare: Callable[[Bench], Call]
    output_bytes: int = 0
    saved_output: bool = False
    n_ranks: int = 0
    calls: int = 1
    host_clock: bool = False
    self_timed: bool = False
    between_computation: bool = False
    visits: int = 1


Benchmark = Callable[["Bench"], Sequence[Case]]

BENCHMARKS: Registry[Benchmark] = Registry("benchmark")
"""Name (an operator kind) -> the function that lists its cases."""


def register_benchmark(name: str) -> Callable[[Benchmark], Benchmark]:
    """Decorator that files a benchmark under an operator kind."""
    return BENCHMARKS.register(name)


def load_benchmarks() -> Registry[Benchmark]:
    """BENCHMARKS with every benchmark of the package registered."""
    from importlib import import_module
    from pkgutil import iter_modules

    import calibrate.benchmarks as package

    for module in iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return BENCHMARKS


class Bench:
    """The device under test: its arena, the dtypes worth measuring, and how large a case may be.

    `largest_s` bounds the estimated time of one call, `flop_per_s` and `bytes_per_s` are rough rates (from
    a probe of this device) that turn sizes into that estimate; `link_bytes_per_s` that of an all-reduce.
    `groups`: number of ranks -> this rank's process group of so many. `per_core`: busy threads on each core.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        cache_bytes: int,
        flop_per_s: float,
        bytes_per_s: float,
        largest_s: float,
        link_bytes_per_s: float = math.inf,
        n_points: float = 1.0,
        rank: int = 0,
        groups: Mapping[int, ProcessGroup] | None = None,
        per_core: float = 1.0,
    ) -> None:
        self.device = device
        self.rank = rank
        self.groups = dict(groups or {})
        self.per_core = per_core
        self.cache_bytes = cache_bytes
        self.flop_per_s = flop_per_s
        self.bytes_per_s = bytes_per_s
        self.largest_s = largest_s
        self.link_bytes_per_s = link_bytes_per_s
        self.n_points = n_points
        self.arena_bytes = max(4 * cache_bytes, _arena_bytes(device))
        self._arenas: dict[str, torch.Tensor] = {}
        self._cursor: dict[str, int] = {}

    @property
    def cuda(self) -> bool:
        """Whether kernels run beside the host."""
        return self.device.type == "cuda"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes to measure, the main one first."""
        return ("fp32", "bf16") if self.cuda else ("fp32",)

    @property
    def minor_dtypes(self) -> tuple[str, ...]:
        """Dtypes of which a few products are measured."""
        return ("fp16",) if self.cuda else ("bf16",)

    @property
    def largest_tensor_bytes(self) -> int:
        """No single operand is larger."""
        return self.arena_bytes // 2

    @property
    def world_size(self) -> int:
        """How many ranks measure together."""
        return max(self.groups, default=1)

    def group_start(self, n_ranks: int) -> int:
        """The first rank of this rank's group of so many."""
        return self.rank // n_ranks * n_ranks

    def members(self, n_ranks: int) -> int:
        """How many ranks, from the first on, are in groups of so many: what is left over does nothing."""
        return self.world_size // n_ranks * n_ranks

    def thread_s(self) -> float:
        """What this thread used of a processor, as it passes where busy ranks share a core, seconds."""
        return time.thread_time() * self.per_core

    def points(self, n: int) -> int:
        """A benchmark's usual number of sizes, scaled to the budget."""
        return max(3, round(n * self.n_points))

    def visits(self, n: int) -> int:
        """In how many places of the first round a case is timed, usually `n`, fewer on a small budget."""
        return max(1, round(n * min(1.0, self.n_points)))

    def fits(self, *, flop: float = 0.0, moved_bytes: float = 0.0) -> bool:
        """Whether one call is expected to stay under `largest_s`."""
        return flop / self.flop_per_s + moved_bytes / self.bytes_per_s <= self.largest_s

    def computation(self, seconds: float) -> Call:
        """GEMMs that take about so long, on operands that stay in the cache."""
        import torch

        a, b = self.rotate((_GEMM_SIDE, _GEMM_SIDE)), self.rotate((_GEMM_SIDE, _GEMM_SIDE))
        out = torch.empty(_GEMM_SIDE, _GEMM_SIDE, device=self.device)
        repeats = max(1, round(seconds * self.flop_per_s / (2 * _GEMM_SIDE**3)))

        def call() -> None:
            for _ in range(repeats):
                torch.mm(a(), b(), out=out)

        return call

    def take(self, shape: Sequence[int], dtype: str = "fp32") -> torch.Tensor:
        """A contiguous view of `shape` into the arena, at the place after the one last given.

        `dtype` "zeros" is fp32 out of an arena of its own, for calls that write their inputs.
        """
        arena = self._arena(dtype)
        n = math.prod(shape)
        if n > arena.numel():
            raise ValueError(f"{tuple(shape)} needs {n} elements, the arena of {dtype} has {arena.numel()}")
        start = self._cursor[dtype]
        if start + n > arena.numel():
            start = 0
        # whole cache lines, and not a multiple of the page: equal offsets would share cache sets
        self._cursor[dtype] = start + (n + 63) // 64 * 64 + 64
        return arena[start : start + n].view(*shape)

    def rotate(self, shape: Sequence[int], dtype: str = "fp32", *, cold: bool = True) -> Rotation:
        """Buffers given in turn: one after another through twice the cache if `cold`, else always one."""
        itemsize = 2 if dtype in ("bf16", "fp16") else 4
        size_bytes = max(1, math.prod(shape) * itemsize)
        count = min(64, max(2, math.ceil(2 * self.cache_bytes / size_bytes))) if cold else 1
        return Rotation([self.take(shape, dtype) for _ in range(count)])

    def integers(self, shape: Sequence[int], high: int) -> torch.Tensor:
        """int64 numbers in [0, high), the same at every call."""
        import torch

        generator = torch.Generator().manual_seed(7)
        return torch.randint(high, tuple(shape), generator=generator).to(self.device)

    def _arena(self, dtype: str) -> torch.Tensor:
        import torch

        if dtype == "zeros" and dtype not in self._arenas:
            # written, not only reserved: untouched pages are all one page of zeros in the cache
            self._arenas[dtype] = torch.empty(self.arena_bytes // 4, device=self.device).zero_()
            self._cursor[dtype] = 0
        if dtype not in self._arenas:
            kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
            generator = torch.Generator(self.device).manual_seed(7)
            n = self.arena_bytes // kind.itemsize
            block = torch.empty(min(n, 1 << 20), device=self.device).uniform_(-1.0, 1.0, generator=generator)
            self._arenas[dtype] = block.to(kind).repeat(math.ceil(n / block.numel()))[:n]
            self._cursor[dtype] = 0
        return self._arenas[dtype]


def _arena_bytes(device: torch.device) -> int:
    """Enough for the largest operands: 128 MiB on a CPU, up to 2 GiB of what is free on a GPU."""
    if device.type == "cpu":
        return 128 << 20
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return min(2 << 30, free // 16)


class Rotation:
    """Buffers handed out in turn."""

    __slots__ = ("_at", "buffers")

    def __init__(self, buffers: Sequence[torch.Tensor]) -> None:
        self.buffers = tuple(buffers)
        self._at = -1

    def __call__(self) -> torch.Tensor:
        """The next buffer."""
        self._at = (self._at + 1) % len(self.buffers)
        return self.buffers[self._at]
