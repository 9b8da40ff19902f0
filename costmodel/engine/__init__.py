"""The event engine: actions with durations and dependencies on streams of ranks, to start and end times."""

from costmodel.engine.core import Action, Run, run

__all__ = ["Action", "Run", "run"]
