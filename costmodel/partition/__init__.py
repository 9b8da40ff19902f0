"""Cutting a model into pipeline stages: where, on how many devices each, and on which.

`balanced`: least bottleneck on equal devices. `replicated`: least latency of a synchronous pipeline whose
stages may have several, unequal devices (DAPPLE). `hierarchical`: least time per mini-batch of an
asynchronous one (PipeDream). `crossing`: what each cut costs in a model with skips. Nothing here knows plans
or profiles.
"""

from costmodel.partition.balanced import balanced_partition, even_partition
from costmodel.partition.crossing import Crossing, crossings, cut_bytes, direct_bytes
from costmodel.partition.hierarchical import Level, Replicated, Throughput, fastest_pipeline
from costmodel.partition.latency import Phases, StageTime, phases
from costmodel.partition.placing import POLICIES, Placement, placements
from costmodel.partition.replicated import Cut, Problem, Stage, StageModel, cuts, steps_of

__all__ = [
    "POLICIES",
    "Crossing",
    "Cut",
    "Level",
    "Phases",
    "Placement",
    "Problem",
    "Replicated",
    "Stage",
    "StageModel",
    "StageTime",
    "Throughput",
    "balanced_partition",
    "crossings",
    "cut_bytes",
    "cuts",
    "direct_bytes",
    "even_partition",
    "fastest_pipeline",
    "phases",
    "placements",
    "steps_of",
]
