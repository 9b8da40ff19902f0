"""Forecaster: one model on one machine under one framework; prices any plan.

What plans share is priced once: the graph per micro-batch size, the sharded and priced segments per
(micro-batch, tp, sp, cp, ep), collectives per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray, TimeEstimate
from costmodel.framework import FrameworkProfile
from costmodel.graph import GraphStore, scalable_graph
from costmodel.graph.liveness import saved_tensors
from costmodel.graph.model_graph import ModelGraph, Phase
from costmodel.hardware.collectives import SIZE_GRID_BYTES, collective_times, fastest_collective
from costmodel.hardware.host_machine import HostMachine, host_of
from costmodel.hardware.kinds import CollectiveGroup
from costmodel.hardware.learnt import link_term
from costmodel.hardware.pricing import operator_times
from costmodel.hardware.schema import HardwareProfile
from costmodel.models.splitnet import split_source
from costmodel.plan import Plan
from costmodel.predict.assemble import assemble
from costmodel.predict.learnt import with_learnt
from costmodel.predict.placement import axis_groups, crosses_node, crossings
from costmodel.predict.prediction import Prediction
from costmodel.predict.segment_costs import Kernels, SegmentCosts, price_kernels, price_segment
from costmodel.predict.without_rule import WithoutRule, without_cost, without_sharding
from costmodel.sharding import ShardedGraph, shard
from costmodel.sharding.key_heads import repeat_key_heads
from costmodel.strategies.splitting import branches_of, split_otherwise, splitting_words

if TYPE_CHECKING:
    from costmodel.models import ModelSource
    from costmodel.step import StepResult

__all__ = ["CollectiveKey", "Forecast", "Forecaster"]

CollectiveKey = tuple[str, float, CollectiveGroup]
"""(op, size in bytes, group)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A prediction and the simulated step behind it."""

    prediction: Prediction
    step: StepResult

    def write_trace(self, folder: Any) -> None:
        """Write a Perfetto-readable trace per rank into `folder`."""
        from costmodel.timeline import write_perfetto

        plan = self.prediction.plan
        write_perfetto(self.step.timeline, folder, ranks_per_stage=plan.world_size // plan.pp)

    def write_gantt(self, path: Any) -> None:
        """Write the timeline as a PNG."""
        from costmodel.timeline import write_gantt

        write_gantt(self.step.timeline, path)


class Forecaster:
    """Predicts plans of one model (a ModelSource), profile, framework and optimizer."""

    def __init__(
        self,
        *,
        source: ModelSource,
        profile: HardwareProfile,
        framework: FrameworkProfile,
        optimizer: str = "adamw",
        network_variant: str | None = None,
        styles: Callable[[int], Mapping[str, str]] | None = None,
        training: bool = True,
        adapt: Callable[[ModelGraph], ModelGraph] | None = None,
        host: HostMachine | None = None,
        straggler: float = 1.0,
        graphs: GraphStore | None = None,
    ) -> None:
        """`training`: gradients too. `adapt`: changes made to every traced graph before it is split. `host`:
        what offload works with; default: the usual host of the device's generation. `straggler`: speed of
        one rank (of the last pipeline stage) relative to the others. `graphs`: traces shared with other
        forecasters. PlanError where the speed is not positive."""
        if not 0.0 < straggler <= 1.0:
            raise PlanError(f"straggler({straggler:g}): must be above 0 and at most 1, the others' speed")
        self.straggler = straggler
        self.source = source
        self._framework = framework  # as given: what was learnt is applied anew to another profile
        self.profile, self.framework = with_learnt(profile, framework)
        self.optimizer = optimizer
        self.network_variant = network_variant
        self.host = host or host_of(profile)
        self._styles = styles
        self.training = training
        self._adapt = adapt
        self._store = graphs
        self._adapted: dict[int, ModelGraph] = {}
        self._sharded: dict[tuple[Any, ...], ShardedGraph] = {}
        self._branched: dict[int, Forecaster] = {}
        self._flop: dict[int, tuple[float, float, float]] = {}
        self._priced: dict[tuple[Any, ...], tuple[SegmentCosts, ...]] = {}
        self._kernels: dict[int, tuple[Kernels, ...]] = {}
        """By identity of the sharded graph, which `_sharded` keeps."""
        self._collectives: dict[CollectiveKey, TimeEstimate] = {}
        self._curves: dict[tuple[str, CollectiveGroup], FloatArray] = {}
        self._streamed: dict[tuple[str, float, float], float] = {}
        self._groups: Mapping[str, CollectiveGroup] = {}

    def on(
        self,
        *,
        profile: HardwareProfile | None = None,
        framework: FrameworkProfile | None = None,
        host: HostMachine | None = None,
    ) -> Forecaster:
        """The same model on other hardware, framework or host; what is left out stays as it is.

        Graphs already traced and split are shared where both see the same ones, so that only prices are new.
        """
        other = copy(self)
        if profile is not None and not profile.log_shifts:  # as given: what was learnt is still to be applied
            other._framework = framework or self._framework
            other.profile, other.framework = with_learnt(profile, other._framework)
        else:
            other.profile, other.framework = profile or self.profile, framework or self.framework
        other.host = host or (host_of(other.profile) if profile is not None else self.host)
        other._branched, other._priced, other._collectives = {}, {}, {}
        other._kernels, other._curves, other._streamed = {}, {}, {}
        seen = [(f.attention, f.framework.compute_dtype, f.autocast) for f in (self, other)]
        if seen[0] == seen[1]:
            other.__dict__["graphs"] = self.graphs
        else:
            other.__dict__.pop("graphs", None)
            other._adapted, other._sharded, other._flop = {}, {}, {}
        return other

    def styled(self, styles: Callable[[int], Mapping[str, str]]) -> Forecaster:
        """The same with tensor parallelism as torch's parallelize_module makes it of these layer styles."""
        other = self.on()
        other._styles, other._sharded = styles, {}
        return other

    @property
    def attention(self) -> str:
        """How attention runs: on a CPU as torch dispatches it, else as the framework does."""
        return "as_run" if self._dispatched else self.framework.attention

    @property
    def autocast(self) -> str:
        """What `graph.autocast` makes of the trace: the framework's, of the device's kind."""
        casts_to = self.framework.casts_to
        return f"cpu:{casts_to}" if casts_to and self._dispatched else casts_to

    @property
    def fusion(self) -> str:
        """Which kernels memory-bound operators become, see `graph.fusion`."""
        return "as_traced" if self._dispatched else self.framework.fusion

    @property
    def _dispatched(self) -> bool:
        """Whether torch's own dispatcher runs operator by operator on a CPU."""
        return self.profile.device.kind == "cpu" and self.framework.executor == "torch"

    def _tp_options(self, tp: int) -> dict[str, Any]:
        """The layer styles that a real run uses, or the model's and solver's own choice."""
        if self._styles is not None and tp > 1:
            return {"styles": self._styles(tp)}
        return {}

    def n_units(self) -> int:
        """Pieces that the model can be cut into for a pipeline."""
        return sum(segment.count for segment in self.graph(1).segments)

    @cached_property
    def graphs(self) -> Any:
        """The traced graph, rescalable in batch and sequence."""
        traced = scalable_graph if self._store is None else self._store.graph
        return traced(
            self.source,
            training=self.training,
            attention=self.attention,
            dtype="fp32" if self.autocast else self.framework.compute_dtype,
            autocast=self.autocast,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the traces made so far took for granted, left out or could not do, each once."""
        return tuple(self.graphs.notes)

    def graph(self, micro_batch_size: int) -> ModelGraph:
        """The graph for one micro-batch size."""
        graph: ModelGraph = self.graphs.at(micro_batch_size=micro_batch_size)
        if self._adapt is None:
            return graph
        if micro_batch_size not in self._adapted:
            self._adapted[micro_batch_size] = self._adapt(graph)
        return self._adapted[micro_batch_size]

    def sharded(self, plan: Plan) -> ShardedGraph:
        """The graph split by the plan's tensor, sequence, context and expert axes. Raises PlanError."""
        words = splitting_words(plan)
        experts = plan.ep, plan.experts_over
        repeated = not self.training and self.framework.repeats_key_heads
        key = (plan.micro_batch_size, plan.tp, plan.sequence_parallel, plan.cp, experts, words, repeated)
        if key not in self._sharded:
            found = split_otherwise(self.graph(plan.micro_batch_size), plan) or shard(
                self.graph(plan.micro_batch_size),
                tp=plan.tp,
                sequence_parallel=plan.sequence_parallel,
                cp=plan.cp,
                ep=plan.ep,
                experts_over=plan.experts_over,
                **self._tp_options(plan.tp),
            )
            self._sharded[key] = repeat_key_heads(found) if repeated else found
        return self._sharded[key]

    def split_notes(self, tp: int) -> tuple[str, ...]:
        """What was noted of the graphs that were split in so many parts so far."""
        found = (graph.notes for key, graph in self._sharded.items() if key[1] == tp)
        return tuple(dict.fromkeys(note for notes in found for note in notes))

    def collective(self, plan: Plan, op: str, size_bytes: float, axis: str) -> TimeEstimate:
        """Time of one collective over an axis of the plan."""
        if self.profile.network is None:
            raise PlanError(
                f"profile {self.profile.name!r} has no measured network, but the plan {plan} communicates; "
                "calibrate with at least 2 ranks or take a profile with a network"
            )
        group = self.group(plan, axis)
        key: CollectiveKey = (op, size_bytes, group)
        if key not in self._collectives:
            self._collectives[key] = fastest_collective(
                self.profile.network,
                op,
                np.array([size_bytes], dtype=np.float64),
                group,
                variant=self.network_variant,
                impls=self.framework.all_reduce if op == "all_reduce" else (),
            ).shifted(self.profile.log_shifts.get(self.link_term(plan, op, axis), 0.0))
        return self._collectives[key]

    def pipeline_s(self, plan: Plan, size_bytes: float) -> float:
        """From the first stage of a replica to its last, one hop after another. Replicas that answer requests
        have nothing to tell each other: each lies in a row of its own."""
        no_replicas = {"dp": 1, "dp_shard": 0, "zero_stage": 0, "ep": 1, "expert_tp": 0}
        alone = plan.with_(**no_replicas, micro_batch_size=1, global_batch_size=0)
        hops = plan.pp - 1
        far = 0 if self.profile.network is None else crossings(alone, self.profile.network.ranks_per_node)
        return sum(
            n * float(self.collective(alone, "p2p", size_bytes, axis).median_s[0])
            for n, axis in ((hops - far, "pp_near"), (far, "pp"))
            if n
        )

    def group(self, plan: Plan, axis: str) -> CollectiveGroup:
        """The ranks that communicate over an axis of the plan; of a profile with a network."""
        assert self.profile.network is not None
        return self._groups.get(axis) or axis_groups(plan, self.profile.network.ranks_per_node)[axis]

    def collective_s(self, op: str, size_bytes: FloatArray, group: CollectiveGroup) -> FloatArray:
        """Seconds of one collective for every size, in the array's shape; 0 over a single rank."""
        if group.n_ranks == 1:
            return np.zeros_like(size_bytes)
        key = (op, group)
        if key not in self._curves:
            if self.profile.network is None:
                raise PlanError(
                    f"profile {self.profile.name!r} has no measured network; calibrate with 2 ranks"
                )
            times = collective_times(
                self.profile.network, op, SIZE_GRID_BYTES, group, variant=self.network_variant
            )
            network = self.profile.network
            intra, inter = network.links(self.network_variant)
            link = inter.name if group.n_nodes > 1 and inter is not None else intra.name
            self._curves[key] = np.log(times.median_s) + self.profile.log_shifts.get(link_term(op, link), 0.0)
        at = np.log2(np.maximum(size_bytes, 1.0))
        times_s = np.exp(np.interp(at, np.log2(SIZE_GRID_BYTES), self._curves[key]))
        return np.where(size_bytes > 0, times_s, 0.0)

    def streamed_s(self, variant: str, elements: float, traffic_bytes: float) -> float:
        """Seconds of one elementwise kernel over fp32 `elements`, `traffic_bytes` read and written in all."""
        key = (variant, elements, traffic_bytes)
        if key not in self._streamed:
            dims = {
                "rows": np.array([1.0]),
                "cols": np.array([elements]),
                "bytes": np.array([traffic_bytes]),
            }
            times = operator_times(self.profile, "elementwise", variant, "fp32", dims)
            self._streamed[key] = float(times.median_s[0])
        return self._streamed[key]

    def link_name(self, plan: Plan, axis: str) -> str:
        """The link over which the groups of an axis communicate; "" without a network."""
        network = self.profile.network
        if network is None:
            return ""
        intra, inter = network.links(self.network_variant)
        crosses = crosses_node(axis_groups(plan, network.ranks_per_node)[axis])
        return inter.name if crosses and inter is not None else intra.name

    def _exchange_fraction(self) -> float:
        """Of what the link between nodes carries: what an exchange of all with all sends over it."""
        network = self.profile.network
        inter = None if network is None else network.links(self.network_variant)[1]
        if network is None or inter is None:
            return 1.0
        return inter.exchanged_bytes_per_s(network.ranks_per_node) / inter.carried_bytes_per_s

    def link_term(self, plan: Plan, op: str, axis: str) -> str:
        """What runs teach about collectives over an axis of the plan; "" without a network."""
        link = self.link_name(plan, axis)
        return link_term(op, link) if link else ""

    def placed(self, groups: Mapping[str, CollectiveGroup]) -> Forecaster:
        """The same forecaster with the groups of some axes as given, not where a plan's ranks lie."""
        found = copy(self)
        found._groups = {**self._groups, **groups}
        return found

    def segments(self, plan: Plan) -> tuple[SegmentCosts, ...]:
        """Priced segments of the plan, one per segment of the graph."""
        ranks = 1 if self.profile.network is None else self.profile.network.ranks_per_node
        groups = axis_groups(plan, ranks)
        key = (
            plan.micro_batch_size,
            plan.tp,
            plan.sequence_parallel,
            plan.cp,
            plan.ep,
            plan.experts_over,
            splitting_words(plan),
            plan.recompute,
            groups["tp"],
            groups["cp"],
            groups["ep"],
        )
        if key not in self._priced:
            graph = self.sharded(plan)
            segments = graph.segments
            if id(graph) not in self._kernels:
                self._kernels[id(graph)] = price_kernels(
                    segments,
                    profile=self.profile,
                    framework=self.framework,
                    fusion=self.fusion,
                    long_run=self.training,
                )
            saved = saved_tensors(s.local for s in segments)
            self._priced[key] = tuple(
                price_segment(
                    segment,
                    profile=self.profile,
                    framework=self.framework,
                    kernels=kernels,
                    collective=lambda op, size, axis: self.collective(plan, op, size, axis),
                    link=lambda axis: self.link_name(plan, axis),
                    n_nodes=lambda axis: groups[axis].n_nodes,
                    exchange_fraction=self._exchange_fraction(),
                    recompute=plan.recompute,
                    saved_elsewhere=saved,
                )
                for segment, kernels in zip(segments, self._kernels[id(graph)], strict=True)
            )
        return self._priced[key]

    def without_rule(self, plan: Plan) -> tuple[tuple[WithoutRule, ...], tuple[WithoutRule, ...]]:
        """Operators of the plan without a cost rule, and under tensor parallelism without a sharding rule."""
        self.segments(plan)
        graph = self.sharded(plan)
        local, kernels = [s.local for s in graph.segments], self._kernels[id(graph)]
        return without_cost(local, kernels), without_sharding(local, kernels) if plan.tp > 1 else ()

    def forecast(self, plan: Plan) -> Forecast:
        """Price, schedule and sum up one plan. Raises PlanError where it cannot be run."""
        prediction, step = assemble(self._of_branches(branches_of(plan)), plan)
        return Forecast(prediction=prediction, step=step)

    def collectives_of(self, plan: Plan) -> dict[CollectiveKey, TimeEstimate]:
        """Every collective that a plan's forecast asks the price of."""
        other = self.on()
        other._kernels = self._kernels  # no kernel holds a collective
        other.forecast(plan)
        return dict(other._collectives)

    def with_collective(
        self, plan: Plan, key: CollectiveKey, factor: float, known: Mapping[CollectiveKey, TimeEstimate]
    ) -> Forecaster:
        """The same, for one plan, with one of its `known` collectives taking `factor` times as long."""
        other = self.on()
        other._kernels = self._kernels
        if plan.tp * plan.cp * plan.ep == 1 and not splitting_words(plan):
            other._priced = self._priced  # no segment holds a collective
        estimate = known[key]
        other._collectives = {
            **known,
            key: TimeEstimate(median_s=estimate.median_s * factor, log_sigma=estimate.log_sigma),
        }
        return other

    def _of_branches(self, groups: int) -> Forecaster:
        """The forecaster of the model with its blocks split into so many branches (0: as it is)."""
        if not groups:
            return self
        if groups not in self._branched:
            branched = copy(self)
            branched.source = split_source(self.source, groups)
            branched.__dict__.pop("graphs", None)
            branched._adapted, branched._sharded, branched._priced = {}, {}, {}
            branched._kernels, branched._flop = {}, {}
            self._branched[groups] = branched
        return self._branched[groups]

    def model_flop(self, micro_batch_size: int = 1) -> float:
        """Forward + backward FLOP of one sample, recomputation left out (fused attention's own too); by the
        graph of that size."""
        return self._flop_of(micro_batch_size)[0]

    def fused_again_flop(self, micro_batch_size: int = 1) -> float:
        """FLOP of one sample that fused attention's backward spends on scores computed again."""
        return self._flop_of(micro_batch_size)[1]

    def convolution_flop(self, micro_batch_size: int = 1) -> float:
        """FLOP of one sample, of `model_flop`, that are convolutions'."""
        return self._flop_of(micro_batch_size)[2]

    def _flop_of(self, micro_batch_size: int) -> tuple[float, float, float]:
        if micro_batch_size not in self._flop:
            graph = self.graph(micro_batch_size)
            again = graph.fused_again_flop
            total = graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) - again
            convolutions = sum(s.count * op.flop for s, op in graph.operators() if op.kind == "conv")
            n = micro_batch_size
            self._flop[n] = (total / n, again / n, convolutions / n)
        return self._flop[micro_batch_size]
