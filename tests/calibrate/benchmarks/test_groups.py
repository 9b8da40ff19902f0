"""Groups of some of the ranks: all of one size exchange at once, each within itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.calibrate.machines import a_bench

_WORLD = 4


def _exchange(rank: int, folder: str) -> None:
    import os

    import torch

    from calibrate.benchmarks.collectives import collective_cases
    from calibrate.ranks import join, leave

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(_WORLD), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": Path(folder, "port").read_text()}
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    ranks = join(backend="gloo", timeout_s=60.0)
    assert ranks.groups[2].size() == 2
    assert ranks.groups[2].rank() == rank % 2
    assert ranks.per_core == max(1.0, _WORLD / cores)
    bench = a_bench(rank=rank, groups=ranks.groups)
    called = []
    for case in collective_cases(bench):
        if case.dims["size_bytes"] <= 1 << 14:
            call = case.prepare(bench)
            for _ in range(3):
                call()
            called.append(f"{case.kind} {case.n_ranks}")
    leave()
    Path(folder, f"called.{rank}").write_text("\n".join(called))


@pytest.mark.distributed
@pytest.mark.slow
def test_pairs_of_four_ranks_exchange_among_themselves(tmp_path: Path) -> None:
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    mp.spawn(_exchange, args=(str(tmp_path),), nprocs=_WORLD)
    called = [(tmp_path / f"called.{rank}").read_text().splitlines() for rank in range(_WORLD)]
    assert called == [called[0]] * _WORLD
    assert {"all_reduce 2", "broadcast 2", "p2p 2", "p2p_bidirectional 2", "all_reduce 4"} <= set(called[0])


def test_ranks_left_over_do_nothing() -> None:
    groups = {2: None, 4: None, 6: None}
    bench = a_bench(rank=3, groups=groups)
    assert [bench.members(n) for n in groups] == [6, 4, 6]
    assert [bench.group_start(n) for n in groups] == [2, 0, 0]


def test_ranks_that_share_a_core_wait_for_their_turns() -> None:
    bench = a_bench(per_core=2.0)
    start = bench.thread_s()
    before = time.thread_time()
    while time.thread_time() < before + 0.02:
        pass
    assert bench.thread_s() - start >= 0.039
