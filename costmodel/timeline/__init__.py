"""A simulated step to look at: Perfetto/Chrome traces and a Gantt plot."""

from costmodel.timeline.gantt import write_gantt
from costmodel.timeline.perfetto import trace_events, write_perfetto

__all__ = ["trace_events", "write_gantt", "write_perfetto"]
