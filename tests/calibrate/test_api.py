"""A calibration on this machine with two real ranks: killed, resumed, complete; refused elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibrate.api import calibrate
from calibrate.journal import read_journal, samples_path
from calibrate.table import collective_table
from costmodel.errors import MeasurementError, UsageError
from costmodel.hardware.store import load_profile

_ONLY = ("softmax", "collectives")


def test_bad_arguments(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    with pytest.raises(UsageError, match="world_size"):
        calibrate(out=out, world_size=0)
    with pytest.raises(UsageError, match="budget_s"):
        calibrate(out=out, budget_s=-1.0)
    with pytest.raises(UsageError, match="no-such"):
        calibrate(out=out, only=["no-such"])
    assert not out.exists()


@pytest.mark.distributed
@pytest.mark.slow
def test_killed_then_resumed_gives_a_complete_profile(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    samples = samples_path(out)
    script = (
        # a shell's background jobs ignore the signal, and so would what they start
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from pathlib import Path; from calibrate.api import calibrate; "
        f"calibrate(out=Path({str(out)!r}), budget_s=5.0, only={_ONLY!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    end = time.monotonic() + 60.0
    while time.monotonic() < end and (not samples.is_file() or len(samples.read_text().splitlines()) < 6):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)  # torchrun is told to end its ranks on the way out
    process.wait(30)
    assert not out.exists()
    before = read_journal(samples)[1]
    assert before
    profile = calibrate(out=out, budget_s=5.0, only=_ONLY)
    assert profile is not None
    after = read_journal(samples)[1]
    assert after[: len(before)] == before
    assert load_profile(out) == profile
    assert profile.network is not None
    assert {fit.op for fit in profile.network.fits} >= {"all_reduce", "all_gather", "p2p"}
    assert profile.environment.threads == int(os.environ.get("OMP_NUM_THREADS", "1"))
    table = collective_table(out)
    assert len(table.rows) >= 7 * 5  # a slow minute leaves out the largest sizes
    assert all(row.time_s > 0 and row.fit_s > 0 for row in table.rows)
    assert "noise:" in table.verdict

    lines = samples.read_text().splitlines()
    head = json.loads(lines[0])
    head["machine"]["device"] = "Another CPU"
    samples.write_text("\n".join([json.dumps(head), *lines[1:]]) + "\n")
    with pytest.raises(MeasurementError, match="Another CPU"):
        calibrate(out=out, budget_s=5.0, only=["softmax"])
    assert load_profile(out) == profile
