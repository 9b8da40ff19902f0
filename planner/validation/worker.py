"""One rank of a real run: `python -m torch.distributed.run -m planner.validation.worker JOB.json`.

Ranks that a plan does not need wait while it runs. Results are written by rank 0, one file per plan.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibrate.ranks import keep_freed_memory, pin_rank
from calibrate.runner import settled
from calibrate.timing import clipped_mean
from calibrate.yardstick import Yardstick
from planner.validation.launch import FAILED
from planner.validation.run_spec import Job, RankResult, RunResult, RunSpec

if TYPE_CHECKING:
    from planner.validation.strategies.answering import Answerer
    from planner.validation.strategies.compose import Runner

__all__ = ["Heartbeat", "main"]

_FULL_CHECK_STEPS = 2
_YARDSTICKS = 6
"""Steps of the yardstick before and after the timed steps of a round: about 60 ms on a CPU core."""


class Heartbeat:
    """What this rank is doing, in a file that the launcher watches; it also ends orphans.

    Where torchrun or the launcher (whose process id stands in `launcher`) is gone, the rank ends itself.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"heartbeat.{rank}"
        self._parent = os.getppid()
        self._launcher = _launcher(folder)
        self._place: int | None = None
        threading.Thread(target=self._watch, name="orphan-watch", daemon=True).start()
        self.beat("starting")

    def beat(self, phase: str) -> None:
        """Note the phase; the file's modification time is the sign of life."""
        temporary = self._path.with_name(f".{self._path.name}")
        place = "" if self._place is None else str(self._place)
        temporary.write_text(f"{os.getpid()}\n{phase}\n{place}\n")
        temporary.replace(self._path)

    def turn_to(self, place: int | None, phase: str) -> None:
        """Note that the job's run of that place is at work, on this rank or while it waits; None: no run."""
        self._place = place
        self.beat(phase)

    def _watch(self) -> None:
        while os.getppid() == self._parent and _is_alive(self._launcher):
            time.sleep(1.0)
        os._exit(1)


def _launcher(folder: Path) -> int | None:
    """Process id of what started the job here; None where another launcher did (Slurm, torchrun by hand)."""
    try:
        return int((folder / "launcher").read_text())
    except (OSError, ValueError):
        return None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(slots=True)
class _Slot:
    """One plan while it is alive on this rank."""

    number: int
    spec: RunSpec
    runner: Runner | Answerer | None
    build_s: float = 0.0
    first_step_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)
    yardstick: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    steps: int = 0
    failed: str | None = None


class _Worker:
    def __init__(self, job: Job) -> None:
        import torch
        import torch.distributed as dist

        self.job = job
        self.rank = int(os.environ["RANK"])
        self.dist = dist
        self.folder = Path(job.directory)
        self.heartbeat = Heartbeat(self.folder, self.rank)
        torch.set_num_threads(job.threads)
        local = int(os.environ["LOCAL_RANK"])
        if job.device == "cuda":
            torch.cuda.set_device(local)
            self.device = torch.device("cuda", local)
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=self.device)
        else:
            self.device = torch.device("cpu")
            dist.init_process_group("gloo")
        if dist.get_world_size() != job.world_size:
            raise ValueError(f"launched with {dist.get_world_size()} ranks, the job says {job.world_size}")
        sizes = sorted({spec.plan.world_size for spec in job.specs})
        self.groups = {n: dist.new_group(list(range(n)), backend="gloo") for n in sizes}
        self.references: dict[tuple[Any, ...], list[float]] = {}
        self.yardstick = Yardstick(self.device)

    def run(self) -> None:
        """All runs of the job, in sets of one model (at most `alive` plans exist at once)."""
        numbered = list(enumerate(self.job.specs))
        while numbered:
            model = numbered[0][1].model
            chosen = [pair for pair in numbered if pair[1].model == model][: self.job.alive]
            numbered = [pair for pair in numbered if pair not in chosen]
            self._run_set(chosen)

    def _run_set(self, chosen: list[tuple[int, RunSpec]]) -> None:
        slots = [self._prepare(number, spec) for number, spec in chosen]
        begun = time.monotonic()
        round_number = 0
        while round_number < self.job.rounds or self._needs_more(slots, time.monotonic() - begun):
            for slot in slots:
                if slot.failed is None:
                    self._round(slot, round_number)
            round_number += 1
        for slot in slots:
            self._finish(slot)
            slot.runner = None

    def _needs_more(self, slots: list[_Slot], taken_s: float) -> bool:
        """Whether a plan's median is unknown and there is time: rank 0 decides, as part of all."""
        left = [slot for slot in slots if slot.failed is None]
        unknown = any(not settled([statistics.median(times) for times in s.rounds if times]) for s in left)
        return bool(self._agree(unknown and taken_s < self.job.seconds_per_plan * len(left))[0])

    def _active(self, spec: RunSpec) -> bool:
        return self.rank < spec.plan.world_size

    def _barrier(self, spec: RunSpec) -> Callable[[], None]:
        group = self.groups[spec.plan.world_size]
        return lambda: self.dist.barrier(group=group)

    def _agree(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        gathered: list[Any] = [None] * self.job.world_size
        self.dist.all_gather_object(gathered, value)
        return gathered

    def _prepare(self, number: int, spec: RunSpec) -> _Slot:
        """Build the plan and take its warm-up steps; an error becomes the slot's `failed`."""
        from planner.validation.strategies.compose import build_mesh, build_runner

        slot = _Slot(number=number, spec=spec, runner=None)
        self.heartbeat.turn_to(number, f"building {spec.id}")
        self.dist.barrier()
        start = time.perf_counter()
        error = None
        mesh = None
        try:
            mesh = build_mesh(spec, self.job.device)
            if self._active(spec):
                slot.runner = build_runner(spec, mesh, self.device)
        except Exception as problem:
            error = self._describe(problem)
        slot.build_s = time.perf_counter() - start
        if self._settle(slot, error):
            return slot
        losses: list[float | None] = []
        try:
            for step in range(max(self.job.warmup, _FULL_CHECK_STEPS) if slot.runner else 0):
                self.heartbeat.beat(f"warm-up step {step} of {spec.id}")
                begun = time.perf_counter()
                assert slot.runner is not None
                loss = slot.runner.step()
                losses.append(None if loss is None else float(loss))
                if step == 0:
                    slot.first_step_s = time.perf_counter() - begun
        except Exception as problem:
            error = self._describe(problem)
        if self._settle(slot, error):
            return slot
        for step_losses in zip(*[x for x in self._agree(losses) if x], strict=True):
            known = [x for x in step_losses if x is not None]
            slot.losses.append(sum(known) / len(known))
        return slot

    def _describe(self, problem: Exception) -> str:
        traceback.print_exc()
        cause = problem.__cause__ or problem
        text = f"{type(cause).__name__}: {cause}"
        self.heartbeat.beat(f"{FAILED} {' '.join(text.split())}")
        return f"rank {self.rank}: {text}"

    def _settle(self, slot: _Slot, error: str | None) -> bool:
        """Whether any rank failed; all ranks drop the plan then."""
        errors = [e for e in self._agree(error) if e]
        if errors:
            slot.failed, slot.runner = errors[0], None
        return bool(errors)

    def _round(self, slot: _Slot, round_number: int) -> None:
        """One untimed and a few timed steps, the same number on every rank."""
        from planner.validation.measure import timed_step

        self.dist.barrier()
        self.heartbeat.turn_to(slot.number, f"round {round_number} of {slot.spec.id}")
        barrier = self._barrier(slot.spec)
        times: list[float] = []
        if slot.runner is not None:
            self._gauge(slot)
            typical = self._longest(slot, timed_step(slot.runner, barrier, self.device)[0])
            steps = max(self.job.steps, min(50, int(self.job.min_round_s / max(typical, 1e-6))))
            for step in range(steps):
                self.heartbeat.beat(f"round {round_number} step {step} of {slot.spec.id}")
                wall, cpu = timed_step(slot.runner, barrier, self.device)
                times.append(wall)
                slot.cpu.append(cpu)
                if slot.runner.busy_s is not None:
                    slot.busy.append(slot.runner.busy_s)
                if slot.runner.first_token_s is not None:
                    slot.first_token.append(slot.runner.first_token_s)
            self._gauge(slot)
        slot.rounds.append(times)
        self.dist.barrier()

    def _gauge(self, slot: _Slot) -> None:
        """How fast the machine is just now, with the plan's ranks at work together."""
        self._barrier(slot.spec)()
        slot.yardstick.append(clipped_mean([self.yardstick() for _ in range(_YARDSTICKS)], 1, "").time_s)

    def _longest(self, slot: _Slot, value_s: float) -> float:
        import torch

        tensor = torch.tensor([value_s])
        self.dist.all_reduce(tensor, op=self.dist.ReduceOp.MAX, group=self.groups[slot.spec.plan.world_size])
        return float(tensor)

    def _finish(self, slot: _Slot) -> None:
        """Extra steps for the split and the memory, the reference losses, and the result file."""
        import numpy as np

        spec = slot.spec
        self.heartbeat.turn_to(slot.number, f"last steps of {spec.id}")
        if slot.failed is not None:
            self._write(slot, RunResult(spec=spec, device=self.job.device, failed=slot.failed))
            return
        notes: list[str] = []
        mine = self._rank_result(slot, notes) if slot.runner is not None else None
        gathered = self._agree((mine, slot.rounds, notes))
        active = [g for g in gathered if g[0] is not None]
        longest = tuple(
            tuple(max(times) for times in zip(*(g[1][r] for g in active), strict=True))
            for r in range(len(slot.rounds))
        )
        reference = self._reference(spec) if self.rank == 0 else []
        error = max(
            (abs(a - b) / max(abs(b), 1e-12) for a, b in zip(slot.losses, reference, strict=False)),
            default=None,
        )
        every = [t for times in longest for t in times]
        low, median, high = (float(q) for q in np.quantile(every, (0.1, 0.5, 0.9)))
        self._write(
            slot,
            RunResult(
                spec=spec,
                device=self.job.device,
                step_times_s=longest,
                step_time_s=median,
                spread_fraction=(high - low) / 2 / median,
                first_step_s=slot.first_step_s,
                build_s=slot.build_s,
                ranks=tuple(g[0] for g in active),
                losses=tuple(slot.losses),
                reference_losses=tuple(reference),
                loss_error=error,
                notes=tuple(dict.fromkeys(note for g in active for note in g[2])),
            ),
        )

    def _rank_result(self, slot: _Slot, notes: list[str]) -> RankResult:
        import numpy as np

        from planner.validation.measure import peak_memory, profiled_split

        assert slot.runner is not None
        times = [t for r in slot.rounds for t in r]
        result = RankResult(
            rank=self.rank,
            median_s=float(np.median(times)),
            busy_s=float(np.median(slot.busy)) if slot.busy else None,
            first_token_s=float(np.median(slot.first_token)) if slot.first_token else None,
            yardstick_s=float(np.median(slot.yardstick)),
            cpu_s=float(np.median(slot.cpu)),
        )
        if self.job.profile:
            self.heartbeat.beat(f"profiling {slot.spec.id}")
            compute, communication, optimizer = profiled_split(
                slot.runner, self._barrier(slot.spec), self.device
            )
            result = replace(result, compute_s=compute, communication_s=communication, optimizer_s=optimizer)
        if self.job.trace_dir is not None:
            from planner.validation.kineto.recording import record_trace

            self.heartbeat.beat(f"tracing {slot.spec.id}")
            record_trace(
                slot.runner,
                self._barrier(slot.spec),
                self.device,
                root=Path(self.job.trace_dir),
                rank=self.rank,
                step_time_s=result.median_s,
                yardstick_s=result.yardstick_s,
            )
        if self.job.memory:
            phase = f"measuring memory of {slot.spec.id}"
            self.heartbeat.beat(phase)
            self._barrier(slot.spec)()
            try:
                peak, kinds = peak_memory(slot.runner, self.device, lambda: self.heartbeat.beat(phase))
                result = replace(result, peak_memory_bytes=peak, memory_by_kind_bytes=kinds)
            except Exception as problem:
                notes.append(f"memory not tracked: {type(problem).__name__}: {problem}")
        return result

    def _reference(self, spec: RunSpec) -> list[float]:
        """Losses of the first steps on one device, over the same micro-batches."""
        from planner.validation.model_source import has_dropout
        from planner.validation.strategies.compose import build_runner

        plan = spec.plan.with_(
            dp=1, tp=1, pp=1, vpp=1, schedule="1f1b", zero_stage=0, dp_shard=0, recompute="none", flags=()
        ).with_(sequence_parallel=False)
        plan = plan.with_(micro_batch_size=plan.global_batch_size) if spec.output_len else plan
        answer = (spec.prompt_len, spec.output_len)
        key = (repr(spec.model), str(plan), spec.optimizer, spec.learning_rate, spec.seed, answer)
        if key not in self.references:
            phase = f"reference losses of {spec.id}"
            self.heartbeat.beat(phase)
            runner = build_runner(replace(spec, plan=plan, stage_modules=(), tp_styles={}), None, self.device)
            if has_dropout(runner.modules[0]):
                self.references[key] = []
            else:
                losses: list[float] = []
                for _ in range(_FULL_CHECK_STEPS):
                    loss = runner.step()
                    self.heartbeat.beat(phase)
                    losses += [] if loss is None else [float(loss)]
                self.references[key] = losses
        return self.references[key]

    def _write(self, slot: _Slot, result: RunResult) -> None:
        from costmodel.files import write_whole
        from planner.validation.environment import environment

        if self.rank:
            return
        import json

        found = environment(self.job.device, threads=self.job.threads, pinned=self.job.pin)
        text = json.dumps(replace(result, environment=found).to_dict(), indent=1)
        write_whole(self.folder / f"result.{slot.number}.json", text + "\n")

    def close(self) -> None:
        """Leave together."""
        self.heartbeat.turn_to(None, "closing")
        self.dist.barrier()
        self.dist.destroy_process_group()


def main(argv: list[str] | None = None) -> int:
    """Run the job file named on the command line; returns the exit code."""
    import faulthandler
    import signal

    path = Path((argv or sys.argv[1:])[0])
    job = Job.load(path)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if job.device == "cpu":
        keep_freed_memory()
    if job.pin and job.device == "cpu":
        pin_rank(threads=job.threads)
    worker = _Worker(job)
    worker.run()
    worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
