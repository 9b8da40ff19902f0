"""How unlike two devices are: what decides whose operator times stand in for whose."""

from __future__ import annotations

import math

from costmodel.hardware.device import peak_flop_per_s
from costmodel.hardware.schema import DeviceSpec

__all__ = ["OTHER_GENERATION", "device_distance"]

_GENERATIONS = ("Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell")
_AMD = ("CDNA1", "CDNA2", "CDNA3")
OTHER_GENERATION = 1.0
"""Distance from which a device is of another architecture."""


def device_distance(source: DeviceSpec, target: DeviceSpec) -> float:
    """How unlike two devices are: 0 = equal; an architecture apart counts 1, a vendor 10, and within one
    architecture the ratios of peak, bandwidth and multiprocessors decide."""
    apart = 10.0 * (source.kind != target.kind)
    for family in (_GENERATIONS, _AMD):
        if source.architecture in family and target.architecture in family:
            apart += abs(family.index(source.architecture) - family.index(target.architecture))
    if apart == 0.0 and source.architecture != target.architecture:
        apart = 5.0
    ratios = (
        source.memory_bytes_per_s / target.memory_bytes_per_s,
        source.multiprocessors / target.multiprocessors,
        peak_flop_per_s(source, "fp16") / peak_flop_per_s(target, "fp16"),
    )
    # bandwidth per multiprocessor tells server boards with stacked memory from the others
    per_multiprocessor = abs(math.log(ratios[0] / ratios[1]))
    # boards of one chip differ by what they sustain
    power = math.log(source.power_w / target.power_w) if source.power_w and target.power_w else 0.0
    unlike = 0.1 * sum(abs(math.log(ratio)) for ratio in ratios) + 0.4 * per_multiprocessor + 0.2 * abs(power)
    return apart + unlike
