"""Pipeline schedules: one file per family, each a registered function that lists printable actions."""

from costmodel.registry import Registry

SCHEDULES: Registry[object] = Registry("schedule")
