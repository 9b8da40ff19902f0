"""The host cases of several ranks, each called once by two real gloo ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def _call_all(rank: int, world: int, store: str, result: str) -> None:
    import torch
    import torch.distributed as dist

    from calibrate.benchmarks.base import load_benchmarks
    from tests.calibrate.machines import a_bench

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    bench = a_bench(rank=rank, groups={world: dist.group.WORLD})
    called = []
    for case in load_benchmarks()["host"](bench):
        if case.n_ranks == world:
            with torch.no_grad():
                case.prepare(bench)()
            called.append(case.variant)
    dist.barrier()
    if rank == 0:
        Path(result).write_text(json.dumps(called))
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_every_host_case_of_two_ranks_runs(tmp_path: Path) -> None:
    import torch.multiprocessing as mp

    result = tmp_path / "called.json"
    mp.spawn(_call_all, args=(2, str(tmp_path / "store"), str(result)), nprocs=2)
    called = json.loads(result.read_text())
    for stem in ("blocks", "layers", "tp", "ddp", "fsdp", "pipeline", "listed", "apart"):
        assert {f"{stem}_2", f"{stem}_6"} <= set(called)
