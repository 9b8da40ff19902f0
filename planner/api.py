"""The verbs of the command line as Python calls: `from planner import api; api.predict(...)`.

Every function takes what the command takes and returns data; printing is the commands' part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.errors import ForeshardError, UsageError
from planner.answering import infer
from planner.cluster import cluster
from planner.correcting import learn_hardware
from planner.exporting import export
from planner.partitioning import partition
from planner.planning import plan
from planner.sharing import parse_devices, share

if TYPE_CHECKING:
    from costmodel.graph.elsewhere import Tracer
    from costmodel.graph.model_graph import ModelGraph
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.models import ModelSource
    from costmodel.plan import Plan
    from costmodel.predict import Forecast, Forecaster
    from planner.validation.scoring import Report

__all__ = [
    "calibrate",
    "cluster",
    "export",
    "forecaster",
    "graph_summary",
    "import_hardware",
    "infer",
    "learn_hardware",
    "memory_timeline",
    "model_source",
    "operator_histogram",
    "parse_devices",
    "parse_overrides",
    "parse_plan",
    "partition",
    "plan",
    "predict",
    "ridges",
    "share",
    "trace",
    "validate_run",
]


def parse_overrides(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`["n_layer=4", "tie=false"]` to a dictionary; values are read as Python literals where they are.

    Raises UsageError for a pair without `=`.
    """
    import ast

    values: dict[str, Any] = {}
    for pair in pairs or ():
        key, sep, text = pair.partition("=")
        if not sep or not key:
            raise UsageError(f"--set {pair!r}: must be name=value, for example --set n_layer=4")
        try:
            values[key] = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def parse_plan(text: str) -> Plan:
    """A plan from its string form or from a TOML file. Raises PlanError."""
    from costmodel.errors import PlanError
    from costmodel.plan import Plan

    if text.endswith(".toml"):
        path = Path(text)
        if not path.is_file():
            raise PlanError(f"plan file {text} does not exist; give a file or a plan such as dp2.tp2")
        return Plan.from_toml(path.read_text())
    return Plan.parse(text)


def model_source(
    model: str,
    *,
    micro_batch_size: int | None = 1,
    seq_len: int | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    training: bool = True,
    trust_remote_code: bool = False,
    tracer: Tracer | None = None,
) -> ModelSource:
    """Resolve the model argument, in the tracer's process where there is one. Raises ModelArgumentError."""
    from costmodel.models import resolve

    changes = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return (resolve if tracer is None else tracer.resolve)(
        model,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        overrides=changes,
        task="train" if training else "inference",
        trust_remote_code=trust_remote_code,
    )


def trace(
    model: str,
    *,
    micro_batch_size: int | None = None,
    seq_len: int | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    training: bool = True,
    attention: str = "as_run",
    trust_remote_code: bool = False,
) -> ModelGraph:
    """The model's graph; no micro-batch: a callable's example inputs as given, else 1 sample.

    Raises ModelArgumentError, TraceError.
    """
    from costmodel.graph import trace as trace_graph

    source = model_source(
        model,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        overrides=overrides,
        training=training,
        trust_remote_code=trust_remote_code,
    )
    return trace_graph(source, training=training, attention=attention)


def graph_summary(graph: ModelGraph) -> dict[str, Any]:
    """The fields of `trace --json`."""
    from costmodel.graph.model_graph import Phase
    from costmodel.predict.without_rule import unmodelled_bytes

    return {
        "model": graph.name,
        "micro_batch_size": graph.micro_batch_size,
        "seq_len": graph.seq_len,
        "parameters": graph.n_parameters,
        "flop_forward": graph.flop(Phase.FORWARD),
        "flop_backward": graph.flop(Phase.BACKWARD),
        "saved_activation_bytes": graph.saved_activation_bytes,
        "unmodelled_fraction": graph.unmodelled_fraction,
        "unmodelled_operators": [
            {"operator": name, "calls": calls, "bytes_fraction": share}
            for name, calls, share in unmodelled_bytes(graph)
        ],
        "n_operators": graph.n_operators,
        "trace_time_s": graph.trace_time_s,
        "traced_by": graph.traced_by,
        "notes": list(graph.notes),
        "memory_timeline": memory_timeline(graph) if graph.flop(Phase.BACKWARD) else [],
        "modules": [
            {
                "name": s.name,
                "count": s.count,
                "n_operators": sum(1 for op in s.operators if op.phase is not Phase.OPTIMIZER),
                "parameters": s.n_parameters,
                "flop_forward": sum(op.flop for op in s.phase(Phase.FORWARD)),
                "flop_backward": sum(op.flop for op in s.phase(Phase.BACKWARD)),
                "saved_activation_bytes": s.saved_bytes,
                "output_bytes": s.output_bytes,
            }
            for s in graph.segments
        ],
    }


def memory_timeline(graph: ModelGraph, recompute: str = "none") -> list[dict[str, Any]]:
    """Bytes above model state while each segment runs, forward and back: its instances' highest level.

    On one device, gradients new in this step, no optimizer.
    """
    from costmodel.graph.liveness import segment_memories
    from costmodel.predict.peak import walk_stage
    from costmodel.recompute import Recompute

    policy = Recompute.parse(recompute)
    texts = {policy.of_block(0), policy.of_block(1)}
    by_policy = {text: segment_memories(graph.segments, text) for text in texts}
    units, owner, block = [], [], 0
    for number, segment in enumerate(graph.segments):
        for _ in range(segment.count):
            units.append(by_policy[policy.of_block(block)][number])
            owner.append(number)
            block += segment.is_block
    highest: dict[tuple[str, int], Any] = {}
    for level in walk_stage(units, gradients_appear=True):
        key = (str(level.phase), owner[level.unit])
        if key not in highest or level.total > highest[key].total:
            highest[key] = level
    return [
        {
            "module": graph.segments[number].name,
            "phase": phase,
            "level_bytes": level.total,
            "activations_bytes": level.activations,
            "gradients_bytes": level.gradients,
            "temporary_bytes": level.temporary,
        }
        for (phase, number), level in highest.items()
    ]


def operator_histogram(graph: ModelGraph) -> list[dict[str, Any]]:
    """Calls, FLOP, bytes and FLOP/byte per operator kind, most FLOP first."""
    totals: dict[str, list[float]] = {}
    for segment, op in graph.operators():
        row = totals.setdefault(op.kind, [0.0, 0.0, 0.0])
        row[0] += segment.count
        row[1] += segment.count * op.flop
        row[2] += segment.count * (op.bytes_read + op.bytes_written)
    ordered = sorted(totals.items(), key=lambda item: (-item[1][1], -item[1][2]))
    return [
        {
            "kind": kind,
            "calls": int(n),
            "flop": flop,
            "bytes": size,
            "intensity": flop / size if size else 0.0,
        }
        for kind, (n, flop, size) in ordered
    ]


def ridges(hardware: str) -> dict[str, float]:
    """FLOP per byte where the datasheet roofline bends, per dtype."""
    from costmodel.hardware.store import load_profile

    device = load_profile(hardware).device
    return {dtype: peak / device.memory_bytes_per_s for dtype, peak in sorted(device.peak_flop_per_s.items())}


def forecaster(
    model: str,
    *,
    hardware: str,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    host: str | None = None,
    compression: float = 1.0,
    straggler: float = 1.0,
    tracer: Tracer | None = None,
) -> Forecaster:
    """A reusable predictor of one model on one machine: traces once, then prices any plan.

    `hardware` is a profile, with a variant of its network after a colon: "h100-sxm5-80gb:ethernet-100g".
    `host`: what offload works with, by name or file; default: the usual one of the device's generation.
    `compression`: by how much gradients shrink before they are sent. `straggler`: speed of one rank.
    `tracer`: the process that traces the model; default: this one.
    """
    from costmodel.framework import load_framework
    from costmodel.hardware.host_machine import load_host
    from costmodel.hardware.store import load_profile
    from costmodel.predict import Forecaster

    name, _, variant = hardware.partition(":")
    chosen = load_framework(framework)
    if not 1.0 <= compression < float("inf"):
        raise UsageError(f"compression({compression:g}): must be at least 1 (10: a tenth of the bytes)")
    if compression > 1.0:
        chosen = chosen.model_copy(update={"gradient_comm_bytes": chosen.gradient_comm_bytes / compression})
    return Forecaster(
        profile=load_profile(name),  # first: the library of a model takes seconds
        source=model_source(
            model, seq_len=seq_len, overrides=overrides, trust_remote_code=trust_remote_code, tracer=tracer
        ),
        framework=chosen,
        optimizer=optimizer,
        network_variant=variant or None,
        host=load_host(host) if host else None,
        straggler=straggler,
    )


def predict(
    model: str,
    *,
    hardware: str,
    plan: str,
    world_size: int | None = None,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    host: str | None = None,
    compression: float = 1.0,
    straggler: float = 1.0,
) -> Forecast:
    """Forecast one plan: `.prediction`, and the timeline behind it."""
    parsed = parse_plan(plan)
    if world_size is not None:
        parsed.require_world_size(world_size)
    return forecaster(
        model,
        hardware=hardware,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=overrides,
        trust_remote_code=trust_remote_code,
        host=host,
        compression=compression,
        straggler=straggler,
    ).forecast(parsed)


def calibrate(
    *,
    out: Path,
    budget_s: float = 60.0,
    world_size: int = 2,
    backend: str | None = None,
    only: Sequence[str] | None = None,
    resume: bool = True,
    hosts: Path | None = None,
) -> HardwareProfile | None:
    """Measure this machine (or those of a file of hosts) and write its profile to `out`; None on a joined
    rank other than 0."""
    from calibrate.api import calibrate as run
    from calibrate.hosts import load_hosts

    return run(
        world_size=world_size,
        budget_s=budget_s,
        out=out,
        backend=backend,
        only=only,
        resume=resume,
        hosts=load_hosts(hosts) if hosts else None,
    )


def import_hardware(
    *,
    operators: Sequence[Path],
    collectives: Sequence[Path],
    out: Path,
    gpus: Sequence[str] | None = None,
    force: bool = False,
    transfer: bool = False,
    on_problem: Callable[[str], None] | None = None,
) -> list[Path]:
    """Fit one profile per GPU of the tables and write them. Raises UsageError on nothing to read.

    `transfer`: every GPU with a datasheet gets one; what was not measured on it is borrowed from the nearest
    that was, with a wider interval. `on_problem` is told of each line left out: file, line and why.
    """
    from calibrate.importing import import_profiles

    if not operators and not collectives:
        raise UsageError("nothing to import: give --operators FILE.csv and/or --collectives FILE.csv")
    missing = [str(p) for p in (*operators, *collectives) if not p.is_file()]
    if missing:
        raise ForeshardError(f"{', '.join(missing)}: no such file; give tables that exist")
    return list(
        import_profiles(
            operators=operators,
            collectives=collectives,
            out_dir=out,
            gpus=gpus,
            force=force,
            transfer=transfer,
            on_problem=on_problem,
        )
    )


def validate_run(
    *,
    models: Sequence[str] | None,
    plans: Sequence[str] | None,
    hardware: str | None,
    budget_s: float = 60.0,
    global_batch_size: int | None = None,
    repeats: int | None = None,
    steps: int = 2,
    timeout_s: float = 60.0,
    out: Path | None = None,
    trace_dir: Path | None = None,
    executor: str = "torch",
    hosts: Path | None = None,
    bucket_cap_mb: float | None = None,
    prompt_len: int | None = None,
    output_len: int | None = None,
) -> Report:
    """Start real runs of the plans here and hold them against their forecast.

    With `prompt_len` and `output_len` the runs are answers: prefill, then decode with kept keys and values.
    `trace_dir`: keep a profiler trace of each run's ranks there, for `validate trace`.
    `executor` onnxruntime: forward passes of the exported models instead of training plans.
    """
    from planner.render import progress
    from planner.validation.local import validate_local

    return validate_local(
        models=models,
        plans=plans,
        hardware=hardware,
        global_batch_size=global_batch_size,
        budget_s=budget_s,
        repeats=repeats,
        steps=steps,
        timeout_s=timeout_s,
        out=out,
        trace_dir=trace_dir,
        executor=executor,
        hosts=hosts,
        bucket_cap_mb=bucket_cap_mb,
        prompt_len=prompt_len,
        output_len=output_len,
        progress=progress,
    )
