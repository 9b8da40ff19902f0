"""Two network namespaces joined by a veth pair, made and removed by the test itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from calibrate.hosts import Host, Hosts

__all__ = ["NotPermitted", "joined_namespaces", "shape"]

_NIC = "fs0"


class NotPermitted(Exception):
    """This machine does not let us make namespaces, or lacks the tools."""


def _run(*words: str) -> None:
    if shutil.which(words[0]) is None:
        raise NotPermitted(f"no {words[0]!r} here")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermitted(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")


@contextmanager
def joined_namespaces() -> Iterator[Hosts]:
    """Two hosts with a rank each, on a core each where there are two. Raises NotPermitted."""
    names = [f"foreshard-{os.getpid()}-{side}" for side in "ab"]
    cores = sorted(os.sched_getaffinity(0))
    made: list[str] = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
            made.append(name)
        a, b = names
        _run("ip", "link", "add", _NIC, "netns", a, "type", "veth", "peer", "name", _NIC, "netns", b)
        for i, name in enumerate(names):
            within = ("ip", "netns", "exec", name, "ip")
            _run(*within, "addr", "add", f"10.99.0.{i + 1}/24", "dev", _NIC)
            _run(*within, "link", "set", "lo", "up")
            _run(*within, "link", "set", _NIC, "up")
        yield Hosts(
            master_addr="10.99.0.1",
            hosts=tuple(
                Host(
                    prefix=("ip", "netns", "exec", name, "taskset", "-c", str(cores[i % len(cores)])),
                    environment={"GLOO_SOCKET_IFNAME": _NIC},
                )
                for i, name in enumerate(names)
            ),
        )
    finally:
        for name in made:
            subprocess.run(("ip", "netns", "del", name), capture_output=True, check=False)


def shape(hosts: Hosts, rate: str) -> None:
    """Hold both directions to `rate` (as tc writes it, e.g. 250mbit) by a token bucket."""
    for host in hosts.hosts:
        bucket = ("rate", rate, "burst", "256kb", "latency", "400ms")
        _run(*host.prefix, "tc", "qdisc", "replace", "dev", _NIC, "root", "tbf", *bucket)
