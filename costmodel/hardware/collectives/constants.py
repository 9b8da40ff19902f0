"""Constants that stand in where nothing was measured, read from `costmodel/data/network/constants.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NetworkConstants", "ProtocolPrior", "network_constants"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProtocolPrior(_Frozen):
    """What a fit of one algorithm and protocol starts from and is drawn to where samples say little."""

    algorithm: str
    protocol: str
    base_s: float = Field(gt=0)
    step_s: float = Field(gt=0)
    node_step_s: float = Field(gt=0)
    bandwidth_fraction: float = Field(gt=0)
    """Of the nominal link."""
    ramp_s: float = Field(ge=0)


class NetworkConstants(_Frozen):
    """Values and where they come from (`sources`, by field)."""

    base_s: float = Field(gt=0)
    ramp_s: float = Field(ge=0)
    nominal_log_sigma: float = Field(gt=0)
    other_op_log_sigma: float = Field(ge=0)
    other_timing_log_sigma: float = Field(ge=0)
    other_device_log_sigma: float = Field(ge=0)
    doubling_log_sigma: float = Field(ge=0)
    own_rate_ratio: float = Field(gt=0)
    """A rank's copy of its own part over the link's rate, where a fit starts."""
    multicast_base_s: float = Field(gt=0)
    multicast_min_ranks: int = Field(ge=2)
    priors: tuple[ProtocolPrior, ...]
    sources: dict[str, str]


@lru_cache(maxsize=1)
def network_constants() -> NetworkConstants:
    """The shipped constants."""
    text = files("costmodel").joinpath("data/network/constants.json").read_text(encoding="utf-8")
    return NetworkConstants.model_validate(json.loads(text))
