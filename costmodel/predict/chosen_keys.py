"""Attention over few chosen keys of many (DeepSeek sparse attention), as servers run it.

Beside each latent attention a small scorer rates every kept key for every query, and the query attends to the
best `keys` of them alone (DeepSeek-V3.2, arXiv 2512.02556, section 2.1; GLM-5, arXiv 2602.15763):

    every token   products to `heads` scoring queries of `width`, one scored key and a weight of each head;
                  their norm, rotation and quantisation, kernels of a few microseconds each
    scores        2 heads width FLOP for a query and a key before it, in 8 bits, whole on every rank
    choice        one pass over a query's scores
    attention     in the latent space, each query over keys of its own: tokens of a prompt share none, so that
                  a prompt attends as so many decoding requests of one token do

Where no query has more than `keys` keys before it, attention runs as without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from costmodel.graph.model_graph import Operator, Segment
from costmodel.predict.attending import attention_call

__all__ = ["SCORE_PRODUCTS", "ChosenKeys"]

SCORE_PRODUCTS = "fp8"
"""Type of the scores' products (DeepGEMM's fp8_mqa_logits)."""
_QUERY_STREAMS = 3
"""Kernels over the scoring queries: rotary embedding, rotation, quantisation (SGLang, nsa_indexer.py)."""
_KEY_STREAMS = 5
"""Kernels over a scored key (norm, rotation, quantisation, write to the cache), and over heads' weights."""
_HALF_BYTES = 2
_SCORE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKeys:
    """How a model chooses: `keys` of each query, `heads` of `width` that score, and the widths that their
    queries and keys are made from."""

    keys: int
    heads: int
    width: int
    query_width: int
    hidden: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ChosenKeys | None:
        """What a configuration in transformers' words says; None for a model that attends to all keys."""
        if not config.get("index_topk"):
            return None
        return cls(
            keys=int(config["index_topk"]),
            heads=int(config["index_n_heads"]),
            width=int(config["index_head_dim"]),
            query_width=int(config["q_lora_rank"]),
            hidden=int(config["hidden_size"]),
        )

    @property
    def cache_bytes(self) -> float:
        """Kept of every token and layer on each rank: its scored key in 8 bits, and a scale in 32."""
        return self.width + _SCORE_BYTES

    def kernels(self, product: Operator, stream: Operator, tokens: int) -> list[Operator]:
        """Kernels of every pass, whatever is attended to. `product`, `stream`: calls to be like."""
        sizes = (
            (self.heads * self.width, self.query_width),
            (self.width, self.hidden),
            (self.heads, self.hidden),
        )
        products = [replace(product, dims={**product.dims, "m": tokens, "n": n, "k": k}) for n, k in sizes]
        moved = 2 * _HALF_BYTES * tokens * self.width
        streams = [(tokens * self.heads, moved * self.heads)] * _QUERY_STREAMS
        streams += [(tokens, moved)] * _KEY_STREAMS
        return [
            *products,
            *(
                replace(stream, dims={**stream.dims, "rows": rows, "cols": self.width, "bytes": size})
                for rows, size in streams
            ),
        ]

    def attends(self, context: int) -> bool:
        """Whether queries over `context` keys choose among them."""
        return context > self.keys

    def attention(
        self, segment: Segment, op: Operator, *, requests: int, tokens: int, context: int, cache: str
    ) -> Operator:
        """The traced call `op` over the keys chosen: each query its own; a prompt's first have fewer."""
        first = context - tokens + 1
        few = max(0, min(self.keys - first, tokens))
        each = (few * (first + 0.5 * (few - 1)) + (tokens - few) * self.keys) / tokens
        return attention_call(
            segment, op, requests=requests * tokens, tokens=1, context=round(each), cache=cache
        )

    def scores(self, product: Operator, *, requests: int, tokens: int, context: int) -> Operator:
        """The scores of all queries as one product of as many FLOP and results."""
        before = max(1, round(context - 0.5 * (tokens - 1)))
        dims = {**product.dims, "m": requests * tokens, "n": before, "k": self.heads * self.width}
        return replace(product, dims=dims)

    def choice(self, stream: Operator, *, requests: int, tokens: int, context: int) -> Operator:
        """The best of each query's scores: what they take in memory, read once."""
        before = max(1, round(context - 0.5 * (tokens - 1)))
        rows = requests * tokens
        dims = {**stream.dims, "rows": rows, "cols": before, "bytes": _SCORE_BYTES * rows * before}
        return replace(stream, dims=dims)
