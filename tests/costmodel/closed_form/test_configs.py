"""What plans of a space share is found once and given to each."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.closed_form.configs import alike, distinct, groups_by, parts_of
from costmodel.closed_form.step import KINDS, Stages, chains_end_s

_SMALL = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40)


@settings(max_examples=30, deadline=None)
@given(_SMALL)
def test_the_first_of_what_is_distinct_stands_for_all(pairs: list[tuple[int, int]]) -> None:
    columns = np.array(pairs).T
    first, which = distinct(*columns)
    assert len(first) == len(set(pairs))
    np.testing.assert_array_equal(columns[:, first[which]], columns)
    arrays = np.repeat(columns.T[:, :, None], 3, axis=2).astype(np.float64)
    first, which = alike(arrays)
    assert len(first) == len(set(pairs))
    np.testing.assert_array_equal(arrays[first[which]], arrays)


def test_groups_and_parts_keep_every_row_in_order() -> None:
    values, rows = np.array([3, 1, 3, 2, 1]), np.array([0, 2, 4, 1])
    assert [list(group) for group in groups_by(values, rows)] == [[4, 1], [0, 2]]
    assert [list(group) for group in groups_by(values)] == [[1, 4], [3], [0, 2]]
    assert [list(part) for part in parts_of(rows, 3)] == [[0, 2, 4], [1]]
    assert list(groups_by(values, rows[:0])) == []


def test_plans_that_lie_alike_end_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    of = np.array([1, 0, 1, 1])

    def stages(places: np.ndarray) -> Stages:
        forward, back, weight, again, send = (array[places] for array in arrays)
        return Stages(
            forward_s=forward,
            input_s=back,
            weight_s=weight,
            again_s=again,
            send_s=send,
            num_microbatches=np.array([4, 8])[places],
            p2p_overlap=False,
        )

    arrays = rng.random((5, 2, 2, 4))
    before_s = rng.random((len(of), 4))
    for kind in {kind for pair in KINDS.values() for kind in pair}:
        together = chains_end_s(stages(np.arange(2)), kind, before_s, of)
        np.testing.assert_array_equal(together, chains_end_s(stages(of), kind, before_s))
