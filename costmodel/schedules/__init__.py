"""Pipeline schedules: one file per family, each a registered function that lists printable actions."""

from costmodel.schedules import asynchronous, bidirectional, interleaved, synchronous, vshaped, wraparound
from costmodel.schedules.actions import (
    SCHEDULES,
    Order,
    Schedule,
    Step,
    format_csv,
    in_flight,
    parse_csv,
    register_schedule,
    schedule,
)
from costmodel.schedules.receives import posted_after

__all__ = [
    "SCHEDULES",
    "Order",
    "Schedule",
    "Step",
    "format_csv",
    "in_flight",
    "parse_csv",
    "posted_after",
    "register_schedule",
    "schedule",
]

_FAMILIES = (asynchronous, bidirectional, interleaved, synchronous, vshaped, wraparound)
