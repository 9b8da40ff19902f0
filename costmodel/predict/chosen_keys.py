"""Attention over few chosen keys of many (DeepSeek sparse attention), as servers run it.

Beside each latent attention a small scorer rates every kept key for every query, and the query attends to the
best `keys` of them alone (DeepSeek-V3.2, arXiv 2512.02556, section 2.1; GLM-5, arXiv 2602.15763):

    every token   products to `heads` scoring queries of `width`, one scored key and a weight of each head;
                  their norm, rotation and quantisation, kernels of a few microseconds each
    scores        2 heads width FLOP for a query and a key before it, in 8 bits, whole on every rank
    choice        one pass over a query's scores
    attention     in the latent space, each query over keys of its own: tokens of a prompt share none, so that
                  a prompt attends as so many decoding requests of one token do

Where no query has more than `keys` keys before it, attention runs as without. A layer may take the choice of
one before it over (GLM-5.1, arXiv 2603.12201), and then scores nothing.

A model's own code scores in fp32 and attends to all keys under a mask: what a trace has of that is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from costmodel.graph.model_graph import ModelGraph, Operator, Segment
from costmodel.predict.attending import attention_call, latent_dims
from costmodel.predict.pricing import price_operators

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["SCORE_PRODUCTS", "ChosenKeys", "attending_graph", "scoring_segments", "without_scorers"]

SCORE_PRODUCTS = "fp8"
"""Type of the scores' products (DeepGEMM's fp8_mqa_logits)."""
_QUERY_STREAMS = 3
"""Kernels over the scoring queries: rotary embedding, rotation, quantisation (SGLang, nsa_indexer.py)."""
_KEY_STREAMS = 5
"""Kernels over a scored key (norm, rotation, quantisation, write to the cache), and over heads' weights."""
_HALF_BYTES = 2
_SCORE_BYTES = 4
_WORDS = {
    "keys": "index_topk",
    "heads": "index_n_heads",
    "width": "index_head_dim",
    "query_width": "q_lora_rank",
    "hidden": "hidden_size",
}
_MASKS = ("new_ones", "scatter")
"""Calls that begin the mask of chosen keys."""


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
        if not all(config.get(word) for word in _WORDS.values()):
            return None
        return cls(**{name: int(config[word]) for name, word in _WORDS.items()})

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

    def choosing_s(
        self,
        like: tuple[Operator, Operator],
        profile: HardwareProfile,
        framework: FrameworkProfile,
        *,
        requests: int,
        tokens: int,
        context: int,
    ) -> float:
        """Seconds of the scores and choices of one layer; 0 where there is nothing to choose among. `like`: a
        product and a stream to be like."""
        if not self.attends(context):
            return 0.0
        sizes = {"requests": requests, "tokens": tokens, "context": context}
        calls = [self.scores(like[0], **sizes), self.choice(like[1], **sizes)]
        narrow = framework.model_copy(update={"half_products": SCORE_PRODUCTS})
        return float(price_operators(calls, profile, narrow).device_s.sum())


def scoring_segments(graph: ModelGraph) -> frozenset[str]:
    """Names of the segments whose own code scores keys; empty for a model whose code has no scorer."""
    return frozenset(s.name for s in graph.segments if _scorers(s))


def without_scorers(segment: Segment) -> Segment:
    """A segment without what its own code does to score keys, to choose, and to mask the others."""
    homes = {op.module for op in segment.operators if op.kind == "attention"}
    scorers = _scorers(segment)
    begun: set[str] = set()
    kept: list[Operator] = []
    for op in segment.operators:
        scores = any(op.module == s or op.module.startswith(f"{s}.") for s in scorers)
        if op.module in homes:
            if any(name in op.target for name in _MASKS):
                begun.add(op.module)
            elif op.kind == "attention":
                begun.discard(op.module)
        if not scores and op.module not in begun:
            kept.append(op)
    return segment if len(kept) == len(segment.operators) else replace(segment, operators=tuple(kept))


def _scorers(segment: Segment) -> set[str]:
    """Modules beneath attention that choose the best of something."""
    homes = {op.module for op in segment.operators if op.kind == "attention"} - {""}
    chosen = {op.module for op in segment.operators if "topk" in op.target}
    return {m for m in chosen if any(m.startswith(f"{home}.") for home in homes)}


def attending_graph(graph: ModelGraph, *, context: int, cache: str, chosen: ChosenKeys | None) -> ModelGraph:
    """The graph with its attention in its phase: over a prompt, or of one token over `context` keys.

    `cache`: the type of attention over a cache of another type, "" for the same. `chosen`: how attention
    chooses its keys, None for all of them.
    """
    whole = graph.segments if chosen is None else tuple(without_scorers(s) for s in graph.segments)
    segments = tuple(
        replace(
            segment,
            operators=tuple(_phase(segment, op, context, cache, chosen) for op in segment.operators),
        )
        for segment in whole
    )
    return replace(graph, segments=segments)


def _phase(segment: Segment, op: Operator, context: int, cache: str, chosen: ChosenKeys | None) -> Operator:
    if op.kind != "attention" or op.variant != "fwd":
        return op
    tokens = 1 if context else op.dims["q_len"]
    if chosen and chosen.attends(context or tokens):
        sizes = {"requests": op.dims["batch"], "tokens": tokens, "context": context or tokens}
        return chosen.attention(segment, op, **sizes, cache=cache)
    if not context:
        return replace(op, variant="mla_prefill" if latent_dims(segment, op) else "prefill")
    return attention_call(segment, op, requests=op.dims["batch"], tokens=1, context=context, cache=cache)
