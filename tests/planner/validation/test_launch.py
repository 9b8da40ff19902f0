"""A rank that dies or hangs ends the run, with its words, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from costmodel.errors import WorkerError
from costmodel.plan import Plan
from planner.validation.launch import FAILED, culprit, run_job
from planner.validation.run_spec import Job, ModelSpec, RunSpec

SAMPLES = "tests.planner.validation.sample_models"


def job(callable_name: str, folder: Path, timeout_s: float) -> Job:
    spec = RunSpec(model=ModelSpec(model=f"{SAMPLES}:{callable_name}"), plan=Plan(dp=2))
    return Job(
        specs=(spec,), world_size=2, directory=str(folder), profile=False, memory=False, timeout_s=timeout_s
    )


def alive(folder: Path) -> list[int]:
    """Ranks of the job that still run (zombies do not count)."""
    pids = [int(path.read_text().splitlines()[0]) for path in folder.glob("heartbeat.*")]
    assert len(pids) == 2
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if state != "Z" and str(folder) in command:
            found.append(pid)
    return found


@pytest.mark.parametrize(
    ("beats", "place"),
    [
        ([], None),
        ([(1.0, "starting", ""), (2.0, "starting", "")], None),
        # rank 1 is silent longest, in the third run, while the other has gone on
        ([(9.0, "round 1 of d", "3"), (5.0, "round 1 of c", "2")], 2),
        # rank 0 met an error and waits for the others
        ([(9.0, f"{FAILED} OSError", "1"), (5.0, "warm-up step 0 of b", "0")], 1),
    ],
)
def test_which_run_ended_a_job(
    beats: list[tuple[float, str, str]], place: int | None, tmp_path: Path
) -> None:
    for rank, (when, phase, of) in enumerate(beats):
        path = tmp_path / f"heartbeat.{rank}"
        path.write_text(f"1\n{phase}\n{of}\n")
        os.utime(path, (when, when))
    assert culprit(tmp_path) == place


def test_the_rank_that_died_first_tells_which_run_it_was(tmp_path: Path) -> None:
    for rank, of in enumerate(("0", "4")):
        (tmp_path / f"heartbeat.{rank}").write_text(f"1\nround 0 of x\n{of}\n")
    log = "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n"
    (tmp_path / "torchrun.log").write_text(log)
    assert culprit(tmp_path) == 4


@pytest.mark.distributed
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        run_job(job("dies_on_rank_1", tmp_path, timeout_s=60.0))
    message = str(caught.value)
    assert "rank 1" in message
    assert "about to misbehave" in message
    assert alive(tmp_path) == []


@pytest.mark.distributed
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_a_hung_rank_ends_the_run_within_its_timeout(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        run_job(job("hangs_on_rank_1", tmp_path, timeout_s=6.0))
    message = str(caught.value)
    assert "no rank made progress for 6 s" in message
    assert "about to misbehave" in message
    assert "sample_models.py" in message, "the stack of the hung rank shows where it stands"
    assert alive(tmp_path) == []


@pytest.mark.distributed
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(job("hangs_on_rank_1", tmp_path / "run", timeout_s=60.0).to_json())
    code = (
        "from pathlib import Path; from planner.validation.launch import run_job; "
        f"from planner.validation.run_spec import Job; run_job(Job.load(Path({str(file)!r})))"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    try:
        _until(lambda: len(list((tmp_path / "run").glob("heartbeat.*"))) == 2, 60.0)
        launcher.kill()
        launcher.wait()
        _until(lambda: alive(tmp_path / "run") == [], 20.0)
        assert alive(tmp_path / "run") == []
    finally:
        launcher.kill()


def _until(condition: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "still waiting"
        time.sleep(0.1)
