"""Constants of networks: each has its source, and spreads are of parameters that paths have."""

from __future__ import annotations

from costmodel.hardware.collectives.constants import network_constants, prior_spreads
from costmodel.hardware.network_schema import PathFit


def test_every_spread_has_its_reason() -> None:
    spreads = prior_spreads()
    assert set(spreads.sources) == set(type(spreads).model_fields) - {"about", "sources"}


def test_spreads_are_of_fitted_parameters() -> None:
    spreads = prior_spreads()
    for name, values in spreads:
        if isinstance(values, dict) and name != "sources":
            assert set(values) <= set(spreads.usual) <= set(PathFit.model_fields), name
            assert all(value >= 0.0 for value in values.values()), name


def test_constants_say_where_they_come_from() -> None:
    constants = network_constants()
    assert set(constants.sources) == set(type(constants).model_fields) - {"sources"}
