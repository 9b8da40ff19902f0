"""What a source's metric counts: step time to the row's own figure and back.

FLOP formulas per step, B sequences of length s, L layers of width h, vocabulary V, N parameters:

  model                 forward + 2 x forward of the traced graph (no recomputation)
  model_causal          the same with attention counted for the causal half
  megatron              96 B s L h^2 (1 + s/(6h) + V/(16 L h)) with full recomputation, 3/4 of it without
                        (arXiv 2104.04473, section 5.1, equation 3)
  six_n_plus_attention  (6 N s + 12 L h s^2) B (llm-foundry's README)
  eight_n_tokens        8 N s B
  hardware              model, and the forward once more where it runs again
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

import costmodel
from costmodel.errors import UsageError

__all__ = ["Sizes", "flop_per_step", "formula_of", "from_step_time"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "conventions.json"


class Sizes:
    """What the formulas need of a run."""

    __slots__ = (
        "attention_flop",
        "batch",
        "hidden",
        "layers",
        "model_flop",
        "n_parameters",
        "recompute",
        "seq",
        "vocab",
    )

    def __init__(
        self,
        *,
        batch: int,
        seq: int,
        layers: int,
        hidden: int,
        vocab: int,
        n_parameters: float,
        model_flop: float,
        recompute: str,
    ) -> None:
        self.batch = batch
        self.seq = seq
        self.layers = layers
        self.hidden = hidden
        self.vocab = vocab
        self.n_parameters = n_parameters
        self.model_flop = model_flop
        """Forward + backward of the whole batch."""
        self.recompute = recompute


@lru_cache(maxsize=1)
def _formulas() -> list[tuple[re.Pattern[str], str]]:
    table = json.loads(_DATA.read_text())["formulas"]
    return [(re.compile(entry["match"], re.IGNORECASE), entry["formula"]) for entry in table]


def formula_of(convention: str) -> str:
    """Name of the formula a convention's wording means."""
    for pattern, formula in _formulas():
        if pattern.search(convention):
            return formula
    return "model"


def flop_per_step(formula: str, s: Sizes) -> float:
    """FLOP of one step as the source counts them. Raises UsageError on an unknown formula."""
    tokens = s.batch * max(1, s.seq)
    if formula == "model":
        return s.model_flop
    if formula == "hardware":
        return s.model_flop * (4.0 / 3.0 if s.recompute.startswith("full") else 1.0)
    if formula == "model_causal":
        return s.model_flop - 6.0 * s.batch * s.layers * s.hidden * s.seq**2
    if formula == "megatron":
        full = (
            96.0
            * tokens
            * s.layers
            * s.hidden**2
            * (1 + s.seq / (6 * s.hidden) + s.vocab / (16 * s.layers * s.hidden))
        )
        return full if s.recompute == "full" else 0.75 * full
    if formula == "six_n_plus_attention":
        return (6.0 * s.n_parameters * s.seq + 12.0 * s.layers * s.hidden * s.seq**2) * s.batch
    if formula == "eight_n_tokens":
        return 8.0 * s.n_parameters * tokens
    raise UsageError(f"unknown FLOP formula {formula!r} in {_DATA.name}")


def from_step_time(
    metric: str, step_time_s: float, *, sizes: Sizes, n_devices: int, convention: str, peak_flop_per_s: float
) -> float:
    """A step time in the row's own metric and unit (times in s, rates per s, TFLOP/s per GPU, percent)."""
    if metric == "iter_time_s":
        return step_time_s
    if metric == "tokens_per_s_per_gpu":
        return sizes.batch * max(1, sizes.seq) / step_time_s / n_devices
    if metric == "samples_per_s":
        return sizes.batch / step_time_s
    rate = flop_per_step(formula_of(convention), sizes) / step_time_s / n_devices
    if metric == "tflops_per_gpu_reported":
        return rate / 1e12
    if metric == "mfu_reported":
        return 100.0 * rate / peak_flop_per_s
    raise UsageError(f"metric {metric!r} is none of the table's metrics")
