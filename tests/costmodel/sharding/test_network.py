"""The integer program against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.errors import InfeasibleError
from costmodel.sharding.network import CostNetwork


@st.composite
def networks(draw: st.DrawFn) -> tuple[CostNetwork, list[int]]:
    """Up to 7 nodes, some pairs forbidden (never a node's first state), and each one's 1 to 4 states."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(1, 7))
    density = draw(st.sampled_from([0.3, 0.6, 1.0]))
    network = CostNetwork()
    sizes = [int(rng.integers(1, 5)) for _ in range(n)]
    for size in sizes:
        network.add_node(rng.integers(0, 100, size).astype(float))
    for u in range(n):
        for v in range(u + 1, n):
            if rng.random() < density:
                costs = rng.integers(0, 100, (sizes[u], sizes[v])).astype(float)
                costs[rng.random(costs.shape) < 0.2] = np.inf
                costs[0, :] = np.where(np.isfinite(costs[0, :]), costs[0, :], 500.0)
                costs[:, 0] = np.where(np.isfinite(costs[:, 0]), costs[:, 0], 500.0)
                network.add_pair(u, v, costs)
    return network, sizes


@settings(max_examples=50, deadline=None)
@given(networks(), st.booleans())
def test_equals_brute_force(made: tuple[CostNetwork, list[int]], contract: bool) -> None:
    network, sizes = made
    best = min(network.total(states) for states in product(*map(range, sizes)))
    total, states = network.solve(contract=contract)
    assert total == pytest.approx(best)
    assert network.total(states) == pytest.approx(total)


def test_all_choices_forbidden_is_said() -> None:
    network = CostNetwork()
    a, b = network.add_node(np.zeros(2)), network.add_node(np.zeros(2))
    network.add_pair(a, b, np.full((2, 2), np.inf))
    with pytest.raises(InfeasibleError, match="no way to split"):
        network.solve()


def test_repeated_pairs_add_up_and_a_pair_with_itself_is_a_node_cost() -> None:
    network = CostNetwork()
    a, b = network.add_node(np.array([0.0, 1.0])), network.add_node(np.zeros(2))
    network.add_pair(a, b, np.array([[1.0, 9.0], [9.0, 1.0]]))
    network.add_pair(b, a, np.array([[1.0, 9.0], [9.0, 1.0]]))
    network.add_pair(a, a, np.diag([5.0, 0.0]))
    assert network.solve() == (3.0, (1, 1))


def test_shapes_are_checked() -> None:
    network = CostNetwork()
    a, b = network.add_node(np.zeros(2)), network.add_node(np.zeros(3))
    with pytest.raises(ValueError, match="do not fit"):
        network.add_pair(a, b, np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at least one state"):
        network.add_node(np.zeros(0))
