"""How unlike two devices are: what decides whose operator times stand in for whose."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from costmodel.hardware.device import peak_flop_per_s
from costmodel.hardware.schema import DeviceSpec

__all__ = ["device_distance", "other_generation"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "device_distance.json"


class _Distance(BaseModel):
    """Weights of `device_distance`; `reasons` of the file say why of each."""

    model_config = ConfigDict(frozen=True)
    generations: tuple[tuple[str, ...], ...]
    generation: float
    """Distance from which a device is of another architecture."""
    other_family: float
    other_kind: float
    ratio: float
    bandwidth_per_multiprocessor: float
    power: float


@lru_cache(maxsize=1)
def _distance() -> _Distance:
    return _Distance.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))


def other_generation() -> float:
    """Distance from which a device is of another architecture."""
    return _distance().generation


def device_distance(source: DeviceSpec, target: DeviceSpec) -> float:
    """How unlike two devices are: 0 = equal; an architecture apart counts 1, a vendor 10, and within one
    architecture the ratios of peak, bandwidth and multiprocessors decide (data/device_distance.json)."""
    weight = _distance()
    apart = weight.other_kind * (source.kind != target.kind)
    for family in weight.generations:
        if source.architecture in family and target.architecture in family:
            between = abs(family.index(source.architecture) - family.index(target.architecture))
            apart += weight.generation * between
    if apart == 0.0 and source.architecture != target.architecture:
        apart = weight.other_family
    ratios = (
        source.memory_bytes_per_s / target.memory_bytes_per_s,
        source.multiprocessors / target.multiprocessors,
        peak_flop_per_s(source, "fp16") / peak_flop_per_s(target, "fp16"),
    )
    # bandwidth per multiprocessor tells server boards with stacked memory from the others
    per_multiprocessor = abs(math.log(ratios[0] / ratios[1]))
    # boards of one chip differ by what they sustain
    power = math.log(source.power_w / target.power_w) if source.power_w and target.power_w else 0.0
    unlike = weight.ratio * sum(abs(math.log(ratio)) for ratio in ratios)
    unlike += weight.bandwidth_per_multiprocessor * per_multiprocessor
    unlike += weight.power * abs(power)
    return apart + unlike
