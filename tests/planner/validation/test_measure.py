"""Interval unions, and the peak of live tensors against hand-counted bytes."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planner.validation.measure import peak_memory, union_s
from planner.validation.memory_watch import MemoryWatch
from planner.validation.strategies.compose import Runner

spans = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 20)).map(lambda s: (float(s[0]), float(s[0] + s[1]))),
    max_size=12,
)


@given(spans)
def test_union_equals_counting_unit_cells(found: list[tuple[float, float]]) -> None:
    cells = {i for start, end in found for i in range(int(start), int(end))}
    assert union_s(found) == len(cells)


def test_peak_counts_what_lives_at_once() -> None:
    known = torch.zeros(1000)  # 4000 bytes
    with MemoryWatch([known]) as watch:
        a = torch.zeros(500)  # + 2000
        del a
        b = torch.zeros(250)  # + 1000
        view = b[:10]
        assert watch.live_bytes() == 5000
        del b
        assert watch.live_bytes() == 5000, "a view keeps its storage"
        del view
        assert watch.live_bytes() == 4000
    assert watch.peak_bytes == 6000


def test_what_lives_is_not_counted_anew_at_each_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of thousands of operators keep thousands of storages: reading all took longer than steps."""
    size, asked = torch.UntypedStorage.nbytes, [0]

    def nbytes(storage: torch.UntypedStorage) -> int:
        asked[0] += 1
        return size(storage)

    monkeypatch.setattr(torch.UntypedStorage, "nbytes", nbytes)
    counts = []
    for operators in (50, 100):
        asked[0] = 0
        with MemoryWatch([]) as watch:
            kept = [torch.zeros(4) for _ in range(operators)]
        counts.append(asked[0])
        assert watch.peak_bytes == 16 * len(kept)
    assert counts[1] <= 2 * counts[0]


def test_a_sign_of_life_comes_between_the_steps_that_measure_memory() -> None:
    layer, heard = torch.nn.Linear(4, 4), []

    class OneLayer:
        modules, optimizer = (layer,), None

        def step(self) -> None:
            heard.append("step")
            layer(torch.zeros(2, 4)).sum().backward()

    runner = cast(Runner, OneLayer())
    peak, kinds = peak_memory(runner, torch.device("cpu"), lambda: heard.append("alive"))
    assert heard == ["step", "alive", "step"]
    assert peak is not None
    assert peak > kinds["parameters"] == 4 * (16 + 4)


def test_storages_refilled_in_place_are_counted_anew() -> None:
    buffer = torch.zeros(100)
    storage = buffer.untyped_storage()
    storage.resize_(0)
    with MemoryWatch([buffer]) as watch:
        assert watch.live_bytes() == 0
        storage.resize_(400)
        small = torch.zeros(1)
        assert watch.live_bytes() == 400 + small.untyped_storage().nbytes()
    assert watch.peak_bytes == watch.live_bytes()


def test_activations_kept_for_backward_are_seen() -> None:
    weights = [torch.zeros(10, 10, requires_grad=True) for _ in range(3)]
    x = torch.zeros(4, 10)
    with MemoryWatch([*weights, x]) as watch:
        y = x
        for weight in weights:
            y = torch.tanh(y @ weight)
        held = watch.live_bytes()
        y.sum().backward()
    kept = 3 * 4 * 10 * 4  # each tanh keeps its output; its input is freed, the product keeps that output
    assert held == 3 * 400 + 160 + kept
    assert watch.peak_bytes >= held + 400
