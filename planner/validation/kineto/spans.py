"""Sets of time as sorted, disjoint (start, end) spans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Spans", "intersection", "length_s", "merged", "without"]

Spans = Sequence[tuple[float, float]]
"""Sorted and disjoint, as `merged` makes them."""


def merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of any spans.

    >>> merged([(5, 6), (0, 2), (1, 3), (4, 4)])
    [(0, 3), (5, 6)]
    """
    result: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if end <= start:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def length_s(spans: Spans) -> float:
    """Total length."""
    return sum(end - start for start, end in spans)


def intersection(a: Spans, b: Spans) -> list[tuple[float, float]]:
    """What lies in both.

    >>> intersection([(0, 3), (5, 6)], [(1, 2), (2.5, 5.5)])
    [(1, 2), (2.5, 3), (5, 5.5)]
    """
    result: list[tuple[float, float]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            result.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return result


def without(a: Spans, b: Spans) -> list[tuple[float, float]]:
    """What lies in a and not in b.

    >>> without([(0, 3), (5, 6)], [(1, 2), (2.5, 5.5)])
    [(0, 1), (2, 2.5), (5.5, 6)]
    """
    result: list[tuple[float, float]] = []
    j = 0
    for start, end in a:
        while j < len(b) and b[j][1] <= start:
            j += 1
        k = j
        while k < len(b) and b[k][0] < end:
            if b[k][0] > start:
                result.append((start, b[k][0]))
            start = max(start, b[k][1])
            k += 1
        if start < end:
            result.append((start, end))
    return result
