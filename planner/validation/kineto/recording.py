"""Traces that name their modules: what a real run records where `validate run --trace` asks for it.

Every module of the model is wrapped in a profiler range `foreshard::module PATH`, its path in the whole
model, whatever wrappers (DistributedDataParallel, pipeline stages) stand around it. The file also says which
run it is of, so that it can be read without being told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from planner.validation.strategies.answering import Answerer
    from planner.validation.strategies.compose import Runner

__all__ = ["METADATA_KEY", "MODULE_RANGE", "STEP_RANGE", "named_ranges", "record_trace", "trace_folder"]

MODULE_RANGE = "foreshard::module "
STEP_RANGE = "ProfilerStep#"
"""As the profiler's own schedule marks steps."""
METADATA_KEY = "foreshard"
_STEPS = 3


def _original(module: nn.Module) -> nn.Module:
    """The model inside the wrappers that a run puts around it."""
    from torch.nn.parallel import DistributedDataParallel

    from planner.validation.tape import StageModule

    while True:
        if isinstance(module, DistributedDataParallel):
            module = module.module
        elif isinstance(module, StageModule):
            module = module.model
        else:
            return module


@contextmanager
def named_ranges(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Profiler ranges around every call of every module of these models, for the time of the block."""
    import torch

    hooks: list[Any] = []
    open_ranges: list[Any] = []

    def enter(path: str) -> Callable[..., None]:
        def begin(module: nn.Module, args: Any) -> None:
            opened = torch.profiler.record_function(MODULE_RANGE + path)
            opened.__enter__()
            open_ranges.append(opened)

        return begin

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    try:
        for model in modules:
            for path, module in _original(model).named_modules():
                # first in and last out: what other hooks do (gathering, redistribution) is the module's
                hooks.append(module.register_forward_pre_hook(enter(path), prepend=True))
                hooks.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        while open_ranges:
            open_ranges.pop().__exit__(None, None, None)


def trace_folder(root: Path, run_id: str) -> Path:
    """Where the traces of a run lie, one file per rank."""
    return root / "".join(c if c.isalnum() or c in "._-" else "_" for c in run_id)


def record_trace(
    runner: Runner | Answerer,
    barrier: Callable[[], None],
    device: torch.device,
    *,
    root: Path,
    rank: int,
    step_time_s: float,
    yardstick_s: float | None = None,
) -> Path:
    """Profile a few steps of this rank into `root`/RUN/rank-R.json.gz; the file appears whole or not at all.

    `step_time_s` (without the profiler) and `yardstick_s` (of the machine beside the run) are kept in it.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from planner.validation.measure import let_records_end

    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    folder = trace_folder(root, runner.spec.id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank-{rank}.json.gz"
    partial = folder / f".{path.name}"

    run = {"run": runner.spec.to_dict(), "step_time_s": step_time_s, "yardstick_s": yardstick_s}
    with named_ranges(runner.modules):
        runner.step()
        barrier()
        let_records_end()
        with profile(activities=activities, record_shapes=True) as profiler:
            profiler.add_metadata_json(METADATA_KEY, json.dumps(run))
            runner.step()  # not marked: it waits for ranks whose profiler started later
            for number in range(_STEPS):
                with record_function(f"{STEP_RANGE}{number}"):
                    runner.step()
                    if cuda:
                        torch.cuda.synchronize(device)
            let_records_end()
    try:
        profiler.export_chrome_trace(str(partial))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
