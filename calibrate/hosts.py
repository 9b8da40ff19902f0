"""Ranks on several hosts, containers or network namespaces: one process each, behind a command prefix.

A host is reached by what is put before the command (`ssh -t node7`, `ip netns exec a`, `taskset -c 1`), and
its ranks find each other by the variables that every launcher sets. A file of hosts is JSON:

    {"master_addr": "10.0.0.1", "master_port": 29500,
     "hosts": [{"prefix": ["ip", "netns", "exec", "a"], "environment": {"GLOO_SOCKET_IFNAME": "eth0"}},
               {"prefix": ["ip", "netns", "exec", "b"], "environment": {"GLOO_SOCKET_IFNAME": "eth0"}}]}

All hosts see the same files (the working folder, the run's folder).
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from costmodel.errors import InputFileError, UsageError

__all__ = ["Host", "Hosts", "RankProcesses", "load_hosts"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Host(_Frozen):
    """`prefix`: put before the command of each of its ranks; `environment`: added to theirs."""

    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    ranks: int = Field(default=1, ge=1)


class Hosts(_Frozen):
    """Hosts in order of their ranks. `master_addr`: an address of the first one that all can reach."""

    master_addr: str
    master_port: int = Field(default=29500, gt=0, lt=65536)
    hosts: tuple[Host, ...] = Field(min_length=1)

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return sum(host.ranks for host in self.hosts)

    def require(self, world_size: int) -> None:
        """UsageError where the hosts have another number of ranks."""
        if self.world_size != world_size:
            each = " + ".join(str(host.ranks) for host in self.hosts)
            raise UsageError(
                f"hosts have {each} = {self.world_size} ranks, but {world_size} are to run; change the file "
                "of hosts or the plans"
            )


def load_hosts(path: Path) -> Hosts:
    """Read a file of hosts. Raises InputFileError where it is none."""
    try:
        return Hosts.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputFileError(
            f"file of hosts {path}: {error}; it is JSON with master_addr, master_port and hosts, each with "
            "prefix, environment and ranks"
        ) from error


class RankProcesses:
    """The ranks of one job on their hosts, seen as one process: the first failure is everyone's end."""

    def __init__(
        self, hosts: Hosts, command: Sequence[str], *, environment: Mapping[str, str], logs: Path
    ) -> None:
        """Start `python COMMAND` once per rank; its output goes to `logs`/RANK/stdout.log and stderr.log.

        UsageError where a prefix names no program.
        """
        self.returncode: int | None = None
        self._started: list[subprocess.Popen[bytes]] = []
        try:
            for host in hosts.hosts:
                for local in range(host.ranks):
                    rank = len(self._started)
                    places = {"RANK": rank, "WORLD_SIZE": hosts.world_size, "LOCAL_RANK": local}
                    places |= {"LOCAL_WORLD_SIZE": host.ranks, "MASTER_PORT": hosts.master_port}
                    variables = {name: str(value) for name, value in places.items()}
                    variables |= {"MASTER_ADDR": hosts.master_addr, **host.environment}
                    self._start(host, command, {**environment, **variables}, logs / str(rank))
        except BaseException:
            self.end()
            raise

    def _start(
        self, host: Host, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        words = [*host.prefix, sys.executable, *command]
        with (folder / "stdout.log").open("wb") as out, (folder / "stderr.log").open("wb") as err:
            try:
                process = subprocess.Popen(
                    words, stdout=out, stderr=err, env=dict(environment), start_new_session=True
                )
            except OSError as error:
                raise UsageError(
                    f"host {shlex.join(host.prefix)!r} cannot start a rank: {error}; its prefix must be a "
                    "program and its arguments"
                ) from error
        self._started.append(process)

    def poll(self) -> int | None:
        """None while all run or have ended well; 0 when all have; else the first other exit code."""
        codes = [process.poll() for process in self._started]
        failed = next((code for code in codes if code), None)
        if failed is not None or None not in codes:
            self.returncode = failed or 0
        return self.returncode

    def end(self) -> None:
        """Kill what is left of every rank and what it started."""
        for process in self._started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
