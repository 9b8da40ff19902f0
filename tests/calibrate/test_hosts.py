"""Ranks behind command prefixes: they join, one failure ends all, bad files of hosts say what is wrong."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from calibrate.hosts import Host, Hosts, RankProcesses, load_hosts
from costmodel.errors import InputFileError, UsageError

TWO = Hosts(
    master_addr="127.0.0.1",
    hosts=(Host(prefix=("env", "SIDE=a")), Host(environment={"SIDE": "b"}, ranks=2)),
)
SAY = (
    "import os; print(*(os.environ[n] for n in "
    "('SIDE', 'RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')))"
)


def ended(ranks: RankProcesses) -> int:
    while (code := ranks.poll()) is None:
        time.sleep(0.02)
    return code


def test_every_rank_knows_its_place_and_its_host(tmp_path: Path) -> None:
    ranks = RankProcesses(TWO, ["-c", SAY], environment=dict(os.environ), logs=tmp_path)
    assert ended(ranks) == 0
    said = [(tmp_path / str(rank) / "stdout.log").read_text().split() for rank in range(3)]
    assert said == [
        ["a", "0", "3", "0", "1", "127.0.0.1", "29500"],
        ["b", "1", "3", "0", "2", "127.0.0.1", "29500"],
        ["b", "2", "3", "1", "2", "127.0.0.1", "29500"],
    ]


def test_one_failure_ends_all(tmp_path: Path) -> None:
    code = "import os, sys, time; sys.exit(7) if os.environ['RANK'] == '1' else time.sleep(600)"
    ranks = RankProcesses(TWO, ["-c", code], environment=dict(os.environ), logs=tmp_path)
    assert ended(ranks) == 7
    ranks.end()
    assert all(process.poll() is not None for process in ranks._started)


def test_a_prefix_that_is_no_program_is_named(tmp_path: Path) -> None:
    hosts = Hosts(master_addr="127.0.0.1", hosts=(Host(), Host(prefix=("no-such-program",))))
    with pytest.raises(UsageError, match="no-such-program"):
        RankProcesses(hosts, ["-c", "pass"], environment=dict(os.environ), logs=tmp_path)


def test_hosts_have_as_many_ranks_as_are_to_run() -> None:
    TWO.require(3)
    with pytest.raises(UsageError, match=r"1 \+ 2 = 3 ranks, but 2"):
        TWO.require(2)


def test_files_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text(TWO.model_dump_json())
    assert load_hosts(path) == TWO
    for text in ("{", "{}", '{"master_addr": "a", "hosts": []}', '{"master_addr": "a", "hosts": [{"x": 1}]}'):
        path.write_text(text)
        with pytest.raises(InputFileError, match="master_addr, master_port and hosts"):
            load_hosts(path)
    with pytest.raises(InputFileError):
        load_hosts(tmp_path / "missing.json")
