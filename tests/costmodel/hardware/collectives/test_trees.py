"""The double binary tree: shape and load."""

from __future__ import annotations

import networkx as nx
import pytest

from costmodel.hardware.collectives.trees import double_tree_load, double_tree_parents


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 13, 16, 31, 64, 100])
def test_both_are_spanning_binary_trees(n: int) -> None:
    for parents in double_tree_parents(n):
        graph = nx.DiGraph((up, node) for node, up in enumerate(parents) if up is not None)
        assert sum(up is None for up in parents) == 1
        assert nx.is_arborescence(graph)
        assert len(graph) == n
        assert max(degree for _, degree in graph.out_degree()) <= 2


@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_inner_in_one_is_leaf_in_the_other(n: int) -> None:
    inner = [{up for up in parents if up is not None} for parents in double_tree_parents(n)]
    assert not inner[0] & inner[1]


def test_load_is_one_for_two_nodes_and_two_for_many() -> None:
    assert double_tree_load(1) == 0.0
    assert double_tree_load(2) == 1.0
    assert all(double_tree_load(n) == 2.0 for n in range(4, 200))


def test_load_is_at_least_the_mean() -> None:
    for n in range(2, 50):
        assert double_tree_load(n) >= 2.0 * (n - 1) / n - 1e-12
