"""Samples as JSON lines, appended while they are taken.

The first line describes the machine; every other line is one visit of one case. A run that was killed
leaves whole lines and at most one torn last line, which is dropped; a later run counts the visits that
are there and goes on. Lines of two machines never stand in one file.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from calibrate.environment import Machine, require_same_machine
from costmodel.errors import InputFileError
from costmodel.hardware.kinds import COLLECTIVE_KINDS

__all__ = ["Journal", "Sample", "Visit", "merge_visits", "read_journal", "samples_path", "taken_on"]

# Format history:
#   1  first format
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One visit of one case: `n` timed calls, their median, and their interquartile range over median.

    `setting`: "together" (every rank runs it at once), "alone" (rank 0 only), or the group's layout for
    collectives. `waiting`: by how much the slowest rank's time exceeds the ranks' mean, as a fraction, where
    all ran it at once. `time_s` is NaN for a case this machine cannot run; `note` then says why.
    """

    kind: str
    variant: str
    dtype: str
    dims: Mapping[str, int]
    timing: str
    setting: str
    time_s: float
    spread: float
    n: int
    note: str = ""
    waiting: float = 0.0

    @property
    def key(self) -> str:
        """Name of the case; equal for every visit of it."""
        return _case_key(self)

    def to_line(self) -> str:
        """One JSON line without its newline."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["dims"] = dict(self.dims)
        if not math.isfinite(self.time_s):
            fields["time_s"] = None
        return json.dumps({k: v for k, v in fields.items() if k != "note" or v}, allow_nan=False)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read back one line. Raises KeyError, TypeError or ValueError on a line of another shape."""
        time_s = math.nan if fields["time_s"] is None else float(fields["time_s"])
        return cls(**{**fields, "time_s": time_s})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All visits of one case: the median of their medians and how far they lie apart.

    `waiting`: mean of the visits'.
    """

    kind: str
    variant: str
    dtype: str
    dims: Mapping[str, int]
    timing: str
    setting: str
    time_s: float
    spread: float
    n: int
    n_visits: int
    waiting: float = 0.0

    @property
    def key(self) -> str:
        """Name of the case, as its visits have it."""
        return _case_key(self)


def _case_key(measured: Visit | Sample) -> str:
    sizes = ",".join(f"{k}={v}" for k, v in measured.dims.items())
    return "/".join((measured.kind, measured.variant, measured.dtype, measured.setting, sizes))


class Journal:
    """Appends visits to a file; every line is on disk before the next case starts."""

    def __init__(self, path: Path, machine: Machine, *, resume: bool) -> None:
        """Open for appending; with `resume`, keep what is there. MeasurementError on another machine."""
        self.path = path
        self.visits: list[Visit] = []
        if resume and path.is_file():
            there, self.visits, whole_bytes = _parse(path)
            require_same_machine(machine, there, where=str(path))
            if whole_bytes < path.stat().st_size:
                os.truncate(path, whole_bytes)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"format": _FORMAT, "machine": machine.to_dict()}) + "\n")
        self._file = path.open("a", encoding="utf-8")

    def append(self, visit: Visit) -> None:
        """Write one visit through to the file."""
        self.visits.append(visit)
        self._file.write(visit.to_line() + "\n")
        self._file.flush()

    def counts(self) -> dict[str, int]:
        """Case key -> number of visits there are."""
        found: dict[str, int] = {}
        for visit in self.visits:
            found[visit.key] = found.get(visit.key, 0) + 1
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def samples_path(profile: Path) -> Path:
    """Where the samples of a profile stand: beside it, `<name>.samples.jsonl`."""
    return profile.with_name(f"{profile.name.removesuffix('.json')}.samples.jsonl")


def read_journal(path: Path) -> tuple[Machine, list[Visit]]:
    """Machine and visits of a journal. Raises InputFileError where it is missing or not one."""
    if not path.is_file():
        raise InputFileError(f"{path}: no samples there; run `foreshard calibrate` to take them")
    machine, visits, _ = _parse(path)
    return machine, visits


def taken_on(machine: Machine, path: Path) -> bool:
    """Whether a journal is there whose samples are of such a device, torch and number of ranks (the other
    fields are a rank's own)."""
    try:
        there, _ = read_journal(path)
    except InputFileError:
        return False
    return (there.device, there.torch, there.world_size) == (
        machine.device,
        machine.torch,
        machine.world_size,
    )


def merge_visits(visits: Iterable[Visit]) -> list[Sample]:
    """One sample per case, in order of first visit; cases that could not run are left out."""
    cases: dict[str, list[Visit]] = {}
    for visit in visits:
        if math.isfinite(visit.time_s) and visit.time_s > 0.0:
            cases.setdefault(visit.key, []).append(visit)
    return [_merged(group) for group in cases.values()]


def _merged(group: list[Visit]) -> Sample:
    first = group[0]
    if first.kind in COLLECTIVE_KINDS:
        return _averaged(group)
    time_s = statistics.median(v.time_s for v in group)
    within = statistics.median(v.spread for v in group)
    between = 0.0
    if len(group) >= 3:
        low, _, high = statistics.quantiles((v.time_s for v in group), n=4, method="inclusive")
        between = (high - low) / time_s
    return Sample(
        kind=first.kind,
        variant=first.variant,
        dtype=first.dtype,
        dims=first.dims,
        timing=first.timing,
        setting=first.setting,
        time_s=time_s,
        spread=max(within, between),
        n=sum(v.n for v in group),
        n_visits=len(group),
        waiting=statistics.fmean(v.waiting for v in group),
    )


def _averaged(group: list[Visit]) -> Sample:
    """Mean over all calls of all visits, see `timing.time_together`; the spread is that of the mean."""
    first = group[0]
    n = sum(v.n for v in group)
    time_s = sum(v.n * v.time_s for v in group) / n
    errors = [v.n * v.time_s * v.spread for v in group]
    return Sample(
        kind=first.kind,
        variant=first.variant,
        dtype=first.dtype,
        dims=first.dims,
        timing=first.timing,
        setting=first.setting,
        time_s=time_s,
        spread=math.hypot(*errors) / n / time_s,
        n=n,
        n_visits=len(group),
    )


def _parse(path: Path) -> tuple[Machine, list[Visit], int]:
    """Machine, visits and how many bytes of the file are whole lines."""
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        head = json.loads(lines[0])
        version = head["format"]
        fields = head["machine"]
    except (IndexError, KeyError, TypeError, ValueError):
        raise InputFileError(f"{path}: its first line does not describe a machine; use --fresh") from None
    if version != _FORMAT:
        raise InputFileError(
            f"{path}: format {version}, this version reads {_FORMAT}; update foreshard or use --fresh"
        )
    visits = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            visits.append(Visit.from_fields(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputFileError(f"{path}, line {number}: not a sample ({error}); use --fresh") from None
    return Machine.from_dict(fields), visits, len(whole)
