"""Which quantity of memory a source's reading is."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from costmodel.predict.prediction import StageMemory
from planner.validation.published.memory import memory_row
from planner.validation.published.rows import PublishedRow

GIB = 2**30


def stage(number: int, activations: int) -> StageMemory:
    return StageMemory(
        stage=number,
        parameters=GIB,
        gradients=0,
        optimizer=0,
        activations=activations * GIB,
        temporary=0,
        communication=0,
        framework=2 * GIB,
        fragments=4 * GIB,
    )


@dataclass(frozen=True)
class Forecast:
    memory: tuple[StageMemory, ...] = (stage(0, 9), stage(1, 5))
    device_memory_bytes: int = 12 * GIB


@pytest.mark.parametrize(
    ("notes", "predicted"),
    [
        ("mem-max-allocated-bytes of the last rank", 6.0),
        ("GiB max_reserved", 14.0),
        ("nvidia-smi of the fullest node", 12.0),
    ],
)
def test_the_reading_is_of_the_quantity_its_source_names(notes: str, predicted: float) -> None:
    row = PublishedRow(id="x-1", cells={"peak_mem_gb": "10", "notes": notes})
    reading = memory_row(row, Forecast())  # type: ignore[arg-type]
    assert reading is not None
    assert reading.predicted == pytest.approx(predicted)
    assert reading.low < reading.predicted < reading.high
