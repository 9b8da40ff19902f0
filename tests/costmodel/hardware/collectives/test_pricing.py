"""Times of collectives: properties over sizes, ranks, nodes and variants."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import UsageError
from costmodel.hardware.collectives import busbw_bytes_per_s, collective_times, fastest_collective
from costmodel.hardware.collectives.algorithms import path_shape
from costmodel.hardware.collectives.pricing import nic_fraction, path_times
from costmodel.hardware.kinds import COLLECTIVE_KINDS, CollectiveGroup
from costmodel.hardware.network_schema import CollectiveFit, NetworkModel, PathFit, SizeCurve
from costmodel.hardware.node_links import device_network, inter_link
from costmodel.hardware.store import load_profile

SIZES = np.exp2(np.linspace(3, 36, 600))


def _fitted() -> NetworkModel:
    """H100-like node with a protocol change and a curve that dips: the hard case for monotone times."""
    network = device_network("H100-SXM5")
    ring = {"algorithm": "ring", "node_step_s": 1e-5, "inter_bytes_per_s": 3.8e11}
    paths = (
        PathFit(protocol="ll", base_s=5e-6, step_s=8e-7, intra_bytes_per_s=7e10, **ring),
        PathFit(protocol="simple", base_s=2e-5, step_s=1e-6, intra_bytes_per_s=3.6e11, ramp_s=1e-5, **ring),
    )
    curves = tuple(
        SizeCurve(
            n_ranks=n,
            log2_bytes=(10.0, 18.0, 20.0, 30.0),
            log_ratio=(0.1, 0.3, -0.6, 0.0),
            log_sigma=(0.02, 0.1, 0.1, 0.02),
        )
        for n in (2, 4)
    )
    fit = CollectiveFit(
        op="all_reduce",
        link="nvlink4",
        timing="nccl-tests",
        paths=paths,
        curves=curves,
        log_sigma=0.05,
        doubling_log_sigma=0.06,
        source="test",
    )
    between = fit.model_copy(update={"link": "infiniband-8x400g", "curves": ()})
    return network.model_copy(update={"fits": (fit, between)})


NETWORKS = {name: device_network(name) for name in ("V100-SXM2", "A100-SXM4", "H100-SXM5", "T4", "A100-PCIe")}
NETWORKS["fitted"] = _fitted()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("op", COLLECTIVE_KINDS)
def test_times_are_finite_monotone_and_continuous(name: str, op: str) -> None:
    network = NETWORKS[name]
    local = network.ranks_per_node
    for group in (
        CollectiveGroup(n_ranks=2),
        CollectiveGroup(n_ranks=local),
        CollectiveGroup(n_ranks=4 * local, n_nodes=4),
    ):
        estimate = collective_times(network, op, SIZES, group)
        assert np.all(np.isfinite(estimate.median_s))
        assert np.all(estimate.median_s > 0)
        assert np.all(np.diff(estimate.median_s) >= -1e-15)
        # a factor of 1.04 in size never doubles the time
        assert np.max(np.diff(np.log(estimate.median_s))) < np.log(2.0)
        assert np.all(estimate.log_sigma > 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_never_faster_than_the_line(name: str) -> None:
    network = NETWORKS[name]
    n = network.ranks_per_node
    seconds = collective_times(network, "all_gather", SIZES, CollectiveGroup(n_ranks=n)).median_s
    link = network.intra[0]
    width = link.bytes_per_s * (6 if link.mesh else 1)
    assert np.all(seconds >= (n - 1) / n * SIZES / width * (1 - 1e-9))
    group = CollectiveGroup(n_ranks=2 * n, n_nodes=2)
    seconds = collective_times(network, "all_reduce", SIZES, group).median_s
    line = network.inter[0].bytes_per_s * network.inter[0].nics_per_node
    assert np.all(seconds >= 0.9 * SIZES / line)


def test_one_rank_and_nothing_to_send_take_no_time() -> None:
    network = NETWORKS["fitted"]
    one = collective_times(network, "all_reduce", SIZES, CollectiveGroup(n_ranks=1))
    assert not one.median_s.any()
    none = collective_times(network, "all_reduce", np.array([0.0, 8.0]), CollectiveGroup(n_ranks=4))
    assert none.median_s[0] == 0.0
    assert none.median_s[1] > 0.0
    assert len(collective_times(network, "p2p", np.array([]), CollectiveGroup(n_ranks=2)).median_s) == 0


@settings(max_examples=30, deadline=None)
@given(st.floats(8.0, 1e11), st.sampled_from([2, 4, 8]))
def test_single_size_equals_its_place_in_a_vector(size: float, n: int) -> None:
    group = CollectiveGroup(n_ranks=n)
    alone = collective_times(NETWORKS["fitted"], "all_reduce", np.array([size]), group)
    among = collective_times(NETWORKS["fitted"], "all_reduce", np.array([64.0, size, 1e9]), group)
    assert alone.median_s[0] == among.median_s[1]
    assert alone.log_sigma[0] == among.log_sigma[1]


def test_spread_grows_away_from_the_measured_groups() -> None:
    network = NETWORKS["fitted"]
    size = np.array([1e9])
    near, far = (
        collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=n)).log_sigma[0] for n in (4, 8)
    )
    assert far > near


def test_path_formula() -> None:
    path = PathFit(
        algorithm="ring", protocol="simple", base_s=1e-5, step_s=1e-6, intra_bytes_per_s=1e11, ramp_s=4e-6,
        spill_bytes=1e9, spill_bytes_per_s=1e12,
    )  # fmt: skip
    size = np.array([1e8, 4e9])
    busy = 1.5 * size / 1e11
    expected = 1e-5 + 6e-6 + busy + np.sqrt(4e-6 * busy) + np.maximum(0, 1.5 * size - 1e9) / 1e12
    assert path_times(path, path_shape("ring", "all_reduce", 4, 1), size) == pytest.approx(expected)


def test_half_the_interfaces_take_about_twice_as_long() -> None:
    network = NETWORKS["fitted"]
    size = np.array([8e9])
    alone = collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=32, n_nodes=4)).median_s
    shared = collective_times(
        network, "all_reduce", size, CollectiveGroup(n_ranks=32, n_nodes=4, nic_sharing=2)
    ).median_s
    assert 1.8 < shared[0] / alone[0] < 2.1


def test_share_of_interfaces() -> None:
    link = inter_link("infiniband-8x400g")
    assert nic_fraction("all_reduce", link, 8, CollectiveGroup(n_ranks=16, n_nodes=2)) == 1.0
    assert nic_fraction("all_reduce", link, 8, CollectiveGroup(n_ranks=2, n_nodes=2)) == 1 / 8
    assert nic_fraction("p2p", link, 8, CollectiveGroup(n_ranks=16, n_nodes=2)) == 1 / 8
    one = inter_link("ethernet-1x100g")
    assert nic_fraction("all_reduce", one, 8, CollectiveGroup(n_ranks=2, n_nodes=2)) == 1.0
    assert nic_fraction("all_reduce", one, 8, CollectiveGroup(n_ranks=2, n_nodes=2, nic_sharing=8)) == 1 / 8


def test_slower_variants_are_slower() -> None:
    network = NETWORKS["H100-SXM5"]
    size = np.array([1e9])
    inside = CollectiveGroup(n_ranks=8)
    assert (
        collective_times(network, "all_reduce", size, inside, "pcie5").median_s[0]
        > 3 * collective_times(network, "all_reduce", size, inside).median_s[0]
    )
    between = CollectiveGroup(n_ranks=16, n_nodes=2)
    assert (
        collective_times(network, "all_reduce", size, between, "ethernet-1x25g").median_s[0]
        > 20 * collective_times(network, "all_reduce", size, between).median_s[0]
    )


def test_a_bridge_serves_a_pair_and_the_bus_the_rest() -> None:
    network = device_network("A100-PCIe")
    size = np.array([1e9])
    pair, four = (
        collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=n)).median_s[0] for n in (2, 4)
    )
    bus = collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=4), "pcie4").median_s[0]
    assert four == bus
    assert four > 5 * pair


def test_what_goes_through_the_hosts_memory_is_shared_by_the_ranks() -> None:
    network = device_network("RTX 3070")
    host = network.intra[0]
    assert host.shared_bytes_per_s is not None
    size = np.array([4e9])
    bus = [
        float(busbw_bytes_per_s("all_reduce", size, times, n)[0]) * n
        for n in (4, 8)
        for times in [collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=n)).median_s]
    ]
    assert bus == pytest.approx([host.shared_bytes_per_s] * 2, rel=0.05)
    peers = device_network("RTX A5000")  # these write into each other's memory
    four, eight = (
        collective_times(peers, "all_reduce", size, CollectiveGroup(n_ranks=n), "pcie4-peer").median_s[0]
        for n in (4, 8)
    )
    assert eight == pytest.approx(four * (7 / 4) / (3 / 2), rel=0.05)


def test_without_a_multicasting_switch_there_is_no_nvls_between_nodes() -> None:
    network = device_network("H100-SXM5")
    group = CollectiveGroup(n_ranks=32, n_nodes=4)
    path = PathFit(
        algorithm="ring", protocol="simple", base_s=1e-5, intra_bytes_per_s=3.6e11, inter_bytes_per_s=3.8e11
    )
    paths = (path, path.model_copy(update={"algorithm": "nvls_tree"}))
    fit = CollectiveFit(
        op="all_reduce", link="infiniband-8x400g", timing="t", paths=paths, log_sigma=0.1, source="t"
    )
    network = network.model_copy(update={"fits": (fit,)})
    size = np.array([8e9])
    bus = collective_times(network, "all_reduce", size, group, "pcie5").median_s[0]
    limit = network.intra[1].bytes_per_s * network.intra[1].efficiency
    assert bus == pytest.approx(1e-5 + 2 * 31 / 32 * 8e9 / limit, rel=1e-3)


def test_errors_say_what_there_is() -> None:
    network = NETWORKS["fitted"]
    with pytest.raises(UsageError, match="unknown collective 'gossip'"):
        collective_times(network, "gossip", SIZES, CollectiveGroup(n_ranks=2))
    with pytest.raises(UsageError, match="no link between nodes"):
        collective_times(
            network.model_copy(update={"inter": (), "fits": ()}),
            "all_reduce",
            SIZES,
            CollectiveGroup(n_ranks=4, n_nodes=2),
        )
    with pytest.raises(UsageError, match="custom:none"):
        collective_times(network, "all_reduce", SIZES, CollectiveGroup(n_ranks=2), impl="custom:none")


def test_holding_the_library_to_one_algorithm() -> None:
    network = NETWORKS["fitted"]
    ring = collective_times(network, "all_reduce", SIZES, CollectiveGroup(n_ranks=4), impl="nccl:ring")
    free = collective_times(network, "all_reduce", SIZES, CollectiveGroup(n_ranks=4), impl="nccl")
    assert ring.median_s == pytest.approx(free.median_s)  # the fit has rings only
    with pytest.raises(UsageError, match="no path by 'nvls'"):
        collective_times(network, "all_reduce", SIZES, CollectiveGroup(n_ranks=8), impl="nccl:nvls")


def test_bus_bandwidth() -> None:
    assert busbw_bytes_per_s("all_reduce", np.array([8e9]), np.array([0.04]), 8)[0] == pytest.approx(3.5e11)


def test_a_frameworks_own_all_reduce_is_taken_where_it_is_faster() -> None:
    network = load_profile("H100-SXM5-80GB").network
    assert network is not None
    sizes = np.array([2.0**12, 2.0**16, 2.0**30])
    inside, across = CollectiveGroup(n_ranks=8), CollectiveGroup(n_ranks=16, n_nodes=2)
    impls = ("custom:nobody:None", "custom:trtllm:TRTLLM")
    nccl = collective_times(network, "all_reduce", sizes, inside).median_s
    own = collective_times(network, "all_reduce", sizes, inside, impl=impls[1]).median_s
    best = fastest_collective(network, "all_reduce", sizes, inside, impls=impls).median_s
    assert list(best) == list(np.minimum(nccl, own))
    assert best[0] < nccl[0]
    far = fastest_collective(network, "all_reduce", sizes, across, impls=impls).median_s
    assert list(far) == list(collective_times(network, "all_reduce", sizes, across).median_s)


def _gather_only(device: str, link: str) -> NetworkModel:
    """A device whose all-gather alone was measured between nodes."""
    network = device_network(device)
    ring = PathFit(
        algorithm="ring",
        protocol="simple",
        base_s=1e-5,
        step_s=1e-6,
        node_step_s=1e-5,
        intra_bytes_per_s=3.5e11,
        inter_bytes_per_s=3.8e11,
    )
    fit = CollectiveFit(
        op="all_gather", link=link, timing="nccl-tests", paths=(ring,), log_sigma=0.05, source="t"
    )
    return network.model_copy(update={"fits": (fit,)})


def test_all_reduce_from_a_measured_gather_may_take_trees() -> None:
    # Two nodes: a tree sends half of what a ring sends between them, and the switch reduces inside.
    network = _gather_only("H100-SXM5", "roce-8x400g")
    group = CollectiveGroup(n_ranks=16, n_nodes=2)
    size = np.array([2.0**34])
    variant = "roce-8x400g"
    reduce = collective_times(network, "all_reduce", size, group, variant).median_s[0]
    ring = collective_times(network, "all_reduce", size, group, variant, impl="nccl:ring").median_s[0]
    gather = collective_times(network, "all_gather", size, group, variant).median_s[0]
    assert ring == pytest.approx(2 * gather, rel=0.01)
    assert reduce < 0.8 * ring


def test_racks_ring_between_each_other() -> None:
    network = _gather_only("GB300", "roce-72x800g")
    group = CollectiveGroup(n_ranks=128, n_nodes=2)
    size = np.array([2.0**34])
    reduce = collective_times(network, "all_reduce", size, group, "roce-72x800g").median_s[0]
    ring = collective_times(network, "all_reduce", size, group, "roce-72x800g", impl="nccl:ring").median_s[0]
    assert reduce == pytest.approx(ring)


def test_a_nominal_switch_reduces_at_its_own_port_rate() -> None:
    network = device_network("B300")
    size = np.array([2.0**35])
    time = collective_times(network, "all_reduce", size, CollectiveGroup(n_ranks=8, n_nodes=1)).median_s[0]
    port = network.intra[0].bytes_per_s * (network.intra[0].multicast_efficiency or 1.0)
    assert time == pytest.approx(1.125 * size[0] / port, rel=0.05)


def test_all_to_all_between_nodes_from_another_op_stays_at_what_a_rank_passes_on() -> None:
    group = CollectiveGroup(n_ranks=16, n_nodes=2)
    size = np.array([2.0**34])
    taken = {}
    for link in ("roce-8x400g", "roce-8x100g"):
        network = _gather_only("H100-SXM5", "roce-8x400g")
        between = inter_link(link)
        fits = tuple(fit.model_copy(update={"link": link}) for fit in network.fits)
        network = network.model_copy(update={"inter": (between,), "fits": fits})
        taken[link] = collective_times(network, "all_to_all", size, group)
        gather = collective_times(network, "all_gather", size, group)
        assert taken[link].log_sigma[0] > gather.log_sigma[0]
    passed = between.rank_exchange_bytes_per_s
    assert passed is not None
    # half of each rank's buffer goes to the other node
    assert taken["roce-8x400g"].median_s[0] == pytest.approx(0.5 * size[0] / passed, rel=0.02)
    assert taken["roce-8x100g"].median_s[0] > 1.5 * taken["roce-8x400g"].median_s[0]


def test_a_measured_exchange_stands_as_it_was_measured() -> None:
    network = _gather_only("H100-SXM5", "roce-8x400g")
    direct = network.fits[0].paths[0].model_copy(update={"algorithm": "direct"})
    fit = network.fits[0].model_copy(update={"op": "all_to_all", "paths": (direct,)})
    measured = network.model_copy(update={"fits": (*network.fits, fit)})
    group, size = CollectiveGroup(n_ranks=16, n_nodes=2), np.array([2.0**34])
    time = collective_times(measured, "all_to_all", size, group, "roce-8x400g").median_s[0]
    assert time == pytest.approx(4 * size[0] / 3.8e11, rel=0.02)


def test_what_interfaces_carry_moves_no_exchange_that_ranks_limit() -> None:
    """Shipped profiles: twice the line between nodes is no faster for all-to-all, but for gathers."""
    size = np.array([2.0**33])
    group = CollectiveGroup(n_ranks=16, n_nodes=2)

    def took(name: str, op: str) -> float:
        network = load_profile(name).network
        assert network is not None
        variant = next(link.name for link in network.inter if link.kind == "infiniband")
        return float(collective_times(network, op, size, group, variant).median_s[0])

    assert took("b300", "all_to_all") == pytest.approx(took("b200", "all_to_all"), rel=0.03)
    assert took("b300", "all_gather") < 0.6 * took("b200", "all_gather")
