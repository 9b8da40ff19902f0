"""What every test starts from: fixed random numbers, so that what fails has changed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def fixed_random_numbers() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start ranks come one by one between the others, the last of them well before the end: two at
    a time would have four processes on two cores, and a long one at the end leaves a core idle."""
    files = dict.fromkeys(item.path for item in items)
    ranked = list(dict.fromkeys(i.path for i in items if i.get_closest_marker("distributed")))
    others = [path for path in files if path not in ranked]
    between = max(1, 3 * len(others) // (4 * max(1, len(ranked))))
    place = {path: (k // between, 1) for k, path in enumerate(others)}
    place |= {path: (k, 0) for k, path in enumerate(ranked)}
    items.sort(key=lambda item: place[item.path])
