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
    signs: Path | None = None,
    environment: Mapping[str, str] | None = None,
    progress: Callable[[], None] | None = None,
    hosts: Hosts | None = None,
) -> None:
    """Run `python -m module arguments` as `world_size` ranks under torchrun, or on `hosts`, and wait.

    `signs`: a file that ranks write to while they get on; `timeout_s` counts from when they last did.
    `progress` is called while waiting. Raises MeasurementError with a rank's own `error: ...` line,
    WorkerError with the end of the ranks' logs where one died or the time is over. Every process that was
    started is gone on return.
    """
    patience = _Patience(timeout_s, signs)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        logs = Path(folder)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={world_size}", "--redirects=3", f"--log-dir={logs / 'ranks'}"]
        command += ["-m", module, *arguments]
        if hosts is not None:
            _run_on_hosts(hosts, ["-m", module, *arguments], logs, patience, environment or {}, progress)
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
                over = _wait(process, patience, started, progress)
            finally:
                _end(process, started)
        if over:
            raise _too_late(module, patience, logs)
        if process.returncode:
            raise _failure(module, process.returncode, logs)


def _run_on_hosts(
    hosts: Hosts,
    command: Sequence[str],
    logs: Path,
    patience: _Patience,
    environment: Mapping[str, str],
    progress: Callable[[], None] | None,
) -> None:
    ranks = RankProcesses(hosts, command, environment=_environment(environment), logs=logs / "ranks")
    try:
        while ranks.poll() is None:
            if patience.is_over():
                raise _too_late(command[1], patience, logs)
            if progress is not None:
                progress()
            time.sleep(_POLL_S)
    finally:
        ranks.end()
    if ranks.returncode:
        raise _failure(command[1], ranks.returncode, logs)


class _Patience:
    """How long ranks are waited for: `timeout_s` from the start, or from when `signs` last changed."""

    def __init__(self, timeout_s: float, signs: Path | None) -> None:
        self.timeout_s = timeout_s
        self._signs = signs
        self._size = self._written()
        self._end = time.monotonic() + timeout_s

    def is_over(self) -> bool:
        size = self._written()
        if size != self._size:
            self._size, self._end = size, time.monotonic() + self.timeout_s
        return time.monotonic() > self._end

    def _written(self) -> int:
        try:
            return 0 if self._signs is None else self._signs.stat().st_size
        except OSError:
            return 0


def _too_late(module: str, patience: _Patience, logs: Path) -> WorkerError:
    return WorkerError(
        f"the ranks of {module} got no further for {patience.timeout_s:g} s (the limit) and were killed; "
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
    patience: _Patience,
    started: set[int],
    progress: Callable[[], None] | None,
) -> bool:
    """Wait for the end; returns whether the limit came first. `started` collects every descendant."""
    look = time.monotonic()
    while process.poll() is None:
        if patience.is_over():
            return True
        if (now := time.monotonic()) >= look:  # seldom: a look takes milliseconds of a core
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
