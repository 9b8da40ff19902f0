"""Measured collectives out of files of either kind: tables (CSV) and logs of nccl-tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.importing.collective_tables import (
    CollectiveTable,
    is_collective_table,
    read_collective_table,
)
from calibrate.importing.nccl_logs import read_nccl_log
from costmodel.errors import InputFileError
from costmodel.hardware.datasheets import find_datasheet

__all__ = ["read_collectives"]


def read_collectives(paths: Sequence[Path], *, gpu: str = "") -> CollectiveTable:
    """Several files as one table; row ids are as in their files. `gpu`: of logs that do not name theirs.

    InputFileError where a file cannot be read, holds no line that can be used, or nobody names its GPU.
    """
    tables = [_read(path, gpu) for path in paths]
    return CollectiveTable(
        samples=tuple(sample for table in tables for sample in table.samples),
        problems=tuple(problem for table in tables for problem in table.problems),
    )


def _read(path: Path, gpu: str) -> CollectiveTable:
    if ".csv" in path.name.lower() or is_collective_table(path):
        return read_collective_table(path)
    log = read_nccl_log(path, device=gpu)
    named = {sample.device for sample in log.samples}
    if "" in named:
        raise InputFileError(
            f'{path}: the log has no "# Rank" lines that name the GPU; name it with --gpu, for example '
            "--gpu A100-SXM4-80GB"
        )
    known = {name: sheet.device.name for name in named if (sheet := find_datasheet(name)) is not None}
    samples = tuple(replace(sample, device=known.get(sample.device, sample.device)) for sample in log.samples)
    return CollectiveTable(samples=samples, problems=log.problems)
