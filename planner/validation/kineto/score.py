"""`validate trace`: measured beside predicted, by part of the step, operator kind and module; the verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.errors import InputFileError
from planner.validation.kineto.activity import PARTS, Activity, activity_of, shortest_transfers
from planner.validation.kineto.attribution import OPTIMIZER, Attribution, attribute
from planner.validation.kineto.events import RankTrace, is_host_copy
from planner.validation.kineto.forecast import HOST, Expected, PredictedStep, predict_step
from planner.validation.kineto.module_names import (
    align_forward,
    called_modules,
    class_paths,
    names_classes,
    names_modules,
)
from planner.validation.kineto.operators import (
    Call,
    DeviceWork,
    ModuleTime,
    device_work,
    module_times,
    operator_calls,
)
from planner.validation.kineto.reader import read_traces
from planner.validation.kineto.setting import Setting, machine_slowdown, setting_of
from planner.validation.kineto.verdict import verdict
from planner.validation.scoring import Report, ScoredRow

if TYPE_CHECKING:
    from costmodel.models import ModelSource

__all__ = ["MeasuredRank", "measure_ranks", "validate_trace"]

_OTHER = "other"
_TIMES = tuple[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRank:
    """One rank's mean step."""

    trace: RankTrace
    found: Attribution
    activity: Activity
    modules: Mapping[str, ModuleTime]
    kernels_s: Mapping[tuple[str, str], float]
    """(module, phase) -> time of its own operators: of kernels, on a CPU of the calls themselves."""
    kinds_s: Mapping[tuple[str, str], float]
    notes: tuple[str, ...]


def validate_trace(
    paths: Sequence[Path],
    *,
    hardware: str,
    model: str | None = None,
    plan: str | None = None,
    seq_len: int | None = None,
    overrides: Sequence[str] | None = None,
    framework: str = "pytorch",
    optimizer: str | None = None,
    trust_remote_code: bool = False,
) -> Report:
    """Read profiler traces of one run and hold them against its forecast.

    Model, plan and optimizer come from the trace where foreshard recorded it (`validate run --trace`), else
    they are given. Files that cannot be used are named in the details' `problems`; the rest counts. Raises
    InputFileError where no file can be used, UsageError where model or plan are not known.
    """
    traces, problems = read_traces(paths)
    setting = setting_of(
        traces,
        hardware=hardware,
        model=model,
        plan=plan,
        seq_len=seq_len,
        overrides=overrides,
        framework=framework,
        optimizer=optimizer,
        trust_remote_code=trust_remote_code,
    )
    traces = _of_this_run(traces, setting, problems)
    slowdown = machine_slowdown(traces, setting)
    predicted = predict_step(setting.forecaster, setting.plan, slowdown=slowdown)
    ranks = measure_ranks(traces, predicted, setting.forecaster.source)
    return _report(ranks, predicted, setting, problems, slowdown)


def _of_this_run(traces: Sequence[RankTrace], setting: Setting, problems: list[str]) -> list[RankTrace]:
    """The traces that can be of the plan's ranks; says which are not, and which ranks are missing."""
    world_size = setting.plan.world_size
    kept = []
    for trace in traces:
        idle = trace.run is not None  # foreshard's worlds may be wider than a plan; what is left waits
        if not idle and trace.world_size not in (None, world_size):
            problems.append(
                f"{trace.path}: of a run with {trace.world_size} ranks, but plan {setting.plan} has "
                f"{world_size}; left out"
            )
        elif trace.rank >= world_size:
            problems.append(
                f"{trace.path}: rank {trace.rank}, but plan {setting.plan} has ranks 0 to {world_size - 1}; "
                "left out"
            )
        elif trace.run is not None and setting.run is not None and trace.run.get("run") != setting.run:
            problems.append(f"{trace.path}: of another run than {traces[0].path}; left out")
        else:
            kept.append(trace)
    if not kept:
        raise InputFileError("no trace is of the plan: " + "; ".join(problems))
    missing = sorted(set(range(world_size)) - {trace.rank for trace in kept})
    if missing:
        text = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        problems.append(
            f"no trace of {len(missing)} of {world_size} ranks ({text}); means are over the others"
        )
    return kept


def measure_ranks(
    traces: Sequence[RankTrace], predicted: PredictedStep, source: ModelSource | None = None
) -> list[MeasuredRank]:
    """Attribute and sum up every rank. `source`: the model, for traces that name modules by class."""
    called: list[tuple[str, str]] = []
    if source is not None and any(names_classes(t) and not names_modules(t) for t in traces):
        called = called_modules(source)
    attributed: list[tuple[RankTrace, Attribution, list[Call], list[DeviceWork], list[str]]] = []
    for trace in traces:
        found, calls, notes = _attributed(trace, predicted, called)
        work, unlaunched = device_work(trace, found, calls)
        if unlaunched:
            notes.append(f"{unlaunched} kernels have no launch in the trace; they belong to no module")
        attributed.append((trace, found, calls, work, notes))
    shortest_s = shortest_transfers([(trace, work) for trace, _, _, work, _ in attributed])
    return [
        MeasuredRank(
            trace=trace,
            found=found,
            activity=activity_of(trace, found, calls, work, shortest_s),
            modules=module_times(found, work),
            kernels_s=_summed(trace, found, calls, work, predicted, lambda item, kind: item.module),
            kinds_s=_summed(trace, found, calls, work, predicted, lambda item, kind: kind),
            notes=(*trace.notes, *notes),
        )
        for trace, found, calls, work, notes in attributed
    ]


def _attributed(
    trace: RankTrace, predicted: PredictedStep, called: Sequence[tuple[str, str]]
) -> tuple[Attribution, list[Call], list[str]]:
    """Modules by path, by class, or by the order of operators, as the trace allows."""
    known = predicted.kind_of
    recomputes = predicted.prediction.plan.recompute != "none"
    if names_modules(trace):
        found = attribute(trace, recomputes=recomputes)
        return found, operator_calls(trace, found, known), []
    if called and names_classes(trace):
        names = class_paths(trace, called)
        found = attribute(trace, names=names, recomputes=recomputes)
        note = f"modules are named by class: {len(names)} of {len(called)} were found by the order of calls"
        return found, operator_calls(trace, found, known), [note]
    found = attribute(trace, recomputes=recomputes)
    calls = operator_calls(trace, found, known)
    assigned, share = align_forward(calls, predicted.forward_of(trace.rank))
    found = attribute(trace, assigned=assigned, recomputes=recomputes)
    note = (
        f"modules are not named: operators were matched with the graph's by their order, {share:.0%} of the "
        "forward's are the same"
    )
    return found, operator_calls(trace, found, known), [note]


def _summed(
    trace: RankTrace,
    found: Attribution,
    calls: Sequence[Call],
    work: Sequence[DeviceWork],
    predicted: PredictedStep,
    key: Callable[[Any, str], str],
) -> dict[tuple[str, str], float]:
    """(key, phase) -> seconds of one step of operators that are neither communication nor optimizer."""
    times: dict[tuple[str, str], float] = defaultdict(float)
    for item in work if trace.on_device else calls:
        kind = _kind(item.name, predicted)
        if item.communication or item.phase == OPTIMIZER or (kind == HOST and not trace.on_device):
            continue
        if isinstance(item, DeviceWork) and is_host_copy(item.event):
            continue
        seconds = item.event.duration_s if isinstance(item, DeviceWork) else item.duration_s
        times[key(item, kind), item.phase] += seconds / len(found.steps)
    return dict(times)


def _kind(name: str, predicted: PredictedStep) -> str:
    """The graph's kind of an operator; in place or not is the same."""
    for candidate in (name, name.rstrip("_")):
        if candidate in predicted.kind_of:
            return predicted.kind_of[candidate]
    return _OTHER


def _mean_where_run(tables: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Mean of each entry over the ranks that have it: a pipeline's ranks run different modules."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for table in tables:
        for key, seconds in table.items():
            if seconds > 0:
                times[key].append(seconds)
    return {key: sum(found) / len(found) for key, found in times.items()}


def _mean(tables: Sequence[Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """Mean of each entry over all ranks."""
    keys = dict.fromkeys(key for table in tables for key in table)
    return {key: sum(table.get(key, 0.0) for table in tables) / len(tables) for key in keys}


def _report(
    ranks: Sequence[MeasuredRank],
    predicted: PredictedStep,
    setting: Setting,
    problems: Sequence[str],
    slowdown: float,
) -> Report:
    prediction, step = predicted.prediction, predicted.step
    step_s = sum(rank.activity.step_s for rank in ranks) / len(ranks)
    parts_s = {p: sum(rank.activity.parts_s[p] for rank in ranks) / len(ranks) for p in PARTS}
    modules = _mean_where_run([rank.kernels_s for rank in ranks])
    kinds = _mean([rank.kinds_s for rank in ranks])
    rows = [_row("step", "step", "step_time_s", step_s, step)]
    for part in PARTS:
        only = Expected(time_s=predicted.parts_s[part], low_s=0.0, high_s=0.0)
        rows.append(_row(part, "part", f"{part}_s", parts_s[part], only, interval=False))
    rows += _rows("kind", kinds, predicted.kinds)
    rows += _rows("module", modules, predicted.modules)
    unprofiled = [float(t.run.get("step_time_s") or 0.0) for t in (rank.trace for rank in ranks) if t.run]
    details = {
        "model": prediction.model,
        "plan": str(setting.plan),
        "hardware": prediction.hardware.name,
        "framework": setting.forecaster.framework.name,
        "machine_slowdown": slowdown,
        "step_time_as_calibrated_s": prediction.step_time_s,
        "steps_by": ranks[0].found.steps_by,
        "unprofiled_step_time_s": max(unprofiled, default=0.0) or None,
        "problems": list(problems),
        "notes": list(dict.fromkeys(f"rank {r.trace.rank}: {note}" for r in ranks for note in r.notes)),
        "verdict": verdict(step_s, step, parts_s, predicted.parts_s, rows),
        "ranks": [_rank_detail(rank) for rank in ranks],
    }
    return Report.of(rows, by=("table", "phase", "kind"), details=details)


def _rows(
    table: str,
    measured: Mapping[tuple[str, str], float],
    predicted: Mapping[tuple[str, str], Expected],
) -> list[ScoredRow]:
    keys = dict.fromkeys((*predicted, *measured))
    return [
        _row(
            f"{name or '(outside modules)'} {phase}",
            table,
            f"{phase}_s",
            measured.get((name, phase), 0.0),
            predicted.get((name, phase)),
            labels={"phase": phase, **({"kind": name} if table == "kind" else {})},
        )
        for name, phase in keys
    ]


def _row(
    name: str,
    table: str,
    metric: str,
    measured_s: float,
    expected: Expected | None,
    *,
    interval: bool = True,
    labels: Mapping[str, str] | None = None,
) -> ScoredRow:
    skipped = None
    if expected is None:
        skipped = "not in the forecast"
    elif measured_s <= 0:
        skipped = "not in the trace" if expected.time_s > 0 else "neither in the trace nor in the forecast"
    return ScoredRow(
        id=f"{table}: {name}" if table != "step" else name,
        source="trace",
        metric=metric,
        measured=measured_s,
        predicted=expected.time_s if expected is not None else None,
        low=expected.low_s if expected is not None and interval else None,
        high=expected.high_s if expected is not None and interval else None,
        skipped=skipped,
        labels={"table": table, **(labels or {})},
    )


def _rank_detail(rank: MeasuredRank) -> dict[str, Any]:
    return {
        "rank": rank.trace.rank,
        "file": rank.trace.path,
        **rank.activity.to_dict(),
        "modules": [{"module": path, **asdict(time)} for path, time in rank.modules.items()],
    }
