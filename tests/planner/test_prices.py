"""Prices: every shipped offer names a shipped profile; one's own go first."""

from __future__ import annotations

from datetime import date

import pytest

from costmodel.errors import UsageError
from costmodel.hardware.store import list_profiles
from planner.prices import offers, parse_prices, price_of, require_price


def test_offers_name_profiles_sources_and_days() -> None:
    for offer in offers():
        assert offer.hardware in list_profiles()
        assert offer.source
        assert date.fromisoformat(offer.date) > date(2025, 1, 1)


def test_the_median_stands_within_its_range() -> None:
    price = price_of("h100")
    assert price is not None
    assert price.low < price.usd_per_hour < price.high
    assert price_of("H100-SXM5-80GB:roce-8x400g") == price, "an alias, with a variant of the network"
    assert "2026" in price.text


def test_ones_own_goes_first() -> None:
    own = parse_prices(["h100=1.25", "t4=0"])
    assert price_of("h100-sxm5-80gb", own).usd_per_hour == 1.25
    assert price_of("h100-sxm5-80gb", own).source == "given"
    assert price_of("t4", own).usd_per_hour == 0.0
    assert price_of("a100", own) == price_of("a100")


def test_no_price() -> None:
    assert price_of("p4") is None
    with pytest.raises(UsageError, match="--price p4=USD"):
        require_price("p4")
    assert require_price("p4", {"P4": 0.1}).usd_per_hour == 0.1


@pytest.mark.parametrize(
    "text", ["h100", "h100=", "h100=cheap", "=2", "h100=-1", "h100=nan", "no-such-gpu=1"]
)
def test_prices_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError):
        parse_prices([text])
