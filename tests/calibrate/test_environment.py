"""Machines compare by everything that changes a time, and by nothing else."""

from __future__ import annotations

import pytest

from calibrate.environment import Machine, cpu_name, last_level_cache_bytes, require_same_machine
from costmodel.errors import MeasurementError
from tests.calibrate.machines import a_machine


def test_this_machine_round_trips_and_equals_itself() -> None:
    here = Machine.here(world_size=2, backend="gloo")
    again = Machine.from_dict(here.to_dict())
    assert again == here
    require_same_machine(here, again, where="x")
    assert here.memory_bytes > 1 << 28
    assert here.cores >= 1
    assert here.threads >= 1


def test_load_and_clock_may_differ() -> None:
    assert a_machine().differences(a_machine(load=9.0, clock_hz=1.0)) == {}


def test_every_difference_is_listed() -> None:
    with pytest.raises(MeasurementError) as caught:
        require_same_machine(a_machine(), a_machine(backend="nccl", threads=4), where="file.jsonl")
    text = str(caught.value)
    assert "backend: here 'gloo', there 'nccl'" in text
    assert "threads: here 1, there 4" in text
    assert "file.jsonl" in text


def test_unknown_fields_are_an_error() -> None:
    with pytest.raises(MeasurementError, match="--fresh"):
        Machine.from_dict({**a_machine().to_dict(), "extra": 1})


def test_processor_has_a_name_and_a_cache() -> None:
    assert cpu_name()
    assert last_level_cache_bytes() >= 1 << 16
