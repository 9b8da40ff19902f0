"""Constants that stand in where nothing was measured, and how firmly fits are drawn to them: read from
`constants.json` and `prior_spreads.json` in `costmodel/data/network`."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NetworkConstants", "PriorSpreads", "ProtocolPrior", "network_constants", "prior_spreads"]


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
    exchange_log_sigma: float = Field(ge=0)
    """Between clusters and settings, of all_to_all between nodes."""
    doubling_log_sigma: float = Field(ge=0)
    own_rate_ratio: float = Field(gt=0)
    """A rank's copy of its own part over the link's rate, where a fit starts."""
    multicast_base_s: float = Field(gt=0)
    multicast_min_ranks: int = Field(ge=2)
    tree_max_ranks_per_node: int = Field(ge=2)
    """Larger groups of linked ranks (racks) ring between each other."""
    priors: tuple[ProtocolPrior, ...]
    sources: dict[str, str]


class PriorSpreads(_Frozen):
    """Spread of ln(parameter) around its prior in a fit, by what carries the samples; 0 = held.

    `sources` says why of each.
    """

    about: str
    direct_step_share: float = Field(gt=0, le=1)
    """Of a ring's step: what a peer of a direct exchange costs."""
    least_inter_log_sigma: float = Field(gt=0)
    inter_share_of_lost: float = Field(gt=0)
    """Of what is left to the line rate between nodes: how far large transfers stray from the usual share."""
    time_log_sigma: float = Field(gt=0)
    """Of a measured time."""
    step_order_log_sigma: float = Field(gt=0)
    flag_share: float = Field(gt=0, le=1)
    """Most data among the bytes of a protocol that carries flags beside it."""
    usual: dict[str, float]
    node: dict[str, float]
    beyond_a_pair: dict[str, float]
    switch: dict[str, float]
    mesh: dict[str, float]
    multicast: dict[str, float]
    multicast_between: dict[str, float]
    between: dict[str, float]
    between_simple: dict[str, float]
    custom: dict[str, float]
    host: dict[str, float]
    sources: dict[str, str]


def _read(name: str) -> Any:
    return json.loads(files("costmodel").joinpath(f"data/network/{name}.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def network_constants() -> NetworkConstants:
    """The shipped constants."""
    return NetworkConstants.model_validate(_read("constants"))


@lru_cache(maxsize=1)
def prior_spreads() -> PriorSpreads:
    """The shipped spreads."""
    return PriorSpreads.model_validate(_read("prior_spreads"))
