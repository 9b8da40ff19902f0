"""Sharding on the graph: placements, strategies per operator, the solver, and one rank's part of a model."""

from __future__ import annotations

from costmodel.sharding.api import shard
from costmodel.sharding.candidates import Axis, Rules
from costmodel.sharding.expert import Routing
from costmodel.sharding.placements import Partial, Placement, Replicate, Shard
from costmodel.sharding.sharded import CollectiveCall, LocalParameter, ShardedGraph, ShardedSegment
from costmodel.sharding.solver import Assignment, solve_segment

__all__ = [
    "Assignment",
    "Axis",
    "CollectiveCall",
    "LocalParameter",
    "Partial",
    "Placement",
    "Replicate",
    "Routing",
    "Rules",
    "Shard",
    "ShardedGraph",
    "ShardedSegment",
    "shard",
    "solve_segment",
]
