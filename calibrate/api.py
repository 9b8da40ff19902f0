"""calibrate(): measure this machine and fit its profile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.errors import MeasurementError, UsageError

if TYPE_CHECKING:
    from calibrate.hosts import Hosts
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["calibrate", "fit_profile"]

_START_S = 6.0
"""Set aside for starting the ranks and importing torch in them."""
_FIT_FRACTION = 0.15
"""Share of the budget set aside for fitting."""
_LEAST_S = 1.0
_GRACE_S = 90.0
"""Beyond the budget, before ranks count as hung."""


def calibrate(
    *,
    out: Path,
    world_size: int = 2,
    budget_s: float = 60.0,
    resume: bool = True,
    backend: str | None = None,
    only: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
    hosts: Hosts | None = None,
) -> HardwareProfile | None:
    """Measure with `world_size` ranks for about `budget_s` seconds, fit, and write the profile to `out`.

    Samples go to `<out>.samples.jsonl` while they are taken; with `resume`, those of an earlier run on the
    same machine are kept. `hosts`: where the ranks run, if not here.

    Where RANK and WORLD_SIZE are set this process joins as that rank, and every
    rank but 0 returns None. `only`: names of benchmarks (gemm, conv, collectives, host, ...).

    Raises UsageError on bad arguments, MeasurementError where the samples there are of another machine,
    WorkerError where a rank died or hung.
    """
    from calibrate.journal import samples_path
    from calibrate.ranks import joined_by_launcher
    from calibrate.runner import chosen_benchmarks
    from calibrate.worker import Settings, measure

    if hosts is not None:
        hosts.require(world_size)
    if world_size < 1:
        raise UsageError(f"world_size({world_size}) must be at least 1")
    if not 0 < budget_s < 86400:
        raise UsageError(f"budget_s({budget_s:g}) must be above zero and below a day")
    chosen_benchmarks(only)
    out = Path(out)
    settings = Settings(
        samples=samples_path(out).absolute(),
        seconds=max(_LEAST_S, (1.0 - _FIT_FRACTION) * budget_s - _START_S),
        budget_s=budget_s,
        resume=resume,
        backend=backend,
        only=tuple(only or ()),
    )
    if joined_by_launcher():
        if not measure(settings):
            return None
    else:
        _launch(settings, world_size, budget_s, progress, hosts)
    return fit_profile(out, progress=progress)


def fit_profile(out: Path, *, progress: Callable[[str], None] | None = None) -> HardwareProfile:
    """Fit the samples beside `out` and write the profile, whole or not at all.

    Raises InputFileError where there are none, MeasurementError where there are too few.
    """
    from calibrate.assemble import assemble_profile
    from calibrate.drift import fitted_samples
    from calibrate.journal import read_journal, samples_path
    from costmodel.hardware.store import save_profile

    machine, visits = read_journal(samples_path(out))
    samples = fitted_samples(machine, visits)
    if not samples:
        raise MeasurementError(
            f"{samples_path(out)} holds no usable sample; run `foreshard calibrate` again with a larger "
            "--budget"
        )
    profile = assemble_profile(out.stem, machine, samples, progress=progress)
    save_profile(profile, out)
    return profile


def _launch(
    settings: object,
    world_size: int,
    budget_s: float,
    progress: Callable[[str], None] | None,
    hosts: Hosts | None,
) -> None:
    from calibrate.launch import run_ranks
    from calibrate.worker import Settings

    assert isinstance(settings, Settings)
    start = time.monotonic()
    last = [0]

    def tick() -> None:
        seconds = int(time.monotonic() - start)
        if progress is not None and seconds >= last[0] + 5:
            last[0] = seconds
            progress(f"measuring, {seconds} s of about {budget_s:g} s")

    run_ranks(
        "calibrate.worker",
        settings.to_arguments(),
        world_size=world_size,
        timeout_s=float(os.environ.get("FORESHARD_CALIBRATE_TIMEOUT_S", budget_s + _GRACE_S)),
        progress=tick,
        hosts=hosts,
    )
