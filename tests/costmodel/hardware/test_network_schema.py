"""Networks as data: variants, validation, round trip."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from costmodel.errors import UsageError
from costmodel.hardware.network_schema import CollectiveFit, Link, NetworkModel, PathFit, SizeCurve


def _link(name: str, kind: str = "nvswitch", **fields: object) -> Link:
    return Link(name=name, kind=kind, latency_s=1e-6, bytes_per_s=1e11, source="test", **fields)


def _network(**fields: object) -> NetworkModel:
    return NetworkModel(
        name="n",
        ranks_per_node=8,
        intra=(_link("fast"), _link("slow", "pcie")),
        inter=(_link("ib", "infiniband", nics_per_node=4), _link("eth", "ethernet")),
        source="test",
        **fields,
    )


def test_links_take_the_first_where_a_variant_is_silent() -> None:
    network = _network()
    assert [link and link.name for link in network.links()] == ["fast", "ib"]
    assert [link and link.name for link in network.links("slow")] == ["slow", "ib"]
    assert [link and link.name for link in network.links("eth")] == ["fast", "eth"]
    assert [link and link.name for link in network.links("slow+eth")] == ["slow", "eth"]
    assert network.nics_per_node == 4


def test_every_listed_variant_resolves() -> None:
    network = _network()
    for variant in network.variants():
        assert network.links(variant)[0] in network.intra


def test_unknown_variant_lists_what_there_is() -> None:
    with pytest.raises(UsageError, match=r"'token-ring'.*fast\+ib"):
        _network().links("token-ring")


def test_fit_over_an_unknown_link_is_refused() -> None:
    path = PathFit(algorithm="ring", protocol="simple", base_s=1e-6)
    fit = CollectiveFit(
        op="all_reduce", link="absent", timing="nccl-tests", paths=(path,), log_sigma=0.1, source="t"
    )
    with pytest.raises(ValidationError, match="absent"):
        _network(fits=(fit,))


@pytest.mark.parametrize(
    ("knots", "ratios"),
    [((1.0, 1.0), (0.0, 0.0)), ((1.0, 2.0), (0.0,)), ((), ())],
    ids=["equal", "short", "none"],
)
def test_broken_curves_are_refused(knots: tuple[float, ...], ratios: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        SizeCurve(n_ranks=2, log2_bytes=knots, log_ratio=ratios, log_sigma=(0.1,) * len(knots))


def test_json_round_trip_keeps_everything() -> None:
    path = PathFit(algorithm="ring", protocol="ll", base_s=1e-6, step_s=2e-6, intra_bytes_per_s=3e10)
    curve = SizeCurve(n_ranks=2, log2_bytes=(10.0, 20.0), log_ratio=(0.1, 0.0), log_sigma=(0.1, 0.2))
    fit = CollectiveFit(
        op="all_reduce",
        link="fast",
        timing="nccl-tests",
        paths=(path,),
        curves=(curve,),
        log_sigma=0.1,
        source="t",
    )
    network = _network(fits=(fit,))
    assert NetworkModel.model_validate_json(network.model_dump_json()) == network
