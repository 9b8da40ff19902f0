"""Pipeline schedules: one file per family, each a registered function that lists printable actions."""

from costmodel.schedules import interleaved, synchronous
from costmodel.schedules.actions import (
    SCHEDULES,
    Order,
    Step,
    parse_csv,
    register_schedule,
    schedule,
    stage_rank,
)

__all__ = ["SCHEDULES", "Order", "Step", "parse_csv", "register_schedule", "schedule", "stage_rank"]

_FAMILIES = (interleaved, synchronous)
