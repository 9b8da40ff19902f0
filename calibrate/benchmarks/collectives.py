"""Collectives and point-to-point transfers over 1 KiB to 64 MiB.

Sizes as nccl-tests counts them: the full (gathered) buffer for all-gather and reduce-scatter, all that
one rank sends for all-to-all, the message for point-to-point. On a device calls follow each other back to
back. On a CPU the backend's threads share the rank's cores with its computation: a transfer that comes after
some milliseconds of it waits for the other rank and for the scheduler, so it is timed there. All groups of
one size exchange at once, as those of a plan do: they share cores, links and bridges. Broadcast changes its
root every call, and a one-way transfer is half a round trip, so that a call cannot begin before the one
before it has arrived.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.torch_names import current_name

__all__ = ["SIZES_BYTES", "collective_case", "collective_cases"]

SIZES_BYTES = tuple(1 << power for power in range(10, 27, 2))
"""1 KiB to 64 MiB."""
_ALWAYS_BYTES = 1 << 20
_LONGEST_TRANSFER_S = 0.2
"""Over a slow link (Ethernet) larger messages only repeat what those below say of its bandwidth."""

_Maker = Callable[[Bench, int, int], Call]


@register_benchmark("collectives")
def collective_cases(bench: Bench) -> list[Case]:
    """Every collective of the profile at every size, for each group of ranks there is."""
    largest = 2 * bench.bytes_per_s * bench.largest_s
    slow = max(_ALWAYS_BYTES, bench.link_bytes_per_s * _LONGEST_TRANSFER_S)
    return [
        collective_case(kind, n_ranks, size)
        for n_ranks in sorted(bench.groups)
        if n_ranks > 1
        for kind in _MAKERS
        if n_ranks == 2 or not kind.startswith("p2p")
        for size in SIZES_BYTES
        if size <= slow and (size <= min(largest, bench.largest_tensor_bytes) or size <= SIZES_BYTES[-2])
    ]


def collective_case(kind: str, n_ranks: int, size_bytes: int) -> Case:
    """One collective of every group of `n_ranks` ranks at one size."""
    return Case(
        kind=kind,
        variant="",
        dtype="fp32",
        dims={"size_bytes": size_bytes, "n_ranks": n_ranks},
        prepare=_preparation(_MAKERS[kind], n_ranks, size_bytes),
        n_ranks=n_ranks,
        calls=2 if kind == "p2p" else 1,
        between_computation=True,
    )


def _preparation(make: _Maker, n_ranks: int, size_bytes: int) -> Callable[[Bench], Call]:
    return lambda bench: make(bench, n_ranks, max(n_ranks, size_bytes // 4 // n_ranks * n_ranks))


def _all_reduce(bench: Bench, n_ranks: int, elements: int) -> Call:
    import torch.distributed as dist

    # zeros stay zero: a sum in place of anything else overflows within a few dozen calls
    buffer, group = bench.rotate((elements,), "zeros"), bench.groups[n_ranks]
    return lambda: dist.all_reduce(buffer(), group=group)


def _all_gather(bench: Bench, n_ranks: int, elements: int) -> Call:
    part, whole = bench.rotate((elements // n_ranks,), "zeros"), bench.rotate((elements,), "zeros")
    gather, group = current_name("all_gather_single", "all_gather_into_tensor"), bench.groups[n_ranks]
    return lambda: gather(whole(), part(), group=group)


def _reduce_scatter(bench: Bench, n_ranks: int, elements: int) -> Call:
    part, whole = bench.rotate((elements // n_ranks,), "zeros"), bench.rotate((elements,), "zeros")
    scatter, group = current_name("reduce_scatter_single", "reduce_scatter_tensor"), bench.groups[n_ranks]
    return lambda: scatter(part(), whole(), group=group)


def _all_to_all(bench: Bench, n_ranks: int, elements: int) -> Call:
    import torch.distributed as dist

    sent, received = bench.rotate((elements,), "zeros"), bench.rotate((elements,), "zeros")
    group = bench.groups[n_ranks]
    return lambda: dist.all_to_all_single(received(), sent(), group=group)


def _broadcast(bench: Bench, n_ranks: int, elements: int) -> Call:
    import torch.distributed as dist

    buffer, group = bench.rotate((elements,), "zeros"), bench.groups[n_ranks]
    first, root = bench.group_start(n_ranks), [0]

    def call() -> None:
        root[0] = (root[0] + 1) % n_ranks
        dist.broadcast(buffer(), src=first + root[0], group=group)

    return call


def _one_way(bench: Bench, n_ranks: int, elements: int) -> Call:
    import torch.distributed as dist

    buffer, group = bench.rotate((elements,), "zeros"), bench.groups[n_ranks]
    first = bench.group_start(n_ranks)

    def call() -> None:
        if bench.rank == first:
            dist.send(buffer(), first + 1, group=group)
            dist.recv(buffer(), first + 1, group=group)
        else:
            dist.recv(buffer(), first, group=group)
            dist.send(buffer(), first, group=group)

    return call


def _both_ways(bench: Bench, n_ranks: int, elements: int) -> Call:
    import torch.distributed as dist

    sent, received = bench.rotate((elements,), "zeros"), bench.rotate((elements,), "zeros")
    group, peer = bench.groups[n_ranks], 2 * bench.group_start(n_ranks) + 1 - bench.rank

    def call() -> None:
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent(), peer, group=group),
                dist.P2POp(dist.irecv, received(), peer, group=group),
            ]
        )
        for work in works:
            work.wait()

    return call


_MAKERS: dict[str, _Maker] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "p2p": _one_way,
    "p2p_bidirectional": _both_ways,
}
