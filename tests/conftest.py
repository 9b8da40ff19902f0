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
