"""Inference: one forward pass, and requests answered token by token.

    prefill        forward over the prompt; what follows the last block runs on the last token only
    decode(c)      forward of one token a sequence, its attention over a context of c keys
    time to first token   = prefill
    time per output token = decode at the mean context, prompt + output / 2 (decode is affine in c)
    latency               = prefill + (output - 1) * time per output token

Both are the traced graph under the plan's tensor parallelism, priced without gradients. Pipeline stages run
one after another: a batch that is not cut into micro-batches is in one of them at a time (the naive layer
split). Words of the plan or the framework cut it, or stream the weights in
(`costmodel.strategies.inference`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError
from costmodel.estimate import Z90
from costmodel.graph import GraphStore
from costmodel.hardware.host_machine import HostMachine, host_of
from costmodel.plan import Plan
from costmodel.predict.answer_memory import (
    answer_bytes,
    attention_calls,
    overhead_bytes,
    pass_bytes,
    sampling_bytes,
    token_bytes,
)
from costmodel.predict.attending import cache_copies
from costmodel.predict.chosen_keys import ChosenKeys, attending_graph, scoring_segments
from costmodel.predict.forecaster import Forecaster
from costmodel.predict.notes import dispatch_notes, machine_notes, model_notes, quantisation_notes
from costmodel.predict.pricing import host_cost_s, price_operators
from costmodel.predict.uncertainty import step_log_sigma
from costmodel.predict.units import Unit, after_blocks, expand, output_bytes
from costmodel.rendering import bytes_text
from costmodel.stage_costs import CostParts
from costmodel.strategies.inference import choose_micro_batches, streamed_s, streams_from
from costmodel.strategies.offload import host_rates

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.models import ModelSource

__all__ = ["ForwardCost", "InferenceForecaster", "InferencePrediction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCost:
    """One forward pass of a batch: seconds, and the parts that add up to them."""

    time_s: float
    log_sigma: float
    """Spread of ln(time)."""
    breakdown_s: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def interval_s(self) -> tuple[float, float]:
        """90 % interval of the time."""
        return _interval(self.time_s, self.log_sigma)

    def times(self, n: int) -> ForwardCost:
        """`n` passes in a row. Raises PlanError where n is not positive."""
        if n < 1:
            raise PlanError(f"{n} forward passes: must be at least 1")
        parts = {name: n * seconds for name, seconds in self.breakdown_s.items()}
        return ForwardCost(time_s=n * self.time_s, log_sigma=self.log_sigma, breakdown_s=parts)

    def followed_by(self, n: int, other: ForwardCost) -> ForwardCost:
        """This pass and `n` of another kind in a row, their errors alike."""
        time_s = self.time_s + n * other.time_s
        return ForwardCost(
            time_s=time_s,
            log_sigma=(self.log_sigma * self.time_s + other.log_sigma * n * other.time_s) / time_s,
            breakdown_s={
                part: self.breakdown_s.get(part, 0.0) + n * other.breakdown_s.get(part, 0.0)
                for part in dict.fromkeys((*self.breakdown_s, *other.breakdown_s))
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "interval_s": self.interval_s}


@dataclass(frozen=True, slots=True, kw_only=True)
class InferencePrediction:
    """A batch of requests of one shape, answered together by each of the plan's `dp` replicas.

    `time_to_first_token_s`: the prompt's forward. `time_per_output_token_s`: mean over the tokens after the
    first. `latency_s`: of the whole answer. Bytes are per rank (of the fullest stage, blocks spread evenly).
    """

    plan: Plan
    batch_size: int
    prompt_len: int
    output_len: int
    time_to_first_token_s: float
    time_per_output_token_s: float
    latency_s: float
    tokens_per_s: float
    """Output tokens of all sequences of all replicas per second of latency."""
    parameter_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    """Of a pass, at the moment when they and the cache are most."""
    overhead_bytes: int
    """What libraries and the device's context hold."""
    device_memory_bytes: int
    log_sigma: float
    """Spread of ln(latency)."""
    breakdown_s: Mapping[str, float]
    """Parts of `latency_s`."""
    warnings: tuple[str, ...] = ()
    host_fits: bool = True
    """Whether a node's host has the memory for weights that stream from it."""

    @property
    def time_s(self) -> float:
        """The latency."""
        return self.latency_s

    @property
    def interval_s(self) -> tuple[float, float]:
        """90 % interval of the latency."""
        return _interval(self.latency_s, self.log_sigma)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        derived = {"interval_s": self.interval_s, "memory_bytes": self.memory_bytes, "fits": self.fits}
        return {**asdict(self), "plan": str(self.plan), **derived}

    @property
    def fits(self) -> bool:
        """Whether all of it fits the device, and streamed weights the host."""
        return self.host_fits and self.memory_bytes <= self.device_memory_bytes

    @property
    def memory_bytes(self) -> int:
        """Most that the device holds at once."""
        return self.parameter_bytes + self.kv_cache_bytes + self.activation_bytes + self.overhead_bytes


class InferenceForecaster:
    """Inference of one model (a ModelSource) on one machine under one framework."""

    def __init__(
        self,
        *,
        source: ModelSource,
        profile: HardwareProfile,
        framework: FrameworkProfile,
        network_variant: str | None = None,
        host: HostMachine | None = None,
        graphs: GraphStore | None = None,
        styles: Callable[[int], Mapping[str, str]] | None = None,
    ) -> None:
        """`graphs`: traces shared with other forecasters; default: its own. `styles`: layer styles of a real
        run by tensor-parallel degree; default: the model's own."""
        self._styles = styles
        self.source = source
        self._graphs = graphs or GraphStore()
        self.host = host or host_of(profile)
        self.profile = profile
        self.framework = framework
        self.network_variant = network_variant
        self._forecasters: dict[tuple[int, int], Forecaster] = {}
        self._paged: InferenceForecaster | None = None
        self._late: tuple[str, ...] = ()
        """What was noted of the host in the last pass that may wait for it."""

    def in_pages(self) -> InferenceForecaster:
        """The same with room for keys and values beforehand, so that none are joined to others."""
        if not self.framework.cache_concatenated:
            return self
        if self._paged is None:
            self._paged = copy(self)
            self._paged.framework = self.framework.model_copy(update={"cache_concatenated": False})
            self._paged._forecasters = {}
        return self._paged

    def forward(self, plan: Plan, *, batch_size: int) -> ForwardCost:
        """One forward pass at the source's own sequence length (encoders, image models, a denoising step).

        Raises PlanError where the model cannot be split as the plan says.
        """
        return self._cost(self._at(self.source.seq_len, 0), plan, batch_size)

    def generate(
        self, plan: Plan, *, batch_size: int, prompt_len: int, output_len: int
    ) -> InferencePrediction:
        """Answer `batch_size` prompts of `prompt_len` tokens with `output_len` tokens each.

        Raises PlanError where sizes are not positive, the model has no sequence or no attention over one, is
        an encoder-decoder, or the plan cannot split it.
        """
        self._require_answers(batch=batch_size, prompt=prompt_len, output=output_len)
        context = prompt_len + output_len // 2
        one_token = self._at(1, context)
        prompt = lru_cache(partial(self._prefill, plan, prompt_len=prompt_len, one_token=one_token))
        token = lru_cache(partial(self._cost, one_token, plan, context=context))
        sizes = choose_micro_batches(
            plan,
            batch_size,
            lambda size: prompt(size).time_s,
            lambda size: token(size).time_s,
            prompt_len=prompt_len,
            most_tokens=self.framework.pipeline_tokens,
        )
        parts = batch_size // sizes.prompt
        first = _stretched(prompt(sizes.prompt), plan.pp, parts, plan.pp + parts - 1)
        parts = batch_size // sizes.token
        following = _stretched(token(sizes.token), plan.pp, parts, max(plan.pp, parts))
        answer = first.followed_by(output_len - 1, following)
        tokens = self._units(one_token, plan, batch_size)
        caches = self._token_bytes(tokens, batch_size)
        held = [unit.stored_elements for unit in tokens]
        activations = answer_bytes(
            self._prompt(plan, sizes.prompt, prompt_len=prompt_len, one_token=one_token),
            self._units(one_token, plan, sizes.token),
            self.framework,
            grown_bytes=caches * output_len / plan.pp,
        )
        on_host = sum(held) * self.framework.parameter_bytes if streams_from(plan) == "host" else 0.0
        too_much = on_host > self.host.memory_bytes
        # streamed weights: the unit that computes and the one that comes in
        parameters = sum(sorted(held)[-2:]) if streams_from(plan) else sum(held) / plan.pp
        return InferencePrediction(
            plan=plan,
            batch_size=batch_size,
            prompt_len=prompt_len,
            output_len=output_len,
            time_to_first_token_s=first.time_s,
            time_per_output_token_s=following.time_s,
            latency_s=answer.time_s,
            tokens_per_s=plan.dp * batch_size * output_len / answer.time_s,
            parameter_bytes=round(parameters * self.framework.parameter_bytes),
            kv_cache_bytes=round(caches * (prompt_len + output_len) / plan.pp),
            activation_bytes=activations,
            overhead_bytes=overhead_bytes(self.framework, plan.tp),
            device_memory_bytes=int(self.profile.device.memory_bytes),
            log_sigma=answer.log_sigma,
            breakdown_s=answer.breakdown_s,
            host_fits=not too_much,
            warnings=(
                f"DOES NOT FIT the host: weights of {bytes_text(on_host)} stream from one of "
                f"{bytes_text(self.host.memory_bytes)}; use drives (zero-inference-nvme) or name "
                "your host (--host)",
            )
            if too_much
            else (),
        )

    def _require_answers(self, **sizes: int) -> None:
        """Raises PlanError where there are no answers to such sizes."""
        for name, size in sizes.items():
            if size < 1:
                raise PlanError(f"{name} of {size}: must be at least 1")
        if not self.source.seq_len:
            raise PlanError(f"{self.source.name} has no sequence, so there are no tokens to generate")
        if self.source.encodes_first:
            raise PlanError(
                f"{self.source.name} is an encoder-decoder; answers are modelled for decoders alone; ask for "
                "a forward pass (no prompt, no output)"
            )

    def _token_bytes(self, tokens: list[Unit], batch_size: int) -> float:
        """What a token of each request adds to the cache, scored keys with it. Raises PlanError where no
        attention says."""
        caches = token_bytes(tokens, self.framework)
        if self.chosen_keys:
            scored = sum(attention_calls(unit) for unit in tokens if self.scores(unit.shard.name))
            caches += scored * batch_size * self.chosen_keys.cache_bytes
        if not caches:
            raise PlanError(
                f"{self.source.name} has no fused attention under framework {self.framework.name!r}, so what "
                "a token costs over its context is not known; take a framework with attention=flash"
            )
        return caches

    def warnings(self, seq_len: int, *, tp: int = 1) -> tuple[str, ...]:
        """What to know beside the figures of the passes forecast so far, of up to `seq_len` tokens on `tp`
        tensor-parallel ranks."""
        made = [*self._forecasters.values(), *(self._paged._forecasters.values() if self._paged else ())]
        found = dict.fromkeys(note for one in made for note in (*one.graphs.notes, *one.split_notes(tp)))
        machine = machine_notes(self.profile, self.framework)
        if self.framework.cache_dtype != "same" and not self.cache_type():
            machine = (
                *machine,
                f"no attention over keys and values in {self.framework.cache_dtype} was measured on "
                f"{self.profile.name} or its like: timed as over {self.framework.compute_dtype}; memory "
                "is the narrow type's",
            )
        stored = quantisation_notes(self.source, self.framework)
        late = self._late or (self._paged._late if self._paged else ())
        return (*found, *machine, *model_notes(self.source, seq_len), *stored, *late)

    def forward_flop(self, *, batch_size: int) -> float:
        """FLOP of one sample's forward pass at the source's own sequence length, by the graph of a batch."""
        return self._at(self.source.seq_len, 0).model_flop(batch_size)

    def answer_flop(self, *, batch_size: int, prompt_len: int, output_len: int) -> tuple[float, float]:
        """FLOP of one prompt, and of one token after it without its attention over earlier ones; by the
        graphs of a batch."""
        context = prompt_len + output_len // 2
        prompt, token = self._at(prompt_len, 0), self._at(1, context)
        return prompt.model_flop(batch_size), token.model_flop(batch_size)

    def _at(self, seq_len: int, context: int) -> Forecaster:
        """Forecaster of forward passes at a sequence length; `context` > 0: keys of each new token."""
        if (seq_len, context) not in self._forecasters:
            self._forecasters[seq_len, context] = Forecaster(
                source=replace(self.source, seq_len=seq_len) if seq_len else self.source,
                profile=self.profile,
                framework=self.framework,
                network_variant=self.network_variant,
                styles=self._styles,
                training=False,
                adapt=partial(
                    attending_graph, context=context, cache=self.cache_type(), chosen=self.chosen_keys
                ),
                graphs=self._graphs,
            )
        return self._forecasters[seq_len, context]

    def one_token(self) -> Forecaster:
        """Forecaster of passes with one token of each request, its attention still as a prompt's."""
        return self._at(1, 0)

    def share_trace(self, other: InferenceForecaster) -> None:
        """Take passes of one token from a forecaster of the same model, so that it is traced once."""
        if other is not self:
            shared = other.one_token().on(profile=self.profile, framework=self.framework)
            self._forecasters[1, 0] = shared

    def cache_type(self) -> str:
        """Type of attention over a cache of another type than the activations (bf16+fp8kv); "" where it is
        the same or the profile measured no such attention."""
        if self.framework.cache_dtype == "same":
            return ""
        cache = f"{self.framework.cache_dtype}kv"
        measured = {f.dtype.partition("+")[2] for f in self.profile.operators if f.kind == "attention"}
        return f"{self.framework.compute_dtype}+{cache}" if cache in measured else ""

    @cached_property
    def chosen_keys(self) -> ChosenKeys | None:
        """How attention chooses its keys, where the model does and the framework runs that; else None."""
        return ChosenKeys.of(self.source.config) if self.framework.chooses_keys else None

    def scores(self, segment: str) -> bool:
        """Whether attention in a segment of this name scores keys for itself: where the model's own code
        shows who does, those do; else all."""
        return not self._scoring or segment in self._scoring

    @cached_property
    def _scoring(self) -> frozenset[str]:
        return scoring_segments(self.one_token().graphs.at(micro_batch_size=1))

    def _units(self, forecaster: Forecaster, plan: Plan, batch_size: int) -> list[Unit]:
        shaped = plan.with_(micro_batch_size=batch_size, global_batch_size=batch_size * plan.dp)
        return expand(forecaster, shaped)

    def _cost(self, forecaster: Forecaster, plan: Plan, batch_size: int, *, context: int = 0) -> ForwardCost:
        units = self._units(forecaster, plan, batch_size)
        return self._sum(forecaster, plan, batch_size, units, context=context)

    def _prefill(self, plan: Plan, batch_size: int, *, prompt_len: int, one_token: Forecaster) -> ForwardCost:
        units = self._prompt(plan, batch_size, prompt_len=prompt_len, one_token=one_token)
        return self._sum(self._at(prompt_len, 0), plan, batch_size, units)

    def _prompt(self, plan: Plan, batch_size: int, *, prompt_len: int, one_token: Forecaster) -> list[Unit]:
        """The prompt through the blocks, its last token through what follows them."""
        forecaster = self._at(prompt_len, 0)
        units = self._units(forecaster, plan, batch_size)
        single = self._units(one_token, plan, batch_size)
        tail = after_blocks(units)
        if tail and tail == after_blocks(single):
            units = [*units[:-tail], *single[-tail:]]
        return units

    def pass_bytes(self, plan: Plan, *, prompt_len: int, output_len: int) -> int:
        """Activations of a server's pass, full of prompts of that length (longer ones are cut), or what
        sampling takes behind it, where that is more."""
        tokens = self.framework.pass_tokens
        requests = max(1, tokens // prompt_len)
        one_token = self._at(1, prompt_len + output_len // 2)
        units = self._prompt(plan, requests, prompt_len=prompt_len, one_token=one_token)
        vocabulary, device = int(self.source.config.get("vocab_size", 0)), self.profile.device
        sampling = sampling_bytes(self.framework, vocabulary, device_bytes=device.memory_bytes)
        return max(sampling, round(pass_bytes(units) * min(1.0, tokens / prompt_len)))

    def _sum(
        self, forecaster: Forecaster, plan: Plan, batch_size: int, units: list[Unit], *, context: int = 0
    ) -> ForwardCost:
        """`context`: keys of each new token; 0: a prompt's own."""
        tokens = forecaster.source.seq_len
        asked = {"requests": batch_size, "tokens": tokens, "context": context or tokens}
        parts: dict[str, float] = {}
        # stages take turns, other ranks do not
        utilisation = 0.0 if plan.dp * plan.tp * plan.cp == 1 else 1.0
        unit_s = []
        joining: dict[int, CostParts] = {}
        choosing: dict[int, CostParts] = {}
        for unit in units:
            cost = unit.costs.parts("forward", utilisation)
            if self.framework.cache_concatenated:
                if id(unit.shard) not in joining:
                    joining[id(unit.shard)] = self._joining(unit)
                cost = cost + joining[id(unit.shard)]
            if self.chosen_keys:
                if id(unit.shard) not in choosing:
                    choosing[id(unit.shard)] = self._choosing(self.chosen_keys, unit, **asked)
                cost = cost + choosing[id(unit.shard)]
            total = cost + unit.costs.exposed_host({"forward": cost})
            unit_s.append(total.total_s)
            for name, seconds in total.parts_s.items():
                parts[name] = parts.get(name, 0.0) + seconds
        if source := streams_from(plan):
            transfer_s = self._transfers_s(forecaster, plan, units, source)
            parts["offload"] = streamed_s(unit_s, transfer_s) - sum(unit_s)
        framework = forecaster.framework
        overhead_s = framework.forward_overhead_s + batch_size * framework.request_overhead_s
        overhead_s += host_cost_s(forecaster.profile, "step_s")
        parts["host"] = parts.get("host", 0.0) + overhead_s
        blocks = [unit for unit in units if unit.shard.local.is_block]
        if plan.pp > 1 and blocks:
            parts["pp_comm"] = forecaster.pipeline_s(plan, float(output_bytes(blocks[0])))
        time_s = sum(parts.values())
        late = dispatch_notes(self.profile, self.framework, units, sum(unit_s), training=False)
        self._late = late or self._late
        sigma = step_log_sigma(
            units, parts, time_s, comm_log_sigma=0.0, framework=self.framework, learnt=self.profile.learnt
        )
        return ForwardCost(time_s=time_s, log_sigma=sigma, breakdown_s=parts)

    def _joining(self, unit: Unit) -> CostParts:
        """Copies of a unit's kept keys and values, where each token is joined to them in new memory."""
        calls = [op for op in unit.shard.local.operators if op.kind == "attention" and "decode" in op.variant]
        copies = [copy for call in calls for copy in cache_copies(call)]
        priced = price_operators(copies, self.profile, self.framework)
        return CostParts(parts_s={"compute": float(priced.device_s.sum())} if copies else {})

    def _choosing(
        self, chosen: ChosenKeys, unit: Unit, *, requests: int, tokens: int, context: int
    ) -> CostParts:
        """What a unit does to choose its keys."""
        operators = unit.shard.local.operators
        calls = attention_calls(unit)
        if not calls or not self.scores(unit.shard.name):
            return CostParts(parts_s={})
        like = (
            replace(next(op for op in operators if op.kind == "gemm"), module=""),
            replace(next(op for op in operators if op.kind == "elementwise"), module=""),
        )
        sizes = {"requests": requests, "tokens": tokens, "context": context}
        kernels = chosen.kernels(*like, requests * tokens)
        each_s = float(price_operators(kernels, self.profile, self.framework).device_s.sum())
        each_s += chosen.choosing_s(like, self.profile, self.framework, **sizes)
        return CostParts(parts_s={"compute": calls * each_s})

    def _transfers_s(self, forecaster: Forecaster, plan: Plan, units: list[Unit], source: str) -> list[float]:
        """Seconds in which each unit's weights come in: a part over every rank's link, then gathered."""
        rates = host_rates(self.profile, self.host, self.framework, plan.world_size)
        rate = rates.h2d_bytes_per_s
        if source == "storage":
            rate = min(rate, rates.storage_bytes_per_s)
        seconds = []
        for unit in units:
            size = unit.stored_elements * self.framework.parameter_bytes
            gather_s = 0.0
            if plan.dp > 1 and size:
                gather_s = float(forecaster.collective(plan, "all_gather", size, "dp").median_s[0])
            seconds.append(size / plan.dp / rate + gather_s)
        return seconds


def _interval(time_s: float, log_sigma: float) -> tuple[float, float]:
    return time_s * math.exp(-Z90 * log_sigma), time_s * math.exp(Z90 * log_sigma)


def _stretched(cost: ForwardCost, stages: int, parts: int, slots: int) -> ForwardCost:
    """`parts` micro-batches through a pipeline in `slots` times a stage's share of one's forward: what a rank
    does for them all, and what it waits."""
    if stages == 1 or parts == 1:
        return cost
    slot_s = cost.time_s / stages
    done = {name: seconds * parts / stages for name, seconds in cost.breakdown_s.items()}
    done["bubble"] = done.get("bubble", 0.0) + (slots - parts) * slot_s
    return ForwardCost(time_s=slots * slot_s, log_sigma=cost.log_sigma, breakdown_s=done)
