"""Nothing on stderr from torch about what is an answer here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_fake_tensors"]


@contextmanager
def quiet_fake_tensors() -> Iterator[None]:
    """Inside, fake tensors log no stack of an operator that refuses its shapes (the error raised says it),
    and are copied without a warning (modules that clone their layers copy them)."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        logger.disabled = was
