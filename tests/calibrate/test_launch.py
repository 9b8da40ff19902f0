"""Ranks that die or hang end the run with their own words, and no process is left."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from calibrate.launch import run_ranks
from costmodel.errors import MeasurementError, WorkerError

pytestmark = pytest.mark.distributed


def run(mode: str, folder: Path, timeout_s: float = 60.0) -> None:
    run_ranks(
        "tests.calibrate.a_rank",
        [mode, str(folder / "rank")],
        world_size=2,
        timeout_s=timeout_s,
        signs=folder / "signs",
    )


def all_gone(folder: Path) -> bool:
    """Whether no process that a rank wrote down is there any more (a zombie of init's counts as gone)."""
    for path in folder.glob("rank.[01]"):
        stat = Path(f"/proc/{path.read_text()}/stat")
        if stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            return False
    return True


def test_ranks_run_with_one_thread_each(tmp_path: Path) -> None:
    run("environment", tmp_path)
    assert [(tmp_path / f"rank.env.{r}").read_text() for r in (0, 1)] == [
        os.environ.get("OMP_NUM_THREADS", "1")
    ] * 2


def test_a_dead_rank_shows_its_log(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="rank one says goodbye"):
        run("dies", tmp_path)
    assert all_gone(tmp_path)


def test_an_error_of_a_rank_is_the_run_s_error(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"^this machine is not that machine$"):
        run("error", tmp_path)
    assert all_gone(tmp_path)


def test_a_hung_rank_is_killed_at_the_limit(tmp_path: Path) -> None:
    start = time.time()
    with pytest.raises(WorkerError, match="rank one waits for ever") as caught:
        run("hangs", tmp_path, timeout_s=8.0)
    end = time.time()
    assert "no further for 8 s" in str(caught.value)
    assert end - start < 60.0  # not the ten minutes that the rank sleeps
    assert end - (tmp_path / "signs").stat().st_mtime > 7.9, "the limit counts from the last sign of life"
    assert all_gone(tmp_path)
