"""Forward passes of a server: any mix of prompts' tokens and of running requests' next tokens.

Everything but attention costs the same for n tokens wherever they come from. It is priced on a grid of n and
read between in logarithms; attention is priced call by call (a prompt's chunk over what came before it,
running requests over their contexts), and what follows the last block for one token of every request:

    pass = blocks(n) + head(requests) + attention + overhead + requests * overhead of one

A server's kernels differ from a training step's (the framework profile says whether they do):

    products of one input   are one product (query, key and value; gate and up)
    routed experts          are one call of the grouped kernel, routing included; their sum over a token's
                            experts is taken before it is reduced over ranks
    shared experts          run beside the routed ones, on a stream of their own, in passes of few tokens
    gathered projections    stay whole on every rank where that takes less than gathering their result
    recurrences             keep their heads apart, as attention does: the product into them is split, the one
                            out of them is split the other way and summed over ranks
    narrow products         find their input quantised by the kernel before, where they were measured with it
    chosen keys             are scored and chosen before they are attended to (`chosen_keys`)
    loss                    there is none

Guessed tokens come from a block more, behind the others, and the head, run once for each guess (DeepSeek-V3,
arXiv 2412.19437, section 2.2).

Attention replicas (`dp` of the plan) keep requests apart and share the experts: every pass gathers their
tokens before the experts of each layer and scatters the sums behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray
from costmodel.graph.fusion import fuse
from costmodel.graph.model_graph import Operator, Phase, Segment
from costmodel.hardware.device import cache_bytes, weight_bytes
from costmodel.plan import Plan
from costmodel.predict.attending import attention_call, latent_dims
from costmodel.predict.erring import Erring, together
from costmodel.predict.pricing import host_cost_s, price_operators
from costmodel.predict.served_kernels import (
    joined_streams,
    one_product_each,
    recurrence_rows,
    recurrence_streams,
    recurrences,
    residual_with_norm,
    routers,
    shared_experts,
    state_bytes,
    state_update,
    without_recurrence,
)
from costmodel.predict.uncertainty import error_model
from costmodel.sharding.expert import expert_tensors

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster
    from costmodel.predict.inference import InferenceForecaster
    from costmodel.sharding import ShardedSegment

__all__ = ["Attending", "Experts", "PassCosts"]

_TOKENS: FloatArray = np.exp2(np.arange(0.0, 17.5, 0.5)).round()
_LOG_TOKENS: FloatArray = np.log(_TOKENS)
_PROBES = ((32, 64), (64, 128), (16, 32), (128, 256), (8, 16))
"""Batches that the graph is split at; sizes between and beyond are on the line through them. Pairs are tried
in order: how tensors are divided may turn on the batch, and must not differ between the two."""

_ACTIVATION_BYTES = 2
_MOST_QUANTISATION = 0.8
"""Share of a measured product that quantising its input can be: in the smallest ones that were measured."""
_CHUNK = 64
"""Tokens of a prompt that a recurrence takes in at once (Gated DeltaNet, arXiv 2412.06464, section 3.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """How routed experts lie over a server's ranks: each split `tp` ways, all of them over `ep` groups."""

    tp: int = 1
    ep: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Attending:
    """`requests` attention calls of `tokens` queries each over `context` keys (its own tokens among them).

    `drafted`: guessed tokens of each request that the pass checks beside its own, over the same keys.
    """

    requests: int
    tokens: int
    context: int
    drafted: int = 0


class PassCosts:
    """Forward passes of one model under one plan. Raises PlanError where the plan cannot split the model."""

    def __init__(
        self,
        inference: InferenceForecaster,
        plan: Plan,
        *,
        experts: Experts | None = None,
    ) -> None:
        """`experts`: how they are divided; by default as the plan's tensor parallelism divides them."""
        self._inference = inference
        self._chosen = inference.chosen_keys
        self._plan = plan.with_(micro_batch_size=1, global_batch_size=plan.dp)
        self._experts = experts or Experts(tp=plan.tp)
        self._forecaster: Forecaster = inference.one_token()
        self._probes, low, high = self._split()
        self._segments = low
        self._layers = sum(s.count for s in low if s.local.is_block)
        self._any = next(op for s in low for op in s.local.operators if op.kind != "host")
        last = max((i for i, s in enumerate(low) if s.local.is_block), default=len(low) - 1)
        whole = self._forecaster.graph(self._probes[0])
        self._whole = {
            op.index: op for s in whole.segments for op in s.operators if op.kind == "grouped_gemm"
        }
        self._recurrent: list[tuple[float, float, int]] = []
        """Bytes of a state, and those that a token of a prompt moves beside it; layers."""
        self._like: tuple[Operator, Operator]
        self._joins_heads = inference.framework.merges_projections == "attention"
        self._scoring = 0
        """Calls of attention that score keys for themselves."""
        self._attention: list[tuple[Segment, Operator, int]] = []
        blocks = [
            self._segment(a, b, head=False) for a, b in zip(low[: last + 1], high[: last + 1], strict=True)
        ]
        head = [
            self._segment(a, b, head=True) for a, b in zip(low[last + 1 :], high[last + 1 :], strict=True)
        ]
        least = Erring(np.full(len(_TOKENS), 1e-9))
        self._blocks, self._head = together([least, *blocks]), together([least, *head])
        self._blocks_s, self._head_s = np.log(self._blocks.seconds), np.log(self._head.seconds)
        self._attending = lru_cache(maxsize=None)(self._attention_priced)

    def seconds(self, attending: Sequence[Attending]) -> float:
        """One pass over these requests of a replica; 0 where there is no token."""
        tokens = sum(a.requests * (a.tokens + a.drafted) for a in attending)
        requests = sum(a.requests for a in attending)
        scored = sum(a.requests * (1 + a.drafted) for a in attending)
        if not tokens:
            return 0.0
        framework = self._inference.framework
        total = _between(tokens, self._blocks_s) + _between(scored, self._head_s)
        total += sum(float(self._attending(a).seconds[0]) for a in attending)
        total += sum(a.drafted * self._draft_s(a.requests) for a in attending if a.drafted)
        total += framework.forward_overhead_s + requests * framework.request_overhead_s
        return total + host_cost_s(self._inference.profile, "step_s")

    def _draft_s(self, requests: int) -> float:
        """One guess for each of so many requests: a block without its attention, and the head."""
        block_s = _between(requests, self._blocks_s) / max(1, self._layers)
        return block_s + _between(requests, self._head_s)

    @property
    def operators(self) -> int:
        """Traced operators of a pass, as the model's own code calls them one by one."""
        return sum(s.count * sum(op.kind != "host" for op in s.local.operators) for s in self._segments)

    @property
    def parameter_bytes(self) -> float:
        """Weights of one rank: products of the blocks in the type they are computed in, the rest as kept."""
        framework = self._inference.framework
        narrow, routed = framework.half_products, framework.expert_products
        routed = narrow if routed == "as the others" else routed
        width = framework.parameter_bytes
        of_blocks = width if narrow == "same" else weight_bytes(narrow)
        of_experts = width if routed == "same" else weight_bytes(routed)
        total = 0.0
        for segment in self._segments:
            experts = expert_tensors(segment.local)
            for parameter in segment.parameters:
                if parameter.tied:
                    continue
                elements = prod(parameter.local_shape) * segment.count
                if parameter.tensor in experts:
                    share = self._plan.tp / (self._experts.tp * self._experts.ep)
                    total += elements * share * of_experts
                else:
                    total += elements * (of_blocks if segment.local.is_block else width)
        return total

    @property
    def cache_bytes_per_token(self) -> float:
        """What a rank keeps of every token of a request."""
        cache, compute = self._inference.framework.cache_dtype, self._inference.framework.compute_dtype
        width = cache_bytes(compute if cache == "same" else f"{compute}+{cache}kv")
        total = 0.0
        for segment, op, count in self._attention:
            latent = latent_dims(segment, op)
            whole = op.dims["kv_heads"] * (op.dims["qk_dim"] + op.dims["v_dim"])
            total += width * count * (latent[0] if latent else whole)
        return total + (self._scoring * self._chosen.cache_bytes if self._chosen else 0.0)

    def log_sigma(self, attending: Sequence[Attending]) -> float:
        """Spread of ln(time) of such a pass by its operators, collectives and host; 0 where it has no token.

        Blocks and head err by the share that they err by at the grid's nearest number of tokens.
        """
        tokens = sum(a.requests * (a.tokens + a.drafted) for a in attending)
        if not tokens:
            return 0.0
        scored = sum(a.requests * (1 + a.drafted) for a in attending)
        framework = self._inference.framework
        requests = sum(a.requests for a in attending)
        host_s = framework.forward_overhead_s + requests * framework.request_overhead_s
        found = {"host": error_model().host * host_s}
        parts = [self._blocks.errors_near(_TOKENS, tokens), self._head.errors_near(_TOKENS, scored)]
        for errors in (*parts, *(self._attending(a).errors_at(0) for a in attending)):
            for name, seconds in errors.items():
                found[name] = found.get(name, 0.0) + seconds
        return math.hypot(*found.values()) / self.seconds(attending)

    def _split(self) -> tuple[tuple[int, int], tuple[ShardedSegment, ...], tuple[ShardedSegment, ...]]:
        """Two batches, and the graph split for each in the same way."""

        def sharded(n: int) -> tuple[ShardedSegment, ...]:
            shaped = self._plan.with_(micro_batch_size=n, global_batch_size=n * self._plan.dp)
            return tuple(self._forecaster.sharded(shaped).segments)

        for pair in _PROBES:
            low, high = (sharded(n) for n in pair)
            if [_division(s) for s in low] == [_division(s) for s in high]:
                return pair, low, high
        raise PlanError(
            f"{self._plan}: tensors are divided otherwise for every batch; its passes have no price"
        )

    def _segment(self, low: ShardedSegment, high: ShardedSegment, *, head: bool) -> Erring:
        """All instances of a segment without its attention."""
        merged = self._inference.framework.merges_projections is True
        kernels = [
            self._served(s.local, fuse(s.local, self._forecaster.fusion).operators, head, merged)
            for s in (low, high)
        ]
        scores = any(op.kind == "attention" for op in low.local.operators)
        if self._chosen and scores and self._inference.scores(low.name):
            chosen, batches = self._chosen, self._probes
            for own, batch in zip(kernels, batches, strict=True):
                product = next(op for op in own if op.kind == "gemm")
                stream = next(op for op in own if op.kind == "elementwise")
                self._like = (replace(product, module=""), replace(stream, module=""))
                own += chosen.kernels(*self._like, batch)
            self._scoring += sum(op.kind == "attention" for op in low.local.operators) * low.count
        if [op.kind for op in kernels[0]] != [op.kind for op in kernels[1]]:
            raise PlanError(
                f"segment {low.name!r} has other kernels for another batch; its passes have no price"
            )
        for op in low.local.operators:
            if op.kind == "attention":
                self._attention.append((low.local, op, low.count))
        parts: list[Erring] = []
        gathered = {
            c.module: c.size_bytes
            for c in low.collectives
            if c.op == "all_gather" and c.phase is Phase.FORWARD and not head
        }
        recurrent = sorted(recurrences(low.local)) if merged else []
        shared_out = any(m.startswith(f"{home}.") for m in gathered for home in recurrent)
        ways = self._plan.tp if shared_out else 1
        outward = {home: _last_product(kernels[0], home) for home in recurrent}
        rows = recurrence_rows(kernels[0], recurrent, ways=ways)
        for own, batch in zip(kernels, self._probes, strict=True):
            own += recurrence_streams(own, recurrent, tokens=batch, ways=ways)
        states = state_bytes(low.local, self._probes[0])
        self._recurrent += [
            (size / ways, moved, low.count)
            for size, moved in zip(states, rows or [0.0] * len(states), strict=True)
        ]
        choosing = routers(low.local)
        beside = shared_experts(kernels[0], choosing) if merged else frozenset()
        routed, shared = np.zeros(len(_TOKENS)), np.zeros(len(_TOKENS))
        for place, (a, b) in enumerate(zip(*kernels, strict=True)):
            cost = self._operator(a, b, as_kept=head or a.module in choosing)
            size = gathered.pop(a.module, None) if a.kind == "gemm" else None
            home = next((m for m in recurrent if a.module.startswith(f"{m}.")), None)
            if size is not None and home is not None:
                cost = self._summed(a, b, size) if place == outward[home] else cost
            elif size is not None:
                cost = self._gathered(a, b, cost, size)
            parts.append(cost)
            shared += cost.seconds if place in beside else 0.0
            routed += cost.seconds if a.kind == "moe" else 0.0
        at_once = self._plan.dp * _TOKENS <= self._inference.framework.parallel_experts_tokens
        parts.append(Erring(-np.where(at_once, np.minimum(routed, shared), 0.0)))
        summed = {op.module: _ACTIVATION_BYTES * op.dims["hidden"] for op in kernels[0] if op.kind == "moe"}
        for a, b in zip(low.collectives, high.collectives, strict=True):
            if not head and a.phase is Phase.FORWARD and a.module and a.op != "all_gather":
                sizes = [a.size_bytes, b.size_bytes]
                if a.module in summed:
                    most = [n * summed[a.module] for n in self._probes]
                    sizes = [min(pair) for pair in zip(sizes, most, strict=True)]
                parts.append(self._collective(self._plan, a.op, sizes[0], sizes[1], a.axis))
        if any(op.kind == "moe" for op in kernels[0]) and self._plan.dp > 1:
            hidden = next(op.dims["hidden"] for op in kernels[0] if op.kind == "moe")
            ranks = Plan(tp=self._plan.dp * self._plan.tp)
            low_size, high_size = (_ACTIVATION_BYTES * n * self._plan.dp * hidden for n in self._probes)
            for kind in ("all_gather", "reduce_scatter"):
                parts.append(self._collective(ranks, kind, low_size, high_size, "tp"))
        return together(parts).times(low.count)

    def _served(
        self, segment: Segment, kernels: Iterable[Operator], head: bool, merged: bool
    ) -> list[Operator]:
        """The kernels of a segment as a server runs them, without attention."""
        compute = self._inference.framework.compute_dtype
        found = [op for op in kernels if op.kind not in ("host", "attention")]
        if merged:  # a router's product takes the activations as they are
            found = [replace(op, dtype=compute) if op.kind == "gemm" else op for op in found]
        if head:  # nothing is scored: the last product ends the pass
            products = [place for place, op in enumerate(found) if op.kind == "gemm"]
            found = found[: products[-1] + 1] if products else found
        homes = {op.module for op in segment.operators if op.kind == "attention"}
        if not merged:
            return one_product_each(segment, found, homes) if self._joins_heads else found
        found = one_product_each(segment, self._one_call_of_experts(found))
        found = without_recurrence(segment, found)
        found = joined_streams(segment, found, homes)
        return residual_with_norm(found) if segment.is_block else found

    def _one_call_of_experts(self, kernels: list[Operator]) -> list[Operator]:
        """Grouped products and what the module that makes them does around them, as one call."""
        modules = {op.module for op in kernels if op.kind == "grouped_gemm"}
        result: list[Operator] = []
        done: set[str] = set()
        for op in kernels:
            home = next((m for m in modules if op.module == m or op.module.startswith(m + ".")), None)
            if home is None:
                result.append(op)
            elif home not in done:
                done.add(home)
                own = [o for o in kernels if o.kind == "grouped_gemm" and o.module == home]
                result.append(self._experts_call(own))
        return result

    def _experts_call(self, products: list[Operator]) -> Operator:
        """The first product takes the hidden width, the last one makes it again from the experts' own."""
        first, last = (self._whole[op.index] for op in (products[0], products[-1]))
        dims = {
            "num_tokens": self._probes[0],
            "hidden": first.dims["k"],
            "inter": last.dims["k"],
            "topk": max(1, first.dims["m"] // self._probes[0]),
            "num_experts": first.dims["groups"],
            "moe_tp": 1,
            "moe_ep": 1,
        }
        return replace(products[0], kind="moe", variant="balanced", dims=dims)

    def _line(self, low: float, high: float, n: float) -> float:
        first, second = self._probes
        return low + (high - low) * (n - first) / (second - first)

    def _operator(self, low: Operator, high: Operator, *, as_kept: bool = False) -> Erring:
        """One kernel. `as_kept`: weights of the activations' type (a head's, a router's)."""
        framework = self._inference.framework
        if as_kept:
            framework = framework.model_copy(update={"half_products": "same"})
        ops = [replace(low, dims=self._dims(low, high, n)) for n in _TOKENS]
        priced = price_operators(ops, self._inference.profile, framework)
        seconds = priced.device_s
        if low.kind == "gemm" and priced.fit[0].endswith(f"/{framework.half_products}"):
            own = framework.input_quantisation_s.get(framework.half_products, 0.0)
            moved = framework.input_quantisation_bytes.get(framework.half_products, 0.0)
            elements = np.array([op.dims["m"] * op.dims["k"] for op in ops])
            own_s = own + moved * elements / self._inference.profile.device.memory_bytes_per_s
            seconds = seconds - np.minimum(own_s, _MOST_QUANTISATION * seconds)
        if low.kind in ("gemm", "moe") and not as_kept:
            seconds = np.maximum(seconds, self._least_s(ops))
        of_size = "x".join(map(str, low.dims.values()))
        return Erring(seconds + priced.host_s, priced.errors_along(of_size))

    def _least_s(self, ops: Sequence[Operator]) -> FloatArray:
        """Seconds [n] that the kernels which the server was told to take need for their multiplications."""
        framework = self._inference.framework
        dense, routed = framework.half_products, framework.expert_products
        routed = dense if routed == "as the others" else routed
        kind, products = ops[0].kind, routed if ops[0].kind == "moe" else dense
        most = framework.product_flop_per_s.get(f"{kind}/{products}", math.inf)
        if kind == "gemm":
            return np.array([2.0 * op.dims["m"] * op.dims["n"] * op.dims["k"] / most for op in ops])
        # three products of every chosen expert: gate, up and down
        rows = [op.dims["num_tokens"] * op.dims["topk"] for op in ops]
        sizes = [op.dims["hidden"] * op.dims["inter"] / (op.dims["moe_tp"] * op.dims["moe_ep"]) for op in ops]
        return np.array([6.0 * n * each / most for n, each in zip(rows, sizes, strict=True)])

    def _dims(self, low: Operator, high: Operator, n: float) -> dict[str, int]:
        dims = {key: max(0, round(self._line(v, high.dims[key], n))) for key, v in low.dims.items()}
        if low.kind != "moe":
            return dims
        experts = {"moe_tp": self._experts.tp, "moe_ep": self._experts.ep}
        return {**low.dims, **experts, "num_tokens": round(n) * self._plan.dp}

    def _collective(self, plan: Plan, op: str, low: int, high: int, axis: str) -> Erring:
        """One collective whose size follows the tokens."""
        forecaster = self._forecaster
        sizes = [max(1.0, self._line(low, high, n)) for n in _TOKENS]
        found = [forecaster.collective(plan, op, size, axis) for size in sizes]
        seconds = np.array([estimate.median_s[0] for estimate in found], dtype=np.float64)
        spread = np.array([estimate.log_sigma[0] for estimate in found], dtype=np.float64)
        return Erring(seconds, {f"collective {op}/{forecaster.link_name(plan, axis)}": spread * seconds})

    def _gathered(self, low: Operator, high: Operator, split: Erring, size: int) -> Erring:
        """A projection whose result every rank needs: split and gathered, or whole on each."""
        sizes = (size, size * self._probes[1] // self._probes[0])
        gather = self._collective(self._plan, "all_gather", *sizes, "tp")
        whole = [replace(op, dims={**op.dims, "n": op.dims["n"] * self._plan.tp}) for op in (low, high)]
        return (split + gather).or_shorter(self._operator(*whole))

    def _summed(self, low: Operator, high: Operator, size: int) -> Erring:
        """A projection of heads that ranks share out: each its own heads' columns, summed over them."""
        tp = self._plan.tp
        rows = [
            replace(op, dims={**op.dims, "n": op.dims["n"] * tp, "k": max(1, op.dims["k"] // tp)})
            for op in (low, high)
        ]
        sizes = (size, size * self._probes[1] // self._probes[0])
        return self._operator(*rows) + self._collective(self._plan, "all_reduce", *sizes, "tp")

    def _attention_priced(self, attending: Attending) -> Erring:
        """Of all layers, at one size."""
        inference = self._inference
        sizes = {
            "requests": attending.requests,
            "tokens": attending.tokens,
            "context": attending.context,
        }
        chosen = self._chosen if self._chosen and self._chosen.attends(attending.context) else None
        call = chosen.attention if chosen else attention_call
        calls = [
            call(segment, op, cache=inference.cache_type(), **sizes) for segment, op, _ in self._attention
        ]
        counts = [count for _, _, count in self._attention]
        steps = attending.requests * math.ceil(attending.tokens / _CHUNK)
        prompt = attending.requests * attending.tokens if attending.tokens > 1 else 0
        for size, moved, count in self._recurrent:
            streamed = 2.0 * size * steps + moved * prompt
            calls.append(state_update(calls[0] if calls else self._any, streamed))
            counts.append(count)
        if not calls:
            return Erring(np.zeros(1))
        priced = price_operators(calls, inference.profile, inference.framework)
        total = float(sum(s * count for s, count in zip(priced.device_s, counts, strict=True)))
        errors: dict[str, float] = {}
        for of_call, count in zip(priced.errors(calls), counts, strict=True):
            for name, seconds in of_call:
                errors[name] = errors.get(name, 0.0) + count * seconds
        if chosen and self._scoring:
            each_s = chosen.choosing_s(self._like, inference.profile, inference.framework, **sizes)
            total += self._scoring * each_s
        return Erring(np.array([total]), {name: np.array([seconds]) for name, seconds in errors.items()})


def _between(tokens: float, log_s: FloatArray) -> float:
    """Seconds at so many tokens, out of ln(seconds) [n] on the grid."""
    return float(np.exp(np.interp(np.log(tokens), _LOG_TOKENS, log_s)))


def _last_product(kernels: Sequence[Operator], home: str) -> int:
    """Place of the last product of a module, -1 where it has none."""
    products = [n for n, op in enumerate(kernels) if op.kind == "gemm" and op.module.startswith(f"{home}.")]
    return products[-1] if products else -1


def _division(segment: ShardedSegment) -> object:
    """What two batches' splits of a segment must have in common."""
    calls = [(c.op, c.axis, c.module) for c in segment.collectives]
    return calls, [(op.target, op.kind) for op in segment.local.operators]
