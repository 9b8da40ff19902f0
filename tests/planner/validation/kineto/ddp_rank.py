"""A rank of a real 2-rank DDP run that profiles itself: `python -m ...kineto.ddp_rank FOLDER RANK`.

It writes its trace and, beside it, what torch's profiler itself makes of the same events: totals by name, and
every backward evaluation under the module of its forward operator, found by torch's own event tree.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from planner.validation.kineto.recording import MODULE_RANGE, named_ranges
from planner.validation.measure import let_records_end

__all__ = ["N_STEPS"]

N_STEPS = 2
_EVALUATE = "autograd::engine::evaluate_function"


class Block(nn.Module):
    """A residual block with a parameter and a product of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(nn.functional.gelu(self.up(self.norm(x))))


def _module_of(event: Any) -> str | None:
    while event is not None:
        if event.name.startswith(MODULE_RANGE.rstrip()):
            return str(event.name[len(MODULE_RANGE) :])
        event = event.cpu_parent
    return None


def _in_backward(event: Any) -> bool:
    while event is not None:
        if event.name.startswith(_EVALUATE):
            return True
        event = event.cpu_parent
    return False


def totals(profiler: Any) -> dict[str, Any]:
    """Seconds over all steps: forward of each module by name, backward of each module, all of backward."""
    forward = {
        entry.key[len(MODULE_RANGE) :]: entry.cpu_time_total * 1e-6
        for entry in profiler.key_averages()
        if entry.key.startswith(MODULE_RANGE.rstrip())
    }
    events = sorted(profiler.events(), key=lambda e: e.time_range.start)
    made_by: dict[int, str | None] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _in_backward(event):
            made_by[event.sequence_nr] = _module_of(event)
    backward: dict[str, float] = defaultdict(float)
    last = ""
    for event in events:
        if event.name.startswith(_EVALUATE):
            last = (made_by.get(event.sequence_nr, last) or "") if event.sequence_nr >= 0 else last
            backward[last] += event.cpu_time_total * 1e-6
    whole = sum(e.cpu_time_total * 1e-6 for e in profiler.key_averages() if e.key.startswith(_EVALUATE))
    return {"forward": forward, "backward": backward, "all_backward": whole}


def main(folder: Path, rank: int) -> None:
    """Two warm steps, then the profiled ones."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), Block(128), Block(128), nn.Linear(128, 8))
    ddp = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=0.2)
    optimizer = torch.optim.AdamW(ddp.parameters())
    x = torch.randn(64, 64)

    def step() -> None:
        optimizer.zero_grad()
        ddp(x).square().mean().backward()
        optimizer.step()

    step()
    step()
    let_records_end()
    with named_ranges([ddp]), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for number in range(N_STEPS):
            with record_function(f"ProfilerStep#{number}"):
                step()
        let_records_end()
    profiler.export_chrome_trace(str(folder / f"rank-{rank}.json.gz"))
    (folder / f"totals-{rank}.txt").write_text(json.dumps(totals(profiler)))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
