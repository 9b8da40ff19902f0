"""Fits of collectives on times made by known paths: recovery, extrapolation over ranks and nodes, honesty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from calibrate.collective_samples import CollectiveSample
from calibrate.fitting.collectives import fit_collectives
from costmodel.errors import MeasurementError
from costmodel.hardware.collectives import collective_times
from costmodel.hardware.collectives.algorithms import path_shape
from costmodel.hardware.collectives.pricing import path_times
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.network_schema import Link, NetworkModel, PathFit
from costmodel.hardware.node_links import device_network
from costmodel.hardware.topology import link_capacity

SIZES = 2.0 ** np.arange(9, 31, 2)
TRUTH = (
    PathFit(algorithm="ring", protocol="ll", base_s=6e-6, step_s=9e-7, intra_bytes_per_s=4e10),
    PathFit(
        algorithm="ring",
        protocol="simple",
        base_s=1.2e-5,
        step_s=1.5e-6,
        intra_bytes_per_s=2.3e11,
        ramp_s=1e-5,
    ),
)


def _made(
    op: str,
    paths: Sequence[PathFit],
    groups: Sequence[tuple[int, int]],
    link: Link,
    *,
    noise: float = 0.02,
    name: str = "",
    sizes: np.ndarray = SIZES,
) -> list[CollectiveSample]:
    rng = np.random.default_rng(7)
    samples = []
    for n, nodes in groups:
        times = np.min(
            [
                path_times(
                    path,
                    path_shape(path.algorithm, op, n, nodes),
                    sizes,
                    intra_capacity=link_capacity(link, path.algorithm, n // nodes),
                )
                for path in paths
            ],
            axis=0,
        )
        times = times * np.exp(rng.normal(0.0, noise, len(times)))
        samples += [
            CollectiveSample(
                op=op,
                n_ranks=n,
                n_nodes=nodes,
                size_bytes=float(s),
                time_s=float(t),
                timing="nccl-tests",
                link=name,
            )
            for s, t in zip(sizes, times, strict=True)
        ]
    return samples


def _errors(
    network: NetworkModel, samples: Sequence[CollectiveSample], variant: str | None = None
) -> np.ndarray:
    found = []
    for s in samples:
        group = CollectiveGroup(n_ranks=s.n_ranks, n_nodes=s.n_nodes)
        t = collective_times(network, s.op, np.array([s.size_bytes]), group, variant or s.link or None)
        found.append(t.median_s[0] / s.time_s - 1.0)
    return np.array(found)


def test_fit_on_two_and_four_ranks_carries_to_eight() -> None:
    base = device_network("A100-SXM4")
    network = fit_collectives(_made("all_gather", TRUTH, [(2, 1), (4, 1)], base.intra[0]), base)
    unseen = _made("all_gather", TRUTH, [(8, 1)], base.intra[0], noise=0.0)
    assert np.mean(np.abs(_errors(network, unseen))) < 0.08
    residual = network.fits[0].residual
    assert residual is not None
    assert residual.mape < 0.06
    assert 0.8 <= residual.coverage <= 1.0


def test_sizes_between_samples_are_met_closely() -> None:
    base = device_network("A100-SXM4")
    network = fit_collectives(_made("all_reduce", TRUTH, [(2, 1), (4, 1)], base.intra[0], noise=0.01), base)
    unseen = _made("all_reduce", TRUTH, [(4, 1)], base.intra[0], noise=0.0, sizes=SIZES[:-1] * 2)
    assert np.mean(np.abs(_errors(network, unseen))) < 0.05


def test_cube_mesh_fitted_on_four_ranks_knows_eight_by_its_links() -> None:
    base = device_network("V100-SXM2")
    link = base.intra[0]
    paths = (
        PathFit(algorithm="ring", protocol="simple", base_s=2e-5, step_s=3e-6, intra_bytes_per_s=2.25e10),
        PathFit(algorithm="tree", protocol="simple", base_s=2e-5, step_s=3e-6, intra_bytes_per_s=2.25e10),
    )
    network = fit_collectives(_made("all_reduce", paths, [(2, 1), (3, 1), (4, 1)], link), base)
    unseen = _made(
        "all_reduce", paths, [(5, 1), (7, 1), (8, 1)], link, noise=0.0, sizes=2.0 ** np.arange(24, 31)
    )
    assert np.mean(np.abs(_errors(network, unseen))) < 0.06


def test_two_node_tree_is_not_carried_naively_to_many_nodes() -> None:
    """Two nodes' trees show twice the line's rate as bus bandwidth; eight nodes cannot."""
    base = device_network("H100-SXM5")
    name = "tcpxo-8x200g"
    paths = (
        PathFit(
            algorithm="tree", protocol="simple", base_s=5e-5, step_s=1e-6, node_step_s=4e-5,
            intra_bytes_per_s=3.6e11 * 2, inter_bytes_per_s=1.8e11, ramp_s=1e-5,
        ),
    )  # fmt: skip
    link = base.intra[0]
    seen = _made("all_reduce", paths, [(16, 2)], link, name=name, sizes=2.0 ** np.arange(20, 34))
    network = fit_collectives(seen, base)
    size = np.array([8e9])
    two, eight = (
        collective_times(
            network, "all_reduce", size, CollectiveGroup(n_ranks=8 * n, n_nodes=n), name
        ).median_s[0]
        for n in (2, 8)
    )
    assert two == pytest.approx(8e9 / 1.8e11, rel=0.05)
    assert eight == pytest.approx(2 * 8e9 / 1.8e11, rel=0.12)


def test_rates_above_the_line_mean_a_tree_below_it_a_ring() -> None:
    base = device_network("A100-SXM4")
    line = base.inter[0].bytes_per_s * base.inter[0].nics_per_node
    assert base.inter[0].name == "infiniband-8x200g"
    ring = PathFit(
        algorithm="ring", protocol="simple", base_s=5e-5, step_s=1e-6, node_step_s=1e-5,
        intra_bytes_per_s=2.3e11, inter_bytes_per_s=0.95 * line, ramp_s=1e-5,
    )  # fmt: skip
    sizes = 2.0 ** np.arange(20, 34)
    seen = _made("all_reduce", [ring], [(16, 2)], base.intra[0], name=base.inter[0].name, sizes=sizes)
    network = fit_collectives(seen, base)
    unseen = _made("all_reduce", [ring], [(64, 8)], base.intra[0], noise=0.0, name=base.inter[0].name,
                   sizes=2.0 ** np.arange(28, 34))  # fmt: skip
    assert np.mean(np.abs(_errors(network, unseen))) < 0.1


def test_an_exchange_far_below_the_line_is_a_rate_not_a_slow_start() -> None:
    """Half of the line at every size: a fit held to the line had made it a ramp, outgrown by large sizes."""
    base = device_network("B200")
    name = "infiniband-8x400g"
    path = PathFit(
        algorithm="direct", protocol="simple", base_s=2e-5, step_s=1e-7, node_step_s=2e-5,
        intra_bytes_per_s=7e11, inter_bytes_per_s=1.4e11, ramp_s=1e-5,
    )  # fmt: skip
    sizes = 2.0 ** np.arange(16, 31)
    seen = _made("all_to_all", [path], [(16, 2)], base.intra[0], name=name, sizes=sizes)
    network = fit_collectives(seen, base)
    unseen = _made("all_to_all", [path], [(64, 8)], base.intra[0], noise=0.0, name=name,
                   sizes=2.0 ** np.arange(28, 36))  # fmt: skip
    assert np.mean(np.abs(_errors(network, unseen))) < 0.06


def test_gloo_on_shared_memory_between_its_sizes_and_ranks() -> None:
    memory = Link(name="shm", kind="shared_memory", latency_s=2e-5, bytes_per_s=5e9, source="test")
    base = NetworkModel(name="cpu", ranks_per_node=4, intra=(memory,), source="test")
    sizes = 4.0 ** np.arange(5, 14)

    def times(n: int, s: np.ndarray) -> np.ndarray:  # caches hold 8 MB, memory is half as fast
        volume = 2 * (n - 1) / n * s
        return 3e-5 + 2 * (n - 1) * 2.5e-5 + volume / 4e9 + np.maximum(0.0, volume - 8e6) / 4e9

    samples = [
        CollectiveSample(
            op="all_reduce", n_ranks=n, size_bytes=float(s), time_s=float(t), timing="eager_loop", impl="gloo"
        )
        for n in (2, 4)
        for s, t in zip(sizes, times(n, sizes), strict=True)
    ]
    network = fit_collectives(samples, base)
    for n in (2, 4):
        between = sizes[:-1] * 2
        got = collective_times(network, "all_reduce", between, CollectiveGroup(n_ranks=n)).median_s
        assert np.mean(np.abs(got / times(n, between) - 1)) < 0.06
        at = collective_times(network, "all_reduce", sizes, CollectiveGroup(n_ranks=n)).median_s
        assert np.mean(np.abs(at / times(n, sizes) - 1)) < 0.04
    three = collective_times(network, "all_reduce", sizes, CollectiveGroup(n_ranks=3)).median_s
    assert np.mean(np.abs(three / times(3, sizes) - 1)) < 0.15


def test_versions_keep_their_own_curves() -> None:
    base = device_network("A100-SXM4")
    old = _made("all_reduce", TRUTH, [(2, 1)], base.intra[0])
    samples = [
        CollectiveSample(
            op=s.op, n_ranks=2, size_bytes=s.size_bytes, time_s=s.time_s * f, timing=s.timing, version=v
        )
        for s in old
        for v, f in (("2.9", 1.3), ("2.27", 1.0))
    ]
    network = fit_collectives(samples, base)
    size, group = np.array([2.0**21]), CollectiveGroup(n_ranks=2)
    slow, fast, newest = (
        collective_times(network, "all_reduce", size, group, version=v).median_s[0]
        for v in ("2.9", "2.27", None)
    )
    assert slow / fast == pytest.approx(1.3, rel=0.1)
    assert newest == fast


def test_ways_of_timing_never_share_a_fit() -> None:
    base = device_network("A100-SXM4")
    made = _made("all_reduce", TRUTH, [(2, 1)], base.intra[0])
    other = [
        CollectiveSample(
            op=s.op, n_ranks=2, size_bytes=s.size_bytes, time_s=5 * s.time_s, timing="kernel_only"
        )
        for s in made
    ]
    network = fit_collectives([*made, *other], base)
    assert {fit.timing for fit in network.fits} == {"nccl-tests", "kernel_only"}
    assert np.mean(np.abs(_errors(network, made))) < 0.05


def test_unknown_links_and_missing_links_are_named() -> None:
    base = device_network("A100-SXM4")
    sample = CollectiveSample(
        op="p2p", n_ranks=2, size_bytes=8.0, time_s=1e-5, timing="nccl-tests", link="string"
    )
    with pytest.raises(MeasurementError, match="'string'"):
        fit_collectives([sample], base)
    far = CollectiveSample(op="p2p", n_ranks=2, n_nodes=2, size_bytes=8.0, time_s=1e-5, timing="nccl-tests")
    with pytest.raises(MeasurementError, match="no link between nodes"):
        fit_collectives([far], base.model_copy(update={"inter": ()}))
