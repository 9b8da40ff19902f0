"""The routed-expert layer of the busiest rank: grouped products of the rows that fall to its experts.

local    = experts / moe_ep;  mean rows = tokens x top-k / moe_ep
skew     = busiest rank over the mean where expert i draws i^-a of the tokens (variant power_law_a):
           moe_ep (p1 + (1 - p1) (local - 1) / (experts - 1)), p1 the share of the first expert
rows     = mean rows x (1 + imbalance (skew - 1)), at most every token to each local expert
active   = local (1 - (1 - 1/experts)^(tokens top-k)): experts that get any row
compute  = padded rows x 6 hidden inter / moe_tp / (peak x efficiency): gate, up and down products
memory   = active experts' weights + rows in and out, at memory bandwidth
time     = (compute^p + memory^p)^(1/p) + launch + rows x row + active x expert

The variants differ in the skew alone, so one fit serves them all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.hardware.device import element_bytes, peak_flop_per_s, weight_bytes
from costmodel.hardware.forms.base import FORMS, Dims, Form, Parameter
from costmodel.hardware.schema import DeviceSpec

__all__ = ["MoeForm"]

_TILE = 64.0
_POWER_LAW = "power_law_"


class MoeForm(Form):
    """Variants name the routing: balanced or a power law over the experts."""

    name = "moe_skewed_2"
    kinds = ("moe",)
    pools_variants = True
    plain_variants = ("balanced",)

    def parameters(self, device: DeviceSpec, dtype: str, variant: str) -> tuple[Parameter, ...]:
        """Efficiencies are fractions of the datasheet."""
        return (
            Parameter(name="compute_efficiency", start=0.5, low=0.01, high=1.0, doc="of peak"),
            Parameter(name="memory_efficiency", start=0.7, low=0.02, high=1.2, doc="of datasheet bandwidth"),
            Parameter(name="imbalance", start=0.5, low=0.01, high=2.0, doc="share of the skew that is met"),
            Parameter(name="padding", start=0.5, low=0.01, high=2.0, doc="rows of a tile lost per expert"),
            Parameter(name="launch_s", start=2e-5, low=1e-6, high=5e-4, doc="routing and launches"),
            Parameter(name="row_s", start=1e-9, low=1e-12, high=1e-6, doc="per routed row: permute, combine"),
            Parameter(name="expert_s", start=1e-7, low=1e-10, high=1e-4, doc="per active expert"),
            Parameter(name="overlap_power", start=3.0, low=1.0, high=12.0, doc="of compute and memory"),
        )

    def physical(
        self, theta: Mapping[str, float], device: DeviceSpec, dims: Dims, dtype: str, variant: str
    ) -> FloatArray:
        """Seconds [n]; see the module for the formula."""
        rows, active = _load(dims, variant, theta["imbalance"])
        inter = dims["inter"] / np.maximum(dims["moe_tp"], 1.0)
        weights = 3.0 * dims["hidden"] * inter * weight_bytes(dtype)
        padded = rows + theta["padding"] * _TILE * active * np.exp(
            -rows / np.maximum(active, 1.0) / (4 * _TILE)
        )
        compute = (
            padded
            * 6.0
            * dims["hidden"]
            * inter
            / (peak_flop_per_s(device, dtype) * theta["compute_efficiency"])
        )
        traffic = active * weights + rows * element_bytes(dtype) * (2.0 * dims["hidden"] + 3.0 * inter)
        memory = traffic / (device.memory_bytes_per_s * theta["memory_efficiency"])
        p = theta["overlap_power"]
        longer, shorter = np.maximum(compute, memory), np.minimum(compute, memory)
        both = longer * (1.0 + (shorter / longer) ** p) ** (1.0 / p)
        return np.asarray(
            both + theta["launch_s"] + rows * theta["row_s"] + active * theta["expert_s"], dtype=np.float64
        )

    def features(self, device: DeviceSpec, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """ln of tokens, widths, experts, their division, rows per active expert; skew and alignment."""
        rows, active = _load(dims, variant, 1.0)
        inter = dims["inter"] / np.maximum(dims["moe_tp"], 1.0)
        return np.stack(
            [
                np.log(np.maximum(dims["num_tokens"], 1.0)),
                np.log(dims["hidden"]),
                np.log(inter),
                np.log(np.maximum(dims["topk"], 1.0)),
                np.log(dims["num_experts"]),
                np.log(np.maximum(dims["moe_ep"], 1.0)),
                np.log(rows / active),
                np.log(active),
                np.full(len(rows), _power(variant)),
                # widths that fill no whole vectors fall to slow kernels
                np.select([inter % 64 == 0, inter % 32 == 0, inter % 16 == 0], [0.0, 0.3, 0.7], 1.0),
            ],
            axis=1,
        )

    def flop(self, dims: Dims, variant: str) -> FloatArray:
        """6 rows hidden inter / moe_tp of the mean rank."""
        rows, _ = _load(dims, "", 0.0)
        return np.asarray(6.0 * rows * dims["hidden"] * dims["inter"] / np.maximum(dims["moe_tp"], 1.0))

    def least_bytes(self, dims: Dims, dtype: str, variant: str) -> FloatArray:
        """Weights of the active experts once."""
        _, active = _load(dims, "", 0.0)
        inter = dims["inter"] / np.maximum(dims["moe_tp"], 1.0)
        return np.asarray(active * 3.0 * dims["hidden"] * inter * weight_bytes(dtype), dtype=np.float64)


def _power(variant: str) -> float:
    """Exponent of the power law that a variant names; 0 = balanced."""
    return float(variant.removeprefix(_POWER_LAW)) if variant.startswith(_POWER_LAW) else 0.0


def _skew(dims: Dims, variant: str) -> FloatArray:
    """Rows of the rank that holds the most wanted expert, over the mean of the ranks [n]."""
    experts, ep = np.maximum(dims["num_experts"], 1.0), np.maximum(dims["moe_ep"], 1.0)
    power = _power(variant)
    if not power:
        return np.ones_like(experts)
    counts, place = np.unique(experts, return_inverse=True)
    total = np.array([np.sum(np.arange(1.0, count + 1.0) ** -power) for count in counts])
    first = 1.0 / total[place.reshape(-1)]
    others = (1.0 - first) * (np.maximum(experts / ep, 1.0) - 1.0) / np.maximum(experts - 1.0, 1.0)
    return np.asarray(np.maximum(ep * (first + others), 1.0))


def _load(dims: Dims, variant: str, imbalance: float) -> tuple[FloatArray, FloatArray]:
    """(rows, active experts) of one rank."""
    experts = np.maximum(dims["num_experts"], 1.0)
    ep = np.maximum(dims["moe_ep"], 1.0)
    tokens, topk = np.maximum(dims["num_tokens"], 1.0), np.maximum(dims["topk"], 1.0)
    routed = tokens * topk
    local = np.maximum(experts / ep, 1.0)
    mean = routed / ep
    rows = np.minimum(
        mean * (1.0 + imbalance * (_skew(dims, variant) - 1.0)), tokens * np.minimum(topk, local)
    )
    rows = np.maximum(rows, np.maximum(mean, 1.0))
    active = np.maximum(local * -np.expm1(routed * np.log1p(-1.0 / (experts + 1.0))), 1.0)
    return np.asarray(rows), np.asarray(np.minimum(active, rows))


FORMS.register(*MoeForm.kinds)(MoeForm())
