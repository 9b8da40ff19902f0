"""Fits of independent groups of samples, shared out over processes of one thread each.

`python -m calibrate.parallel_fits` is such a process: pickled (groups, device) on its input, pickled fits
on its output. A process of its own, not multiprocessing: that would run the caller's script again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.hardware.cores import usable_cores

if TYPE_CHECKING:
    from calibrate.samples import SampleTable
    from costmodel.hardware.schema import DeviceSpec, OperatorFit

__all__ = ["fit_groups"]

_GROUPS_PER_PROCESS = 6
"""A process costs about as much to start as this many fits save."""


def fit_groups(groups: Sequence[SampleTable], device: DeviceSpec) -> list[OperatorFit]:
    """One fit per group, in order. A process that fails leaves its share to this one."""
    from calibrate.fitting.operators import fit_operator

    shares = max(1, min(usable_cores(), len(groups) // _GROUPS_PER_PROCESS))
    fits: list[OperatorFit | None] = [None] * len(groups)
    started = [_start(groups[share::shares], device) for share in range(1, shares)]
    try:
        fits[0::shares] = [fit_operator(rows, device) for rows in groups[0::shares]]
        for share, process in enumerate(started, start=1):
            answer, _ = process.communicate()
            if process.returncode == 0:
                fits[share::shares] = pickle.loads(answer)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return [fit or fit_operator(rows, device) for fit, rows in zip(fits, groups, strict=True)]


def _start(groups: Sequence[SampleTable], device: DeviceSpec) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment[name] = "1"
    here = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [here, environment.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-m", "calibrate.parallel_fits"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already; its share is fitted here
        process.stdin.write(pickle.dumps((list(groups), device)))
        process.stdin.close()
    process.stdin = None
    return process


def _main() -> None:
    from calibrate.fitting.operators import fit_operator

    groups, device = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps([fit_operator(rows, device) for rows in groups]))


if __name__ == "__main__":
    _main()
