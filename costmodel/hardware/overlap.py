"""What a collective takes from computation that runs beside it, where a profile has not measured it.

A GPU's collectives are kernels: they keep multiprocessors to themselves and move their bytes through the
device's memory. Both go with the rate at which a rank moves them, so one figure serves: the share of the
memory's bandwidth, `memory_traffic` bytes for each byte moved (costmodel/data/overlap.json). Over a slow link
next to nothing is taken however long the collective runs.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.schema import HardwareProfile

__all__ = ["share_taken"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "overlap.json"


@cache
def _figures() -> tuple[float, float]:
    data = json.loads(_FILE.read_text())
    return float(data["memory_traffic"]), float(data["most"])


def share_taken(profile: HardwareProfile, moved_bytes: FloatArray, seconds: FloatArray) -> FloatArray:
    """Share of a rank's device, 0 to below 1, that collectives keep from computation while they run.

    `moved_bytes`: what the rank moves in them (bus factor x size, as nccl-tests counts), `seconds`: their
    time; arrays of one shape. 0 on a CPU and where the profile has a measured factor instead.
    """
    if profile.device.kind == "cpu" or profile.overlap.source:
        return np.zeros_like(seconds)
    traffic, most = _figures()
    rate = np.divide(moved_bytes, seconds, out=np.zeros_like(seconds), where=seconds > 0)
    return np.asarray(np.minimum(most, traffic * rate / profile.device.memory_bytes_per_s))
