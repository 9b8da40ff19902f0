"""Starting ranks with torchrun or on hosts, waiting within a limit, leaving no process behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calibrate.hosts import Hosts, RankProcesses
from costmodel.errors import MeasurementError, WorkerError

__all__ = ["MALLOC_SETTINGS", "run_ranks"]

_POLL_S = 0.1
_LOOK_S = 1.0
_GRACE_S = 3.0
_LOG_LINES = 25
MALLOC_SETTINGS = {
    # What the allocator of a long-running step settles at: memory once touched is kept, and only blocks
    # above glibc's highest threshold are mapped anew at each allocation.
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
}


def run_ranks(
    module: str,
    arguments: Sequence[str],
    *,
    world_size: int,
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[], None] | None = None,
    hosts: Hosts | None = None,
) -> None:
    """Run `python -m module arguments` as `world_size` ranks under torchrun, or on `hosts`, and wait.

    `progress` is called while waiting. Raises MeasurementError with a rank's own `error: ...` line,
    WorkerError with the end of the ranks' logs where one died or the time is over. Every process that was
    started is gone on return.
    """
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        logs = Path(folder)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={world_size}", "--redirects=3", f"--log-dir={logs / 'ranks'}"]
        command += ["-m", module, *arguments]
        if hosts is not None:
            _run_on_hosts(hosts, ["-m", module, *arguments], logs, timeout_s, environment or {}, progress)
            return
        with (logs / "torchrun.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(environment or {}),
                start_new_session=True,
            )
            started: set[int] = set()
            try:
                over = _wait(process, timeout_s, started, progress)
            finally:
                _end(process, started)
        if over:
            raise _too_late(module, timeout_s, logs)
        if process.returncode:
            raise _failure(module, process.returncode, logs)


def _run_on_hosts(
    hosts: Hosts,
    command: Sequence[str],
    logs: Path,
    timeout_s: float,
    environment: Mapping[str, str],
    progress: Callable[[], None] | None,
) -> None:
    end = time.monotonic() + timeout_s
    ranks = RankProcesses(hosts, command, environment=_environment(environment), logs=logs / "ranks")
    try:
        while ranks.poll() is None:
            if time.monotonic() > end:
                raise _too_late(command[1], timeout_s, logs)
            if progress is not None:
                progress()
            time.sleep(_POLL_S)
    finally:
        ranks.end()
    if ranks.returncode:
        raise _failure(command[1], ranks.returncode, logs)


def _too_late(module: str, timeout_s: float, logs: Path) -> WorkerError:
    return WorkerError(
        f"the ranks of {module} did not end within {timeout_s:g} s (the limit) and were killed; "
        f"{_tails(logs)}\nUse a larger budget, or see what blocks that rank."
    )


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    environment = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    for name, value in {**MALLOC_SETTINGS, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}.items():
        environment.setdefault(name, value)
    here = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH", "")]))
    environment.update(extra)
    return environment


def _wait(
    process: subprocess.Popen[bytes],
    timeout_s: float,
    started: set[int],
    progress: Callable[[], None] | None,
) -> bool:
    """Wait for the end; returns whether the limit came first. `started` collects every descendant."""
    now = look = time.monotonic()
    end = now + timeout_s
    while process.poll() is None:
        now = time.monotonic()
        if now > end:
            return True
        if now >= look:  # seldom: each look takes milliseconds of a core that is being measured
            started |= _descendants(process.pid)
            look = now + _LOOK_S
        if progress is not None:
            progress()
        time.sleep(_POLL_S)
    return False


def _end(process: subprocess.Popen[bytes], started: set[int]) -> None:
    """Ask torchrun to end its ranks, then kill what is left of what it started."""
    started = {pid for pid in started | _descendants(process.pid) if _ours(pid)}
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    for pid in (*started, process.pid):
        with contextlib.suppress(OSError):
            if pid != process.pid or process.poll() is None:
                os.kill(pid, signal.SIGKILL)
    process.wait()


def _ours(pid: int) -> bool:
    """Whether the process still is one of ours (its number may have been given away since)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0] == sys.executable.encode()
    except OSError:
        return False


def _descendants(pid: int) -> set[int]:
    """Process ids below `pid`."""
    found: set[int] = set()
    new = {pid}
    while new:
        below: set[int] = set()
        for parent in new:
            for path in Path(f"/proc/{parent}/task").glob("*/children"):
                with contextlib.suppress(OSError, ValueError):
                    below |= {int(child) for child in path.read_text().split()}
        new = below - found
        found |= new
    return found


def _failure(module: str, code: int, logs: Path) -> MeasurementError | WorkerError:
    for path in sorted(logs.glob("ranks/**/stderr.log")):
        for line in path.read_text(errors="replace").splitlines():
            if line.startswith("error: "):
                return MeasurementError(line.removeprefix("error: "))
    return WorkerError(f"a rank of {module} died (exit code {code}); {_tails(logs)}")


def _tails(logs: Path) -> str:
    parts = []
    for path in sorted(logs.glob("ranks/**/*.log")):
        lines = path.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            parts.append(f"rank {path.parent.name}, end of {path.stem}:\n  " + "\n  ".join(lines))
    if not parts:
        log = logs / "torchrun.log"
        text = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
        parts.append("torchrun's log:\n  " + "\n  ".join(text))
    return "\n".join(parts)
