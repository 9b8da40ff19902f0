"""What a rank holds in inference beside parameters: kept keys and values, and one pass's activations.

Activations by liveness on the graph of a forward without gradients (`graph.liveness`): the highest level
inside a unit. Prompts take most; where the cache grows by joining, prompts run while it is still short, and
joining holds the keys (or values) of one layer twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from costmodel.hardware.device import cache_bytes
from costmodel.predict.attending import cache_copies

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.predict.units import Unit

__all__ = ["answer_bytes", "attention_calls", "overhead_bytes", "pass_bytes", "sampling_bytes", "token_bytes"]


def attention_calls(unit: Unit) -> int:
    """Calls of attention in a unit."""
    return sum(op.kind == "attention" for op in unit.shard.local.operators)


def token_bytes(units: Iterable[Unit], framework: FrameworkProfile) -> float:
    """Keys and values that a token of each request leaves on a rank, over all layers; `units`: of a pass of
    one token each."""
    cache, compute = framework.cache_dtype, framework.compute_dtype
    width = cache_bytes(compute if cache == "same" else f"{compute}+{cache}kv")
    total = 0.0
    for unit in units:
        for op in unit.shard.local.operators:
            if op.kind == "attention":
                heads = op.dims["batch"] * op.dims["kv_heads"]
                values = 0 if op.variant == "mla_decode" else op.dims["v_dim"]  # a part of the kept row
                total += width * heads * (op.dims["qk_dim"] + values)
    return total


def pass_bytes(units: Iterable[Unit]) -> int:
    """Activations of a forward pass over these units."""
    return max((unit.costs.memory.forward_bytes for unit in units), default=0)


def answer_bytes(
    prompt: Iterable[Unit], token: Iterable[Unit], framework: FrameworkProfile, *, grown_bytes: float
) -> int:
    """Activations of an answer at the moment when they and the cache are most, above the whole cache.

    `prompt`, `token`: units of both passes; `grown_bytes`: what the cache grows by after the prompt.
    """
    of_prompt, token = pass_bytes(prompt), list(token)
    if not framework.cache_concatenated:
        return max(of_prompt, pass_bytes(token))
    calls = (op for unit in token for op in unit.shard.local.operators if op.kind == "attention")
    joined = max((copy.bytes_written for op in calls for copy in cache_copies(op)), default=0)
    return max(0, round(of_prompt - grown_bytes), pass_bytes(token) + joined)


def overhead_bytes(framework: FrameworkProfile, ranks: int) -> int:
    """What libraries and the device's context hold on one of so many ranks of a layer."""
    own = framework.workspace_bytes + framework.memory_overhead_bytes
    return own + (framework.ranks_overhead_bytes if ranks > 1 else 0)


def sampling_bytes(framework: FrameworkProfile, vocabulary: int, *, device_bytes: float) -> int:
    """What a server keeps free for sampling: the logits of all requests that may run, in several copies."""
    most = max((least for least in framework.sampled_requests if least <= device_bytes), default=None)
    requests = 0 if most is None else framework.sampled_requests[most]
    return round(requests * vocabulary * framework.sampled_logit_bytes)
