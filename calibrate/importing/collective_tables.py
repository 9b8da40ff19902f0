"""Reads tables of measured collectives: CSV, plain or gzipped, one row per time.

Columns: gpu, n_gpus, n_nodes, op, message_bytes, latency_us; also used where given: dtype,
latency_inplace_us, link, impl, timing, source, quality, note. Sizes as nccl-tests prints them. A line that
cannot be read is named with its file and line, and the rest is used.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibrate.collective_samples import CollectiveSample
from costmodel.errors import InputFileError, MeasurementError

__all__ = [
    "REQUIRED",
    "CollectiveTable",
    "is_collective_table",
    "op_name",
    "read_collective_table",
    "read_text",
    "split_implementation",
]

REQUIRED = ("gpu", "n_gpus", "op", "message_bytes", "latency_us")
"""What a table of collectives has at least."""
_OPS = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "alltoall": "all_to_all",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "sendrecv": "p2p",
    "p2p": "p2p",
    "p2pbidirectional": "p2p_bidirectional",
}
_SUFFIXES = (
    (r"nvls\s*off|algo=ring", "ring"),
    (r"algo=nvls(?!tree)", "nvls"),
    (r"algo=tree", "tree"),
    (r"sharp|collnet", "sharp"),
    (r"tuned env", "tuned"),
)
# Out-of-place columns hold first-touch outliers: one this many times the in-place time is not used.
_FIRST_TOUCH_RATIO = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTable:
    """Samples in file order, and what was wrong with the lines that are missing ("file:line: reason").

    A sample's `link` is what the table says of it, not yet the name of a link (`networks.linked_samples`).
    """

    samples: tuple[CollectiveSample, ...]
    problems: tuple[str, ...]


def op_name(text: str) -> str:
    """The profile's name of a collective; as it stands where no other name is known."""
    return _OPS.get(re.sub(r"[^a-z0-9]", "", text.lower()), text)


def split_implementation(text: str, note: str = "") -> tuple[str, str]:
    """(impl, version) of a table's wording.

    What changes the algorithm stays in the name: 'nccl-2.27.7(NVLS off)' -> ('nccl:ring', '2.27'), a note
    'algo=NVLS' -> 'nccl:nvls', switch aggregation 'nccl:sharp', a tuned environment 'nccl:tuned'. Custom
    kernels keep library and kernel: 'custom:vllm-0.14.0:graph' -> ('custom:vllm:graph', '0.14').
    """
    words = f"{text} {note}"
    found = re.search(r"[a-z]+[- ](\d+\.\d+)", words, flags=re.IGNORECASE)
    version = found.group(1) if found else ""
    if text.startswith("custom"):
        return re.sub(r"-\d[\w.]*", "", text), version
    base = re.match(r"[a-zA-Z]+", text)
    impl = base.group(0).lower() if base else "nccl"
    for pattern, suffix in _SUFFIXES:
        if re.search(pattern, words, flags=re.IGNORECASE):
            return f"{impl}:{suffix}", version
    return impl, version


def read_text(path: Path) -> str:
    """Text of a plain or gzipped file. InputFileError where it cannot be read."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise InputFileError(f"{path}: {error}; expected a text file, plain or gzipped") from error


def is_collective_table(path: Path) -> bool:
    """Whether the file's first line names the columns of such a table. InputFileError on one of no text."""
    return set(REQUIRED) <= set(next(csv.reader(io.StringIO(read_text(path))), ()))


def read_collective_table(path: Path) -> CollectiveTable:
    """Samples of a collectives CSV. InputFileError where columns are missing or no line can be used."""
    reader = csv.DictReader(io.StringIO(read_text(path)))
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise InputFileError(
            f"{path}: columns {', '.join(missing)} are missing; a table of collectives has at least "
            f"{', '.join(REQUIRED)}"
        )
    samples: list[CollectiveSample] = []
    problems: list[str] = []
    for number, row in _rows(reader):
        try:
            sample = _sample(row, str(number))
        except (ValueError, MeasurementError) as error:
            problems.append(f"{path}:{reader.line_num}: {error}")
            continue
        samples.append(sample)
    if not samples:
        raise InputFileError(f"{path}: no usable line; {'; '.join(problems[:3]) or 'the table is empty'}")
    return CollectiveTable(samples=tuple(samples), problems=tuple(problems))


def _rows(reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, str]]]:
    yield from enumerate(reader, start=1)


def _sample(row: Mapping[str, str | None], number: str) -> CollectiveSample:
    def text(name: str, default: str = "") -> str:
        return (row.get(name) or default).strip()

    time_us = _positive(text("latency_us"), "latency_us")
    if inplace := text("latency_inplace_us"):
        other = _positive(inplace, "latency_inplace_us")
        if time_us > _FIRST_TOUCH_RATIO * other:
            time_us = other
    impl, version = split_implementation(text("impl", "nccl"), text("note"))
    return CollectiveSample(
        op=op_name(text("op")),
        n_ranks=int(_positive(text("n_gpus"), "n_gpus")),
        n_nodes=int(_positive(text("n_nodes", "1"), "n_nodes")),
        size_bytes=_positive(text("message_bytes"), "message_bytes"),
        dtype=text("dtype"),
        time_s=time_us * 1e-6,
        timing=text("timing", "nccl-tests"),
        impl=impl,
        version=version,
        link=text("link"),
        device=text("gpu"),
        source=text("source"),
        quality=text("quality"),
        row_id=text("id", number),
    )


def _positive(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number") from None
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name}={text!r} must be positive")
    return value
