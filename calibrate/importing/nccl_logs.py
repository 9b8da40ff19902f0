"""Reads the logs of nccl-tests, whatever columns the version prints.

A data line is `size count type [redop] [root] time algbw busbw #wrong [time algbw busbw #wrong]`: redop and
root as the collective has them, one or two groups of times (out of place, in place), `#wrong` or `error`
or neither. The header lines ("# size count ...", "# (B) (elements) ...") say which; without one the
columns are told by their form. Ranks are counted from the "# Rank" lines, which also name the
GPU; nodes from their host names.

A log of a program that prints several collectives names each by "# Collective: ..." or by the program's
name in its first lines ("all_reduce_perf"); else the caller says which.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.collective_samples import CollectiveSample
from calibrate.importing.collective_tables import op_name, read_text
from costmodel.errors import InputFileError, MeasurementError
from costmodel.hardware.kinds import COLLECTIVE_KINDS

__all__ = ["NcclLog", "read_nccl_log"]

_FIRST_TOUCH_RATIO = 2.0
_PROGRAM = re.compile(
    r"\b(all_reduce|all_gather|reduce_scatter|alltoall|broadcast|reduce|sendrecv)_perf\b", re.IGNORECASE
)
_NAMED = re.compile(r"#\s*(?:Collective|Testing|Operation)\s*(?:test)?\s*:?\s*(\w+)", re.IGNORECASE)
_BANNER = re.compile(r"#.*\b(AllReduce|AllGather|ReduceScatter|AlltoAll|Broadcast|Reduce|SendRecv)\b")
_RANK = re.compile(
    r"#\s*Rank\s+(\d+)\b.*?\bon\s+(\S+)(?:\s+device\s+\d+\s+\[[^\]]*\]\s*(\S.*))?", re.IGNORECASE
)
_VERSION = re.compile(r"NCCL\s+version\s+(\d+\.\d+)", re.IGNORECASE)
_TYPES = re.compile(r"u?int(8|32|64)?|char|half|float(16|32|64)?|double|bf(loat)?16|fp?8_?e[45]m[32]")
_REDOPS = ("sum", "prod", "min", "max", "avg", "none", "mulsum", "all")
_UNIT_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "ns": 1e-9}
_SIZE = re.compile(r"\d+(\.\d+)?([KMGT]i?B?|B)?$", re.IGNORECASE)
_SCALE = {"": 1.0, "B": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class NcclLog:
    """Samples in order, and what was wrong with the data lines left out ("file:line: reason")."""

    samples: tuple[CollectiveSample, ...]
    problems: tuple[str, ...]


@dataclass(slots=True)
class _State:
    """What the header lines read so far say."""

    op: str
    time_unit_s: float
    ranks: set[int]
    hosts: set[str]
    version: str
    device: str


def read_nccl_log(
    path: Path,
    *,
    op: str | None = None,
    n_ranks: int | None = None,
    n_nodes: int | None = None,
    device: str = "",
    link: str = "",
) -> NcclLog:
    """Samples of one log. `op`, `n_ranks`, `n_nodes`, `device` stand for what the log does not say.

    InputFileError where the file cannot be read, has no data line, or neither log nor caller says which
    collective or how many ranks.
    """
    state = _State(op or "", _UNIT_S["us"], set(), set(), "", "")
    samples: list[CollectiveSample] = []
    problems: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = re.sub(r"^\S*\[?\d*[,:]\S*\]?<\w+>:?\s*", "", line).strip()  # mpirun's "[1,0]<stdout>:"
        if not text:
            continue
        if not _looks_like_data(text):
            _read_header(text, state, op)
            continue
        try:
            samples.append(_sample(text, state, n_ranks, n_nodes, device, link, path, number))
        except (ValueError, MeasurementError) as error:
            problems.append(f"{path}:{number}: {error}")
    if not samples:
        raise InputFileError(
            f"{path}: no usable line of nccl-tests; {'; '.join(problems[:3]) or 'no line looks like data'}"
        )
    return NcclLog(samples=tuple(samples), problems=tuple(problems))


def _looks_like_data(text: str) -> bool:
    words = text.split()
    return len(words) >= 5 and not text.startswith("#") and bool(_SIZE.match(words[0])) and words[1].isdigit()


def _read_header(text: str, state: _State, op: str | None) -> None:
    """Take what a comment or program line says about the lines that follow."""
    if found := _RANK.search(text):
        state.ranks.add(int(found.group(1)))
        state.hosts.add(found.group(2))
        state.device = (found.group(3) or state.device).strip()
    if found := _VERSION.search(text):
        state.version = found.group(1)
    if op is None:
        for pattern in (_PROGRAM, _NAMED, _BANNER):
            if (found := pattern.search(text)) and op_name(found.group(1)) in COLLECTIVE_KINDS:
                state.op = op_name(found.group(1))
                break
    if text.startswith("#") and (units := re.findall(r"\((us|ms|ns|s)\)", text)):
        state.time_unit_s = _UNIT_S[units[0]]


def _sample(
    text: str,
    state: _State,
    n_ranks: int | None,
    n_nodes: int | None,
    device: str,
    link: str,
    path: Path,
    number: int,
) -> CollectiveSample:
    words = text.split()
    dtype = words[2].lower()
    if not _TYPES.fullmatch(dtype):
        raise ValueError(f"{words[2]!r} is no data type of nccl-tests")
    rest = words[3:]
    if rest and rest[0].lower() in _REDOPS:
        rest = rest[1:]
    if len(rest) in (4, 5, 7, 9) and re.fullmatch(r"-?\d+", rest[0]) and _is_root(rest):
        rest = rest[1:]
    time_s = _chosen_time(rest) * state.time_unit_s
    ranks = n_ranks or (max(state.ranks) + 1 if state.ranks else 0)
    if not state.op:
        raise ValueError("the log does not say which collective; give it (op=...)")
    if not ranks:
        raise ValueError('the log has no "# Rank" lines; give the number of ranks (n_ranks=...)')
    return CollectiveSample(
        op=state.op,
        n_ranks=ranks,
        n_nodes=n_nodes or max(1, len(state.hosts)),
        size_bytes=_size(words[0]),
        dtype=dtype,
        time_s=time_s,
        timing="nccl-tests",
        impl="nccl",
        version=state.version,
        link=link,
        device=state.device or device,
        source=f"log:{path.name}",
        row_id=f"{path.name}:{number}",
    )


def _is_root(rest: Sequence[str]) -> bool:
    """Whether a leading whole number is the root: then one, not zero, words are left over beside groups.

    A group is time, algbw, busbw and possibly #wrong; a time is printed with a point or is followed by two
    rates, a root by a time and two rates.
    """
    without = len(rest) - 1
    if without in (3, 4, 6, 8) and len(rest) not in (3, 4, 6, 8):
        return True
    # 4 words: root + 3, or one group of 4 with #wrong; the last of a group with #wrong is a whole number
    # or N/A, the last rate has a point.
    return len(rest) == 4 and "." in rest[3] and "." in rest[1]


def _chosen_time(rest: Sequence[str]) -> float:
    """Out-of-place time, or the in-place one where the former is a first-touch outlier."""
    if len(rest) in (6, 8):
        half = len(rest) // 2
        groups = [rest[:half], rest[half:]]
    elif len(rest) in (3, 4):
        groups = [rest]
    else:
        raise ValueError(
            f"{len(rest)} values after type, redop and root; a line has 3 or 4 (time, algbw, busbw, #wrong), "
            "or twice that with in-place columns"
        )
    times = []
    for group in groups:
        if len(group) == 4 and group[3] not in ("N/A", "-") and float(group[3]) > 1e-2:
            raise ValueError(f"{group[3]} wrong values: the transfer failed its own check")
        times.append(float(group[0]))
    for time in times:
        if not (time > 0 and math.isfinite(time)):
            raise ValueError(f"time {time} must be positive")
    if len(times) == 2 and times[0] > _FIRST_TOUCH_RATIO * times[1]:
        return times[1]
    return times[0]


def _size(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTB]?)(?:i?B)?", text, flags=re.IGNORECASE)
    if found is None or float(found.group(1)) <= 0:
        raise ValueError(f"size {text!r} must be a positive number of bytes")
    return float(found.group(1)) * _SCALE[found.group(2).upper()]
