"""What a device-hour costs: published on-demand offers (`costmodel/data/prices.json`), or one's own price.

Offers of one device differ by a factor of up to four between providers, so the median is taken and the range
said. `--price NAME=USD` goes before them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import costmodel
from costmodel.errors import UsageError

__all__ = ["Offer", "Price", "offers", "parse_prices", "price_of", "require_price"]

_FILE = Path(costmodel.__path__[0]) / "data" / "prices.json"


class Offer(BaseModel):
    """One provider's on-demand price of one device-hour, and where and when it was read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hardware: str
    """Name of a profile."""
    usd_per_hour: float = Field(gt=0)
    provider: str
    source: str
    through: str = ""
    """The public compilation it was taken from, where it was."""
    date: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Price of one device-hour, the range of offers it is the median of, and its source."""

    usd_per_hour: float
    low: float
    high: float
    source: str

    @property
    def text(self) -> str:
        """Price, range and source in words."""
        around = "" if self.low == self.high else f" ({self.low:g} to {self.high:g})"
        return f"{self.usd_per_hour:g} USD/h{around}, {self.source}"

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "usd_per_hour": self.usd_per_hour,
            "low": self.low,
            "high": self.high,
            "source": self.source,
        }


@lru_cache(maxsize=1)
def offers() -> tuple[Offer, ...]:
    """The published offers."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(Offer.model_validate(entry) for entry in data["offers"])


def _profile_name(hardware: str) -> str:
    """Name of the profile that `hardware` (a name, an alias, a file, with or without a variant) means."""
    from costmodel.hardware.store import load_profile

    return load_profile(hardware.partition(":")[0]).name


def parse_prices(texts: Sequence[str] | None) -> dict[str, float]:
    """`["h100=2.5"]` to profile name -> USD per device-hour. Raises UsageError on anything else."""
    prices: dict[str, float] = {}
    for text in texts or ():
        name, _, number = text.rpartition("=")
        try:
            price = float(number)
        except ValueError:
            price = math.nan
        if not name or not (price >= 0 and math.isfinite(price)):
            raise UsageError(f"--price {text!r}: must be NAME=USD per device-hour, for example h100-sxm=2.5")
        prices[_profile_name(name)] = price
    return prices


def price_of(hardware: str, own: Mapping[str, float] | None = None) -> Price | None:
    """Price of a device-hour: one's own (by profile name), else the median offer, else None."""
    name = _profile_name(hardware)
    if own and name in own:
        return Price(usd_per_hour=own[name], low=own[name], high=own[name], source="given")
    found = [offer for offer in offers() if offer.hardware == name]
    if not found:
        return None
    values = [offer.usd_per_hour for offer in found]
    dates = sorted(offer.date for offer in found)
    count = f"{len(found)} on-demand offers, read" if len(found) > 1 else f"{found[0].provider}, read"
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return Price(
        usd_per_hour=float(median(values)), low=min(values), high=max(values), source=f"{count} {when}"
    )


def require_price(hardware: str, own: Mapping[str, float] | None = None) -> Price:
    """As `price_of`. Raises UsageError, with the names that have a price, where there is none."""
    price = price_of(hardware, own)
    if price is None:
        known = ", ".join(sorted({offer.hardware for offer in offers()}))
        raise UsageError(
            f"no price is known of {_profile_name(hardware)!r}; give --price "
            f"{hardware}=USD per device-hour (there are prices of {known})"
        )
    return price
