"""A small model on a shipped device, that several tests of the planner price."""

from __future__ import annotations

from functools import lru_cache

from costmodel.predict import Forecaster
from planner import api

__all__ = ["SIZES", "small"]

SIZES = {"n_layer": 4, "n_embd": 256, "n_head": 8, "vocab_size": 512, "n_positions": 64}


@lru_cache(maxsize=4)
def small(hardware: str = "a100-sxm4-80gb", framework: str = "pytorch") -> Forecaster:
    """The forecaster of a four-block GPT-2."""
    return api.forecaster("gpt2", hardware=hardware, framework=framework, seq_len=64, overrides=SIZES)
