"""The event engine: actions with durations and dependencies on streams of ranks, to start and end times."""

from costmodel.engine.core import STREAMS, Action, Run, run

__all__ = ["STREAMS", "Action", "Run", "run"]
