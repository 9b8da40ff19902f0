"""How much wider a prediction gets where a fit stands in for what was not measured."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["FallbackSpread", "fallback_spread"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "operator_fallback.json"


class FallbackSpread(BaseModel):
    """Spreads of ln(time), added in quadrature; `source` says where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    variant_log_sigma: float
    same_width_dtype_log_sigma: float
    dtype_log_sigma: float
    sibling_kind_log_sigma: float
    timing_log_sigma: float
    datasheet_log_sigma: float
    transfer_same_architecture_log_sigma: float
    transfer_other_architecture_log_sigma: float
    transfer_near_distance: float
    transfer_balance_ratio: float
    """Corrections of products stay between devices whose peak over bandwidth differs by no more than this."""
    few_samples_reach: float
    """Distance in ln(sizes) over which a fit to a few sizes gives way to one that was timed."""


@lru_cache(maxsize=1)
def fallback_spread() -> FallbackSpread:
    """The shipped figures."""
    return FallbackSpread.model_validate(json.loads(_FILE.read_text(encoding="utf-8")))
