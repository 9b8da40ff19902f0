"""What a reader of a forecast has to know beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from costmodel.graph.liveness import recomputed_operators
from costmodel.graph.model_graph import Phase
from costmodel.hardware.device import has_units, units_of
from costmodel.hardware.host_machine import unknown_dispatch_s
from costmodel.predict.units import shares_of_rank
from costmodel.recompute import Recompute
from costmodel.rendering import bytes_text
from costmodel.strategies.offload import host_bytes

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.graph.model_graph import ModelGraph, Segment
    from costmodel.hardware.host_machine import HostMachine
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.models import ModelSource
    from costmodel.plan import Plan
    from costmodel.predict.units import Unit
    from costmodel.step import Offload

__all__ = [
    "dispatch_notes",
    "host_notes",
    "machine_notes",
    "model_notes",
    "offload_notes",
    "quantisation_notes",
    "recompute_notes",
    "sample_notes",
]


def machine_notes(profile: HardwareProfile, framework: FrameworkProfile) -> tuple[str, ...]:
    """Types without units of their own, and operator times that come from another device."""
    device = profile.device
    there = ", ".join(sorted(device.peak_flop_per_s))
    found = []
    if not has_units(device, framework.compute_dtype):
        found.append(
            f"{device.name} has no units for {framework.compute_dtype}: priced at its "
            f"{units_of(device, framework.compute_dtype)} rate; choose a framework profile that computes in "
            f"one of {there}"
        )
    for field in ("half_products", "expert_products"):
        narrow = getattr(framework, field)
        if narrow not in ("same", "as the others") and not has_units(device, narrow):
            found.append(
                f"{device.name} has no units for {field} {narrow}: priced in {framework.compute_dtype}, as "
                f"if the framework widened them at no cost; name a type of its units ({there})"
            )
    transferred = sorted({f.transferred_from for f in profile.operators if f.transferred_from})
    if transferred:
        found.append(f"operator times transferred from {', '.join(transferred)}: intervals are wider")
    return tuple(found)


def host_notes(
    plan: Plan,
    offload: Offload | None,
    of_ranks: Sequence[Sequence[Unit]],
    parameter_bytes: float,
    host: HostMachine,
    ranks_per_node: int,
) -> tuple[str, ...]:
    """A host without the memory for what its node's ranks offload; as many as the fullest rank each.
    `of_ranks`: the units of each pipeline rank."""
    if offload is None:
        return ()
    need = 0.0
    for units in of_ranks:
        updated, own = (parameter_bytes * n for n in shares_of_rank(plan, units))
        need = max(need, host_bytes(offload, updated_bytes=updated, own_bytes=own))
    need *= min(ranks_per_node, plan.world_size)
    if need <= host.memory_bytes:
        return ()
    return (
        f"DOES NOT FIT the host: its ranks offload {bytes_text(need)} to a node of "
        f"{bytes_text(host.memory_bytes)}; shard over more nodes, use drives, or name your host (--host)",
    )


def offload_notes(plan: Plan, offload: Offload | None) -> tuple[str, ...]:
    """Replicas that each offload everything."""
    if offload is None or not offload.host_update_bytes_per_s or plan.zero_stage or plan.dp * plan.cp == 1:
        return ()
    return (
        f"each of {plan.dp * plan.cp} replicas updates all parameters on its host: ZeRO-Offload divides them "
        "among the replicas (zero2 in the plan)",
    )


def model_notes(source: ModelSource, seq_len: int) -> tuple[str, ...]:
    """A sequence longer than the model's positions reach."""
    if not source.max_seq_len or seq_len <= source.max_seq_len:
        return ()
    return (
        f"a sequence of {seq_len} is longer than the {source.max_seq_len} positions that {source.name} is "
        "made for: the real model would fail or need its configuration changed",
    )


def quantisation_notes(source: ModelSource, framework: FrameworkProfile) -> tuple[str, ...]:
    """A configuration of quantised weights that the framework does not know of."""
    stored = source.config.get("quantization_config")
    if not stored or framework.half_products != "same":
        return ()
    method = stored.get("quant_method", "quantised") if isinstance(stored, Mapping) else "quantised"
    return (
        f"the configuration's quantisation ({method}) is not priced: weights and products are those of "
        f"framework {framework.name!r}; give a framework file with half_products (fp8, int4_wo, ...) and "
        "parameter_bytes",
    )


def sample_notes(graph: ModelGraph, plan: Plan) -> tuple[str, ...]:
    """A micro-batch of one out of more example samples: what a plan that names no mbs means."""
    if plan.micro_batch_size > 1 or graph.example_samples <= 1:
        return ()
    return (
        f"the model's example inputs hold {graph.example_samples} samples and mbs1 takes one of them: "
        f"mbs{graph.example_samples} in the plan takes them all",
    )


def dispatch_notes(
    profile: HardwareProfile,
    framework: FrameworkProfile,
    units: Sequence[Unit],
    micro_batch_s: float,
    *,
    training: bool = True,
) -> tuple[str, ...]:
    """A step of short kernels, one an operator, whose host's time nobody knows.

    `micro_batch_s`: what all `units` compute for one micro-batch.
    """
    known = framework.host_operator_s or "host_operator_s" in framework.notes or "dispatch_s" in profile.host
    if known or framework.fusion != "eager" or profile.device.kind == "cpu":
        return ()
    count = sum(_calls(unit.shard.local) for unit in units)
    if not count or micro_batch_s / count >= unknown_dispatch_s(training=training):
        return ()
    return (
        f"framework {framework.name!r} has no host time for GPUs, and operators take "
        f"{1e6 * micro_batch_s / count:.1f} us each: likely less than their dispatch from Python, so that "
        "the real time is longer",
    )


def _calls(segment: Segment) -> int:
    """Operators that run something, those of one call (a recurrent layer's) together."""
    run = [op for op in segment.operators if op.kind != "host"]
    return sum(1 for _ in groupby(run, key=lambda op: (op.phase, op.target, op.inputs)))


def recompute_notes(recompute: str, segments: Sequence[Segment]) -> tuple[str, ...]:
    """A policy under which nothing of this model runs again."""
    policy = Recompute.parse(recompute)
    if policy.kind == "none" or any(recomputed_operators(s, policy.of_block(0)) for s in segments):
        return ()
    blocks = [s for s in segments if s.is_block]
    paths = {op.module.removeprefix(s.modules[0]) for s in blocks for op in s.phase(Phase.FORWARD)}
    names = sorted({part for path in paths for part in path.split(".") if part and not part.isdigit()})
    why = "the model has no repeated blocks"
    if blocks:
        why = "no block has such operators" if policy.kind != "modules" else "no block has such a module"
    there = f"; there are {', '.join(names)}" if policy.kind == "modules" and names else ""
    return (f"recomputation {recompute} changes nothing: {why}{there}",)
