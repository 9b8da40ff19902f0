"""A script that runs the plan with torch's own parts: parallelize_module, fully_shard, DDP, pipelining."""

from __future__ import annotations

import json

from planner.export.job import EXPORTERS, ExportJob
from planner.validation.strategies.compose import check_runnable

__all__ = ["torch_script"]

_SCRIPT = '''"""Trains {model} as {plan} on {world_size} ranks; made by `foreshard export --to torch`.

    torchrun --nproc-per-node {local} {name}

foreshard builds the parts (torch's DTensor layers, FSDP2, DDP and pipeline schedules) as its own validation
runs do; replace the random batch by your data where `runner.step()` is called.
"""

import gc
import json
import os
import time

import torch
import torch.distributed as dist

from calibrate.ranks import keep_freed_memory, pin_rank
from calibrate.timing import clipped_mean
from calibrate.yardstick import Yardstick
from planner.validation.run_spec import RunSpec
from planner.validation.strategies.compose import build_mesh, build_runner

SPEC = RunSpec.from_dict(json.loads(r"""
{spec}
"""))
FORECAST = json.loads(r"""{forecast}""")
STEPS, WARM_UP = 20, 3


def main() -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:  # as the machine was calibrated: a rank keeps its memory and its core
        keep_freed_memory()
        pin_rank(threads=1)
        torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    runner = build_runner(SPEC, build_mesh(SPEC, device.type), device)
    # a GPU's kernels do not follow the speed of its host
    yardstick = None if cuda or not FORECAST["yardstick_s"] else Yardstick(device)
    times, gauged = [], []
    for step in range(WARM_UP + STEPS):
        dist.barrier()
        if yardstick is not None and step >= WARM_UP:
            gauged.append(yardstick())
            dist.barrier()
        start = time.perf_counter()
        runner.step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    longest = torch.tensor(sorted(times[WARM_UP:])[STEPS // 2], device=device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    slowdown = torch.tensor(clipped_mean(gauged, 1, "").time_s / FORECAST["yardstick_s"] if gauged else 1.0)
    dist.all_reduce(slowdown)
    if dist.get_rank() == 0:
        print(json.dumps(report(float(longest), float(slowdown) / dist.get_world_size())), flush=True)
    # leave together: a rank whose partner is gone while its backend still works is aborted
    del runner
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def report(step_time_s: float, slowdown: float) -> dict[str, object]:
    """The measured step beside its forecast, which is restated for the machine's speed of this minute."""
    predicted = ("predicted_s", "predicted_low_s", "predicted_high_s")
    return {{
        "plan": FORECAST["plan"],
        "hardware": FORECAST["hardware"],
        "step_time_s": step_time_s,
        **{{name: FORECAST[name] * slowdown for name in predicted}},
        "machine_slowdown": slowdown,
        "as_calibrated_s": FORECAST["predicted_s"],
    }}


if __name__ == "__main__":
    main()
'''


@EXPORTERS.register("torch")
def torch_script(job: ExportJob) -> dict[str, str]:
    """Raises PlanError for a plan that the validation harness cannot run."""
    check_runnable(job.plan)
    name = "train.py"
    return {
        name: _SCRIPT.format(
            model=job.model,
            plan=job.plan,
            world_size=job.plan.world_size,
            local=min(job.plan.world_size, max(job.ranks_per_node, 1)),
            name=name,
            spec=json.dumps(job.spec.to_dict(), indent=1),
            forecast=json.dumps(_forecast(job)),
        )
    }


def _forecast(job: ExportJob) -> dict[str, object]:
    """What the script's own way of splitting is predicted to take on the machine it was made for."""
    p = job.as_run
    return {
        "plan": str(job.plan),
        "hardware": p.hardware.name,
        "predicted_s": p.step_time_s,
        "predicted_low_s": p.step_time_low_s,
        "predicted_high_s": p.step_time_high_s,
        "yardstick_s": job.yardstick_s,
    }
