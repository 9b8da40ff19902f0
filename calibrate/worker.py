"""One rank of a calibration: `python -m torch.distributed.run -m calibrate.worker -- ...`, or joined."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from calibrate.asking import Again, ask
from calibrate.benchmarks.base import Bench
from calibrate.deciding import DecidingRunner, write_outcome
from calibrate.environment import Machine
from calibrate.journal import Journal, Visit
from calibrate.ranks import Ranks, join, leave
from calibrate.runner import TOGETHER, Runner, chosen_benchmarks
from calibrate.timing import time_call
from calibrate.wanted import read_wanted
from costmodel.errors import ForeshardError

__all__ = ["Settings", "main", "measure"]

_DEFAULT_BUDGET_S = 60.0
_SLICE_S = 0.012
_LONGEST_CALL_FRACTION = 1e-3
_PROBE_SIDE = {"cpu": 512, "cuda": 4096}
_PROBE_LINK_BYTES = 1 << 20
_PROBE_ELEMENTS = {"cpu": 4 << 20, "cuda": 64 << 20}
_FEWER_POINTS = {"cpu": 1.0, "cuda": 0.5}
"""A GPU has twice the dtypes, and a captured graph takes longer to make than a call to time."""
_SHORTER_CALLS = {"cpu": 1.0, "cuda": 0.25}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all ranks are told: where samples go, and how long measuring may take from now on."""

    samples: Path
    seconds: float
    budget_s: float
    resume: bool = True
    backend: str | None = None
    only: tuple[str, ...] = ()
    wanted: Path | None = None
    """A list of what to measure instead of the benchmarks, see `wanted.py`; its outcome stands beside it."""
    known: int = 0
    """So many of the first visits in the journal are in the profile that the list's predictions are of."""
    until: float = math.inf
    """time.monotonic() at which measuring ends at the latest, however long ranks took to start."""

    def to_arguments(self) -> list[str]:
        """Command line of `main`."""
        arguments = ["--samples", str(self.samples), "--seconds", str(self.seconds)]
        arguments += ["--budget", str(self.budget_s)]
        if not self.resume:
            arguments.append("--fresh")
        if self.backend:
            arguments += ["--backend", self.backend]
        for name in self.only:
            arguments += ["--only", name]
        if self.wanted is not None:
            arguments += ["--wanted", str(self.wanted), "--known", str(self.known)]
        if self.until < math.inf:
            arguments += ["--until", str(self.until)]
        return arguments


class _Known(NamedTuple):
    """What rank 0 tells the others: the device's rough rates and the visits there are."""

    flop_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float
    times: dict[str, list[float]]


def measure(settings: Settings, again: Again | None = None) -> bool:
    """Take samples on this rank together with the others; returns whether it is rank 0.

    `again`: with a list of what is wanted, what a fit of the samples taken so far says of the contenders; by
    default the process that started the ranks is asked. Raises MeasurementError where the journal belongs to
    another machine.
    """
    deadline = min(time.monotonic() + settings.seconds, settings.until)
    names = chosen_benchmarks(settings.only)
    _limit_threads()
    ranks = join(backend=settings.backend, timeout_s=max(30.0, 2 * settings.seconds))
    try:
        _measure_as(ranks, settings, names, deadline, again)
    finally:
        leave()
    return ranks.rank == 0


def _measure_as(
    ranks: Ranks, settings: Settings, names: Sequence[str], deadline: float, again: Again | None
) -> None:
    import torch

    journal = None
    machine = Machine.here(world_size=ranks.world_size, backend=ranks.backend)
    if ranks.rank == 0:
        try:
            journal = Journal(settings.samples, machine, resume=settings.resume)
        except ForeshardError as error:
            ranks.agree([0.0])
            raise error
    if not ranks.agree([1.0])[0][0]:
        return  # rank 0 says why
    bench, visits = _bench(ranks, settings, machine, journal)
    del machine
    _warm_heap()
    deciding = settings.wanted is not None
    runner = (DecidingRunner if deciding else Runner)(
        bench,
        agree=ranks.agree,
        journal=journal,
        visits=visits,
        deadline=deadline,
        slice_s=_SLICE_S * max(1.0, (settings.budget_s / _DEFAULT_BUDGET_S) ** 0.5),
    )
    with torch.no_grad():
        if isinstance(runner, DecidingRunner) and settings.wanted is not None:
            listed = settings.wanted
            outcome = runner.decide(read_wanted(listed), again or (lambda: ask(listed)), known=settings.known)
            if outcome is not None:
                write_outcome(outcome, listed)
        else:
            runner.run(names)
    if journal is not None:
        journal.close()


def _bench(
    ranks: Ranks, settings: Settings, machine: Machine, journal: Journal | None
) -> tuple[Bench, dict[str, list[float]]]:
    """The bench with rank 0's rates, and the visits rank 0 has in its journal, equal on every rank."""
    import torch.distributed as dist

    found: list[_Known | None] = [None]
    link = _probe_link(ranks)
    if journal is not None:
        known = {v.variant: v for v in journal.visits if v.kind == "probe"}
        probes = [] if {"gemm", "copy"} <= set(known) else _probe(ranks)
        for visit in (*probes, *([] if "link" in known else link)):
            journal.append(visit)
            known[visit.variant] = visit
        times: dict[str, list[float]] = {}
        for visit in journal.visits:
            times.setdefault(visit.key, []).append(visit.time_s if visit.time_s > 0 else -1.0)
        rates = (
            known["gemm"].dims["flop"] / known["gemm"].time_s,
            known["copy"].dims["bytes"] / known["copy"].time_s,
            known["link"].dims["bytes"] / known["link"].time_s if "link" in known else math.inf,
        )
        found = [_Known(*rates, times)]
    if ranks.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    known_rates = found[0]
    assert known_rates is not None
    share = settings.budget_s / _DEFAULT_BUDGET_S
    bench = Bench(
        ranks.device,
        cache_bytes=machine.cache_bytes,
        flop_per_s=known_rates.flop_per_s,
        bytes_per_s=known_rates.bytes_per_s,
        link_bytes_per_s=known_rates.link_bytes_per_s,
        largest_s=_SHORTER_CALLS[ranks.device.type]
        * _LONGEST_CALL_FRACTION
        * min(4 * _DEFAULT_BUDGET_S, max(10.0, settings.budget_s)),
        n_points=_FEWER_POINTS[ranks.device.type] * min(2.0, max(0.25, share)) ** 0.7,
        rank=ranks.rank,
        groups=ranks.groups,
        per_core=ranks.per_core,
    )
    return bench, known_rates.times


def _probe(ranks: Ranks) -> list[Visit]:
    """Rough rates of the device, by which cases are chosen; kept, so that a resumed run chooses the same."""
    import torch

    side, elements = _PROBE_SIDE[ranks.device.type], _PROBE_ELEMENTS[ranks.device.type]
    a = torch.rand(side, side, device=ranks.device)
    x = torch.rand(elements, device=ranks.device)
    y = torch.empty_like(x)
    cuda = ranks.device.type == "cuda"

    def settled(call: object) -> object:
        if cuda:
            torch.cuda.synchronize()
        return call

    calls = {"gemm": lambda: settled(torch.mm(a, a)), "copy": lambda: settled(y.copy_(x))}
    sizes = {"gemm": {"flop": 2 * side**3}, "copy": {"bytes": 8 * elements}}
    visits = []
    for variant, call in calls.items():
        timed = time_call(call, slice_s=0.03)
        visits.append(
            Visit(
                kind="probe",
                variant=variant,
                dtype="fp32",
                dims=sizes[variant],
                timing="eager_loop",
                setting=TOGETHER,
                time_s=timed.time_s,
                spread=timed.spread,
                n=timed.n,
            )
        )
    return visits


def _probe_link(ranks: Ranks) -> list[Visit]:
    """Rough rate of an all-reduce among all ranks, which all take part in; none for one rank."""
    import torch
    import torch.distributed as dist

    if ranks.world_size < 2:
        return []
    buffer = torch.zeros(_PROBE_LINK_BYTES // 4, device=ranks.device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        dist.all_reduce(buffer, group=ranks.groups[ranks.world_size])
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return [
        Visit(
            kind="probe",
            variant="link",
            dtype="fp32",
            dims={"bytes": _PROBE_LINK_BYTES},
            timing="eager_loop",
            setting=TOGETHER,
            time_s=min(times),
            spread=0.0,
            n=len(times),
        )
    ]


def _warm_heap() -> None:
    """Touch the memory that a step's activations would have touched by now."""
    import torch

    kept = [torch.empty(4 << 20).zero_() for _ in range(6)]
    del kept


def _limit_threads() -> None:
    """One thread per rank unless the launcher says otherwise, as torchrun sets it."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of a rank that `calibrate.launch` started."""
    parser = argparse.ArgumentParser(prog="calibrate.worker")
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--backend")
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--wanted", type=Path)
    parser.add_argument("--known", type=int, default=0)
    parser.add_argument("--until", type=float, default=math.inf)
    given = parser.parse_args(arguments)
    settings = Settings(
        samples=given.samples,
        seconds=given.seconds,
        budget_s=given.budget,
        resume=not given.fresh,
        backend=given.backend,
        only=tuple(given.only),
        wanted=given.wanted,
        known=given.known,
        until=given.until,
    )
    try:
        measure(settings)
    except ForeshardError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
