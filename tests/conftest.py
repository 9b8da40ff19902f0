"""What every test starts from: fixed random numbers, so that what fails has changed; and, for tests that
compare measured times, the machine to themselves."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def fixed_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def cores(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests marked `alone` wait until no other process runs one of its tests, and others wait for them."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # that of all processes of this run
    alone = request.node.get_closest_marker("alone") is not None
    with (folder / "cores.lock").open("w") as lock:
        with (folder / "queue.lock").open("w") as queue:  # those that come later wait behind one that waits
            fcntl.flock(queue, fcntl.LOCK_EX)
            fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
