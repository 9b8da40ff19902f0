"""Electric energy of training: what the boards draw by what they do, what is around them, the building.

    E = n board_power_w (sum over parts of the step of fraction(part) seconds + node_fraction step) PUE

The fractions and their sources stand in `costmodel/data/power.json`. Board power limits are the datasheets'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

import costmodel
from costmodel.errors import UsageError

__all__ = ["PowerModel", "energy_j", "power_model"]

_FILE = Path(costmodel.__path__[0]) / "data" / "power.json"
_COMPUTING = ("compute", "recompute", "optimizer")


class _Sourced(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float = Field(ge=0)
    source: str


class PowerModel(BaseModel):
    """Fractions of board power by what the device does, and what comes on top."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    computing_fraction: _Sourced
    communicating_fraction: _Sourced
    waiting_fraction: _Sourced
    node_fraction: _Sourced
    """Host, network interfaces and fans per board watt."""
    log_sigma: _Sourced
    """Spread of ln(measured / modelled power)."""
    pue: _Sourced
    """Energy of the building over that of its machines."""


@lru_cache(maxsize=1)
def power_model() -> PowerModel:
    """The shipped model."""
    return PowerModel.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))


def energy_j(
    breakdown_s: Mapping[str, float], *, n_devices: int, board_w: float | None, pue: float | None = None
) -> float:
    """Joules of one step of `n_devices` boards. `pue`: 1 leaves the building out; default: the model's.

    Raises UsageError where the device's power limit is not known or the PUE is below 1.
    """
    model = power_model()
    if board_w is None:
        raise UsageError(
            "the hardware profile has no power_w, so its energy is not known; add it to the file"
        )
    building = model.pue.value if pue is None else pue
    if building < 1.0:
        raise UsageError(f"--pue {building:g}: must be at least 1, what the machines take themselves")
    busy_s = 0.0
    for part, seconds in breakdown_s.items():
        if part in _COMPUTING:
            fraction = model.computing_fraction.value
        elif part.endswith("_comm"):
            fraction = model.communicating_fraction.value
        else:
            fraction = model.waiting_fraction.value
        busy_s += seconds * (fraction + model.node_fraction.value)
    return n_devices * board_w * busy_s * building
