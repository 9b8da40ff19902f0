"""Real runs of plans beside their predictions.

`run_specs` starts the processes (one set per model and world size, so that no model finds what another left
in heap and threads; single-device plans ride along with a set, on its rank 0 while the others wait) and
returns what was measured. `run_planned` and `score_planned` do so for specs with their forecasts.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from calibrate.hosts import Hosts
from calibrate.runner import ALONE, TOGETHER
from costmodel.errors import ForeshardError, InputFileError, UsageError, WorkerError
from costmodel.files import write_whole
from planner.validation.launch import culprit, run_job
from planner.validation.reliability import PLAN
from planner.validation.run_spec import Job, RunResult, RunSettings, RunSpec
from planner.validation.scoring import Report, ScoredRow, shares_of, summarise

__all__ = [
    "Forecasted",
    "PlannedRun",
    "bubble_fraction",
    "load_results",
    "machine_slowdowns",
    "run_planned",
    "run_specs",
    "save_results",
    "score_planned",
    "score_runs",
    "strategy_of",
]

_FORMAT = 1  # 1: {"format", "runs": [RunResult]}


class Forecasted(Protocol):
    """What scoring needs of a prediction (costmodel.predict.Prediction has it)."""

    @property
    def step_time_s(self) -> float: ...
    @property
    def step_time_low_s(self) -> float: ...
    @property
    def step_time_high_s(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """What to run, and its forecast or why there is none."""

    spec: RunSpec
    forecast: Forecasted | ForeshardError
    no_skill_s: float | None = None
    """Seconds by the forecast without skill (planner.validation.baseline)."""


def run_specs(
    specs: Sequence[RunSpec],
    settings: RunSettings | None = None,
    *,
    directory: Path | None = None,
    hosts: Hosts | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[RunResult]:
    """Run every spec for real and return the results in the order of `specs`.

    Plans of one model and world size take turns, round by round. Job, logs and one result file per plan
    are kept in `directory`, or nowhere. `hosts`: where the ranks run, if not
    here. A plan that cannot be built, or one of whose ranks dies or hangs, has `failed` set, and the others
    go on without it; no process is left behind.
    """
    settings = settings or RunSettings()
    if not specs:
        raise UsageError("no plans to run; give at least one")
    results: dict[int, RunResult] = {}
    with ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foreshard-")))
        for position, (world_size, numbers) in enumerate(_sets(specs)):
            left, start = numbers, 0
            while left:
                name = f"set{position}-world{world_size}" + (f"-again{start}" if start else "")
                job = Job(
                    specs=tuple(specs[i] for i in left),
                    world_size=world_size,
                    directory=str((folder / name).resolve()),
                    **{name: getattr(settings, name) for name in RunSettings.__dataclass_fields__},
                )
                found = _results(job, hosts, progress)
                results |= {left[place]: result for place, result in found.items()}
                left, start = [number for number in left if number not in results], start + 1
    return [results[i] for i in range(len(specs))]


def _results(job: Job, hosts: Hosts | None, progress: Callable[[str], None] | None) -> dict[int, RunResult]:
    """Place among the job's runs -> result: of all of them, or where a rank died or hung of those that were
    done and the one that did it, which `failed`; of all that are left where none can be told."""
    folder = Path(job.directory)
    _clear(folder)
    files = {place: folder / f"result.{place}.json" for place in range(len(job.specs))}
    try:
        run_job(job, hosts=hosts, progress=progress)
    except WorkerError as error:
        done = {place: _read(file) for place, file in files.items() if file.exists()}
        guilty = culprit(folder)
        left = [place for place in files if place not in done]
        for place in [guilty] if guilty in left else left:
            assert place is not None
            if progress is not None:
                progress(f"{job.specs[place].id} failed; the other plans go on without it")
            done[place] = RunResult(spec=job.specs[place], device=job.device, failed=str(error))
        return done
    return {place: _read(file) for place, file in files.items()}


def run_planned(
    planned: Sequence[PlannedRun],
    settings: RunSettings | None = None,
    *,
    hosts: Hosts | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[RunResult]:
    """Run those that have a forecast; the results of the others say why they have none (`failed`).

    Raises the first reason where no run has a forecast.
    """
    settings = settings or RunSettings()
    reasons = {i: run.forecast for i, run in enumerate(planned) if isinstance(run.forecast, ForeshardError)}
    if planned and len(reasons) == len(planned):
        raise reasons[0]
    results = {
        i: RunResult(spec=planned[i].spec, device=settings.device, failed=f"not forecast: {reason}")
        for i, reason in reasons.items()
    }
    if progress is not None:
        for result in results.values():
            progress(f"{result.spec.id} is {result.failed}; the other plans go on without it")
    left = [i for i in range(len(planned)) if i not in reasons]
    run = run_specs([planned[i].spec for i in left], settings, hosts=hosts, progress=progress)
    results |= dict(zip(left, run, strict=True))
    return [results[i] for i in range(len(planned))]


def score_planned(
    planned: Sequence[PlannedRun],
    results: Sequence[RunResult],
    *,
    yardstick_s: Mapping[str, float] | None = None,
) -> Report:
    """`score_runs` of planned runs: those without a forecast are rows that say why."""
    return score_runs(
        results,
        [str(run.forecast) if isinstance(run.forecast, ForeshardError) else run.forecast for run in planned],
        yardstick_s=yardstick_s,
        no_skill_s=[run.no_skill_s for run in planned],
    )


def _sets(specs: Sequence[RunSpec]) -> list[tuple[int, list[int]]]:
    """(world size, positions of its specs), model by model in order of first mention; a model's single-device
    plans go to its smallest larger world."""
    models = list(dict.fromkeys(repr(spec.model) for spec in specs))
    worlds: dict[tuple[int, int], list[int]] = {}
    for i, spec in enumerate(specs):
        sizes = sorted({s.plan.world_size for s in specs if s.model == spec.model})
        home = sizes[1] if spec.plan.world_size == 1 and len(sizes) > 1 else spec.plan.world_size
        worlds.setdefault((models.index(repr(spec.model)), home), []).append(i)
    return [(home, numbers) for (_, home), numbers in sorted(worlds.items())]


def _clear(folder: Path) -> None:
    """Remove what an earlier job left that this one reads."""
    for pattern in ("heartbeat.*", "result.*.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def _read(path: Path) -> RunResult:
    try:
        return RunResult.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputFileError(f"result file {path}: {error}") from error


def save_results(results: Sequence[RunResult], path: Path) -> None:
    """Keep measured runs, with their environment, as JSON."""
    data = {"format": _FORMAT, "runs": [result.to_dict() for result in results]}
    write_whole(path, json.dumps(data, indent=1) + "\n")


def load_results(*paths: Path) -> list[RunResult]:
    """Runs of one or several files (of one or several machines), in order: what `validate run` keeps with
    --out, or prints with --json (the same with more beside it).

    Raises InputFileError where a file is not one, or was written by a newer version.
    """
    results: list[RunResult] = []
    known = RunResult.__dataclass_fields__
    for path in paths:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.get("format", _FORMAT) > _FORMAT:
                raise InputFileError(
                    f"{path}: format {data['format']} is newer than this version reads ({_FORMAT}); "
                    "update foreshard"
                )
            results += [
                RunResult.from_dict({k: v for k, v in run.items() if k in known}) for run in data["runs"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputFileError(
                f"{path}: {error!r}; give a file that `foreshard validate run` wrote with --out or --json"
            ) from error
    return results


def strategy_of(spec: RunSpec) -> str:
    """Short name of what the plan does, for summaries: single, ddp, fsdp, tp, pp-gpipe, dp x tp, ..."""
    plan = spec.plan
    names = []
    if plan.dp > 1:
        hybrid = 0 < plan.dp_shard < plan.dp
        names.append({0: "ddp", 1: "zero1", 2: "zero2"}.get(plan.zero_stage, "hsdp" if hybrid else "fsdp"))
    if plan.tp > 1:
        names.append("tp")
    if plan.pp > 1:
        names.append(f"pp-{plan.schedule}" + (f"-v{plan.vpp}" if plan.vpp > 1 else ""))
    return " x ".join(names) or "single"


def machine_slowdowns(results: Sequence[RunResult], yardstick_s: Mapping[str, float]) -> list[float]:
    """How much longer the yardstick took beside each run than when the profile was measured; 1 where either
    was not measured. Runs of one model on as many ranks took turns, so they share one figure."""
    sets: dict[tuple[str, int], list[float]] = defaultdict(list)
    for result in results:
        if result.device != "cpu":
            continue  # a GPU's kernels do not follow the speed of its host
        key = (result.spec.model.label, result.spec.plan.world_size)
        sets[key] += [rank.yardstick_s for rank in result.ranks if rank.yardstick_s]
    found = []
    for result in results:
        now = sets[result.spec.model.label, result.spec.plan.world_size]
        then = yardstick_s.get(TOGETHER if result.spec.plan.world_size > 1 else ALONE)
        found.append(sum(now) / len(now) / then if now and then else 1.0)
    return found


def score_runs(
    results: Sequence[RunResult],
    predictions: Sequence[Forecasted | str],
    *,
    loss_tolerance: float = 1e-3,
    yardstick_s: Mapping[str, float] | None = None,
    no_skill_s: Sequence[float | None] | None = None,
) -> Report:
    """Compare runs with their predictions (a string: the reason why there is none).

    `no_skill_s`: what the forecast without skill says of each (planner.validation.baseline).

    Groups are the plans of one model at one world-size limit and global batch. A run whose losses differ
    from the single-device ones by more than `loss_tolerance` is not scored: it computed something else.
    With the profile's `yardstick_s`, each prediction is restated for the machine's speed beside its run
    (`machine_slowdowns`); the figures without that are in the details as `as_calibrated`.
    """
    slowdowns = machine_slowdowns(results, yardstick_s or {})
    rows = _rows(results, predictions, slowdowns, loss_tolerance)
    plain = _rows(results, predictions, [1.0] * len(results), loss_tolerance)
    runs = [
        {
            **_run_detail(result),
            "machine_slowdown": slowdown,
            "bubble_fraction": bubble_fraction(result),
            "predicted_bubble_fraction": getattr(prediction, "bubble_fraction", None),
        }
        for result, slowdown, prediction in zip(results, slowdowns, predictions, strict=True)
    ]
    if no_skill_s is not None:
        rows = [replace(row, baseline_value=s) for row, s in zip(rows, no_skill_s, strict=True)]
    return Report.of(
        rows,
        by=("model", "strategy"),
        details={"runs": runs, "as_calibrated": asdict(summarise(plain, ("model",))[0])},
    )


def bubble_fraction(result: RunResult) -> float | None:
    """Share of a pipeline's step, mean over its ranks, in which they did not compute; None elsewhere."""
    busy = [rank.busy_s for rank in result.ranks if rank.busy_s is not None]
    if not busy or not result.step_time_s:
        return None
    return 1.0 - sum(busy) / len(busy) / result.step_time_s


def _rows(
    results: Sequence[RunResult],
    predictions: Sequence[Forecasted | str],
    slowdowns: Sequence[float],
    loss_tolerance: float,
) -> list[ScoredRow]:
    rows = []
    pairs = zip(results, predictions, slowdowns, strict=True)
    for number, (result, prediction, slowdown) in enumerate(pairs, start=1):
        spec = result.spec
        skipped = result.failed
        if skipped is None and isinstance(prediction, str):
            skipped = prediction
        if skipped is None and result.loss_error is not None and result.loss_error > loss_tolerance:
            skipped = (
                f"losses {result.losses} differ from single-device {result.reference_losses} by "
                f"{result.loss_error:.2g} > {loss_tolerance:g}"
            )
        known = None if isinstance(prediction, str) else prediction
        rows.append(
            ScoredRow(
                id=spec.id if len({r.spec.id for r in results}) == len(results) else f"{spec.id}#{number}",
                source="run",
                group=f"{spec.model.label}/gbs{spec.plan.global_batch_size}",
                metric="step_time_s",
                measured=result.step_time_s,
                predicted=known.step_time_s * slowdown if known and not skipped else None,
                low=known.step_time_low_s * slowdown if known and not skipped else None,
                high=known.step_time_high_s * slowdown if known and not skipped else None,
                skipped=skipped,
                labels={
                    "model": spec.model.label,
                    "strategy": strategy_of(spec),
                    "n_gpus": str(spec.plan.world_size),
                    PLAN: str(spec.plan),
                },
                breakdown=shares_of(getattr(known, "breakdown_s", {})),
            )
        )
    return rows


def _run_detail(result: RunResult) -> dict[str, Any]:
    """A run as `validate run --json` gives it: environment, ranks, repeats and spread, and the checks."""
    data = result.to_dict()
    data["id"] = result.spec.id
    data["plan"] = str(result.spec.plan)
    data["model"] = result.spec.model.label
    data["n_ranks"] = result.spec.plan.world_size
    data["repeats"] = sum(len(times) for times in result.step_times_s)
    return data
