"""Starting the ranks of a job (torchrun, or on hosts), watching them, leaving nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from calibrate.hosts import Hosts, RankProcesses
from calibrate.launch import MALLOC_SETTINGS
from costmodel.errors import WorkerError
from costmodel.files import write_whole
from planner.validation.run_spec import Job

__all__ = ["FAILED", "culprit", "run_job"]

FAILED = "failed:"
"""Begins the phase of a rank that met an error and waits for the others to say theirs."""

_LOG_LINES = 25
_POLL_S = 0.2
_FAILED_S = 10.0
"""Patience with the other ranks once one has failed: they may be waiting for it for ever."""
_DUMP_S = 0.5
_START_S = 60.0
"""Allowed beside the timeout until every rank has taken a first step: imports on a busy machine."""
_SETTING_UP = ("starting", "building", "warm-up step 0")
"""Begin the phases in which ranks import what their strategy needs, compiled anew after an installation."""


class _Beat(NamedTuple):
    """A rank's last sign of life."""

    when: float
    pid: int
    phase: str
    place: int | None
    """Which of the job's runs was at work."""


def run_job(job: Job, *, hosts: Hosts | None = None, progress: Callable[[str], None] | None = None) -> None:
    """Run the job to its end, here or on `hosts`; results lie in its directory.

    Raises WorkerError, with the last lines of the rank concerned, where a rank died or where no rank made
    progress for `job.timeout_s`. Either way every process of the job is gone on return.
    """
    folder = Path(job.directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "job.json", job.to_json())
    write_whole(folder / "launcher", f"{os.getpid()}\n")
    logs = folder / "logs"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={job.world_size}", "--redirects=3", f"--log-dir={logs}"]
    worker = ["-m", "planner.validation.worker", str(folder / "job.json")]
    command += worker
    environment = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(job.threads)
    for name, value in {**MALLOC_SETTINGS, "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        environment.setdefault(name, value)
    paths = [os.getcwd(), str(Path(__file__).resolve().parents[2]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if hosts is not None:
        hosts.require(job.world_size)
        (folder / "torchrun.log").write_bytes(b"")
        ranks = RankProcesses(hosts, worker, environment=environment, logs=logs / "hosts")
        try:
            _watch(ranks, job, folder, progress)
        finally:
            ranks.end()
        return
    with (folder / "torchrun.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            _watch(process, job, folder, progress)
        finally:
            _end(process, folder)


def _watch(
    process: subprocess.Popen[bytes] | RankProcesses,
    job: Job,
    folder: Path,
    progress: Callable[[str], None] | None,
) -> None:
    last_sign = time.monotonic()
    newest = 0.0
    phase = ""
    while process.poll() is None:
        time.sleep(_POLL_S)
        beats = _beats(folder)
        stamp = max((beat.when for beat in beats.values()), default=0.0)
        if stamp > newest:
            newest, last_sign = stamp, time.monotonic()
            now = beats[0].phase if 0 in beats else ""
            if progress is not None and now != phase:
                phase = now
                progress(phase)
        elif time.monotonic() - last_sign > _patience_s(job, beats):
            raise WorkerError(_hung(job, folder, beats))
    if process.returncode:
        raise WorkerError(_died(process.returncode, folder))


def _patience_s(job: Job, beats: dict[int, _Beat]) -> float:
    if len(beats) < job.world_size:
        return job.timeout_s + _START_S
    if any(beat.phase.startswith(FAILED) for beat in beats.values()):
        return min(job.timeout_s, _FAILED_S)
    if any(beat.phase.startswith(_SETTING_UP) for beat in beats.values()):
        return job.timeout_s + _START_S
    return job.timeout_s


def _beats(folder: Path) -> dict[int, _Beat]:
    """The last sign of life of each rank."""
    beats = {}
    for path in folder.glob("heartbeat.*"):
        with contextlib.suppress(OSError, ValueError):
            pid, phase, place = path.read_text().splitlines()[:3]
            beats[int(path.suffix[1:])] = _Beat(
                path.stat().st_mtime, int(pid), phase, int(place) if place else None
            )
    return beats


def culprit(folder: Path) -> int | None:
    """Place among the job's runs of the one that ended a job: of the rank that died first, that met an error
    while others waited, or that was silent longest; None where no run was at work."""
    beats = _beats(folder)
    if not beats:
        return None
    dead = _first_dead(folder)
    if dead in beats:
        return beats[dead].place
    concerned = [b for b in beats.values() if b.phase.startswith(FAILED)] or list(beats.values())
    return min(concerned, key=lambda beat: beat.when).place


def _hung(job: Job, folder: Path, beats: dict[int, _Beat]) -> str:
    """Ask every rank for its stack, then say where each one stands, the longest silent first."""
    for beat in beats.values():
        with contextlib.suppress(OSError):
            os.kill(beat.pid, signal.SIGUSR1)
    time.sleep(_DUMP_S)
    order = sorted(beats, key=lambda rank: beats[rank].when)
    parts = [
        f"no rank made progress for {_patience_s(job, beats):g} s (the limit); the run was ended. "
        "Where each rank stood, the longest silent first:"
    ]
    for rank in order or range(job.world_size):
        phase = beats[rank].phase if rank in beats else "never started"
        parts.append(f"rank {rank}: {phase}\n{_tail(folder, rank)}")
    parts.append("Raise the limit (--timeout-s) if the steps are this long; else see the stacks above.")
    return "\n".join(parts)


def _died(code: int, folder: Path) -> str:
    beats = _beats(folder)
    dead = _first_dead(folder)
    ranks = [dead] if dead is not None else sorted(beats)
    parts = [f"the launcher ended with exit code {code}: a rank of the run died"]
    for rank in ranks:
        phase = beats[rank].phase if rank in beats else "before its first sign of life"
        parts.append(f"rank {rank} ({phase}), last lines of its log:\n{_tail(folder, rank)}")
    if not ranks:
        parts.append(_last_lines(folder / "torchrun.log"))
    parts.append(f"Logs: {folder / 'logs'}")
    return "\n".join(parts)


def _first_dead(folder: Path) -> int | None:
    """The rank torchrun names as the root cause."""
    try:
        lines = (folder / "torchrun.log").read_text(errors="replace").splitlines()
    except OSError:
        return None
    seen = False
    for line in lines:
        seen = seen or "Root Cause" in line
        if seen and line.strip().startswith("rank"):
            with contextlib.suppress(ValueError, IndexError):
                return int(line.split(":")[1].split("(")[0])
    return None


def _tail(folder: Path, rank: int) -> str:
    files = sorted((folder / "logs").glob(f"**/{rank}/stderr.log"))
    files += sorted((folder / "logs").glob(f"**/{rank}/stdout.log"))
    text = "\n".join(filter(None, (_last_lines(path) for path in files)))
    return text or "  (nothing in its log)"


def _last_lines(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    kept = [line for line in lines if not line.startswith("USDT:")]  # the profiler's own noise
    return "\n".join(f"  {line}" for line in kept[-_LOG_LINES:])


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill what is left: the ranks (each its own session under torchrun) and torchrun itself."""
    pids = [beat.pid for beat in _beats(folder).values()]
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)  # no new children while the ranks are killed
    _kill(_descendants(process.pid, pids))
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _descendants(parent: int, noted: Iterable[int]) -> list[int]:
    """Noted ranks that are still children of torchrun (process ids are reused; parents tell)."""
    found = []
    for pid in noted:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(pid)
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
