"""Collectives: algorithms, which one a library takes, and how long it takes.

>>> import numpy as np
>>> from costmodel.hardware.kinds import CollectiveGroup
>>> from costmodel.hardware.network_schema import Link, NetworkModel
>>> link = Link(name="nvlink3", kind="nvswitch", latency_s=2e-6, bytes_per_s=300e9, source="datasheet")
>>> network = NetworkModel(name="a100", ranks_per_node=8, intra=(link,), source="datasheet")
>>> times = collective_times(network, "all_reduce", np.array([1e6, 1e9]), CollectiveGroup(n_ranks=8))
>>> bool(times.median_s[1] > 1.75e9 / 300e9)
True
"""

from __future__ import annotations

from costmodel.hardware.collectives.algorithms import bus_factor
from costmodel.hardware.collectives.pricing import (
    SIZE_GRID_BYTES,
    busbw_bytes_per_s,
    collective_times,
    fastest_collective,
)

__all__ = ["SIZE_GRID_BYTES", "bus_factor", "busbw_bytes_per_s", "collective_times", "fastest_collective"]
