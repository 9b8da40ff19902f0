"""Traces of real runs: what is read of them against torch's own profiler, and the forecast beside them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from costmodel.models import resolve
from costmodel.plan import Plan
from planner.validation.harness import run_specs
from planner.validation.kineto.activity import PARTS
from planner.validation.kineto.attribution import attribute
from planner.validation.kineto.module_names import called_modules, class_paths
from planner.validation.kineto.operators import module_times
from planner.validation.kineto.reader import CLASS_RANGE, read_trace, read_traces
from planner.validation.kineto.recording import MODULE_RANGE, named_ranges, trace_folder
from planner.validation.kineto.score import validate_trace
from planner.validation.run_spec import ModelSpec, RunSettings, RunSpec
from tests.planner.validation.kineto.ddp_rank import N_STEPS

ROOT = Path(__file__).parents[4]
SAMPLES = "tests.planner.validation.sample_models"
GPU = "a100-sxm4-80gb"


@pytest.fixture(scope="module")
def ddp_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the traces of a 2-rank gloo DDP run and the profiler's own totals of them."""
    folder = tmp_path_factory.mktemp("ddp")
    command = [sys.executable, "-m", "tests.planner.validation.kineto.ddp_rank", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors[-3000:]
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("rank", [0, 1])
def test_module_times_are_the_profilers_own(ddp_step: Path, rank: int) -> None:
    trace = read_trace(ddp_step / f"rank-{rank}.json.gz")
    assert (trace.rank, trace.world_size) == (rank, 2)
    assert any(e.name == "gloo:all_reduce" for e in trace.in_flight)
    totals = json.loads((ddp_step / f"totals-{rank}.txt").read_text())
    found = attribute(trace)
    assert len(found.steps) == N_STEPS
    times = module_times(found, [])
    assert {"", "0", "1", "1.norm", "1.up", "1.down", "2", "2.down", "3"} <= set(totals["forward"])
    for path, seconds in totals["forward"].items():
        if path:  # the whole model's time holds the loss, which is outside its range
            assert times[path].forward_s * N_STEPS == pytest.approx(seconds, rel=0.02), path
    assert {"0", "1", "1.norm", "1.up", "1.down", "2", "2.down", "3"} <= set(totals["backward"])
    for path, seconds in totals["backward"].items():
        assert times[path].backward_own_s * N_STEPS == pytest.approx(seconds, rel=0.02), path
    assert times[""].backward_s * N_STEPS == pytest.approx(totals["all_backward"], rel=0.02)
    inside = sum(times[path].backward_own_s for path in times if path.startswith("1"))
    assert times["1"].backward_s == pytest.approx(inside)


def recorded(tmp_path: Path, *specs: RunSpec) -> Path:
    """Record the specs' traces by the harness and return their folder."""
    settings = RunSettings(
        rounds=1, steps=1, min_round_s=0.0, profile=False, memory=False, trace_dir=str(tmp_path / "traces")
    )
    for result in run_specs(specs, settings, directory=tmp_path / "job"):
        assert result.failed is None, result.failed
    return tmp_path / "traces"


def spec(name: str, plan: Plan) -> RunSpec:
    return RunSpec(model=ModelSpec(model=f"{SAMPLES}:{name}", name=name), plan=plan)


def without_names(folder: Path, out: Path) -> Path:
    """The traces as someone else would have recorded them: no module ranges, no record of the run."""
    out.mkdir()
    for path in folder.iterdir():
        raw = json.loads(gzip.decompress(path.read_bytes()))
        del raw["foreshard"]
        raw["traceEvents"] = [e for e in raw["traceEvents"] if not e["name"].startswith("foreshard::")]
        (out / path.name.removesuffix(".gz")).write_text(json.dumps(raw))
    return out


@pytest.mark.distributed
@pytest.mark.slow
def test_recorded_runs_say_what_they_are_of(tmp_path: Path) -> None:
    data = spec("mixed", Plan(dp=2, micro_batch_size=2))
    pipeline = spec("mixed", Plan(pp=2, micro_batch_size=2, global_batch_size=4, schedule="gpipe"))
    root = recorded(tmp_path, data, pipeline)
    for run in (data, pipeline):
        folder = trace_folder(root, run.id)
        report = validate_trace([folder], hardware=GPU)
        json.loads(report.to_json())
        details = report.details
        assert details["plan"] == str(run.plan)
        assert details["problems"] == []
        assert [rank["rank"] for rank in details["ranks"]] == [0, 1]
        for rank in details["ranks"]:
            assert rank["n_steps"] == 3
            assert sum(rank["parts_s"].values()) == pytest.approx(rank["step_s"])
            assert all(rank["parts_s"][part] >= -1e-9 for part in PARTS)
            assert rank["parts_s"]["communication"] > 0
            assert rank["collectives"]
            # every step has the same ones: the unmarked step before them is not counted
            assert all(c["n"] % 3 == 0 for c in rank["collectives"] if run is pipeline)
            assert sum(c["n"] for c in rank["collectives"]) % 3 == 0
        rows = {row.id: row for row in report.rows}
        assert set(rows) >= {"step", "part: kernel", "kind: gemm forward", "module: blocks.1.qkv forward"}
        assert rows["step"].measured == pytest.approx(
            sum(rank["step_s"] for rank in details["ranks"]) / 2, rel=1e-6
        )
        for path in ("blocks.0.qkv", "blocks.2.out", "head"):
            for phase in ("forward", "backward"):
                assert rows[f"module: {path} {phase}"].skipped is None
        verdict = details["verdict"]
        difference = sum(part["difference_s"] for part in verdict["parts"])
        assert difference == pytest.approx(rows["step"].predicted - rows["step"].measured)  # type: ignore[operator]
        assert verdict["largest"] == max(verdict["parts"], key=lambda p: abs(p["difference_s"]))["name"]
    one = trace_folder(root, data.id) / "rank-1.json.gz"
    alone = validate_trace([one], hardware=GPU)
    assert any("no trace of 1 of 2 ranks (0)" in problem for problem in alone.details["problems"])

    named = validate_trace([trace_folder(root, data.id)], hardware=GPU)
    nameless = validate_trace(
        [without_names(trace_folder(root, data.id), tmp_path / "nameless")],
        hardware=GPU,
        model=data.model.model,
        plan="dp2.mbs2",
    )
    assert any("matched with the graph's by their order" in note for note in nameless.details["notes"])
    found = {row.id: row for row in nameless.rows}
    layers = [r for r in named.rows if r.id.startswith(("module: blocks.", "module: head")) and not r.skipped]
    assert len(layers) >= 14
    for row in layers:
        assert found[row.id].measured == pytest.approx(row.measured, rel=0.02), row.id


def test_classes_are_matched_with_paths_by_the_order_of_calls(tmp_path: Path) -> None:
    source = resolve(f"{SAMPLES}:mixed")
    built = source.build()
    with (
        named_ranges([built.module]),
        profile(activities=[ProfilerActivity.CPU], with_stack=True) as profiler,
        record_function("ProfilerStep#0"),
    ):
        built.module(*built.args, **built.kwargs).backward()
    path = tmp_path / "rank-0.json"
    profiler.export_chrome_trace(str(path))
    trace = read_trace(path)
    called = called_modules(source)
    assert [p for p, _ in called][:4] == ["", "blocks.0", "blocks.0.qkv", "blocks.0.out"]
    names = class_paths(trace, called)
    assert sorted(names.values()) == sorted(p for p, _ in called)
    raw: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    ours = {e["name"][len(MODULE_RANGE) :]: e for e in raw if e["name"].startswith(MODULE_RANGE.rstrip())}
    theirs = {e["name"]: e for e in raw if e["name"].startswith(CLASS_RANGE)}
    for name, module in names.items():  # the profiler's range lies around ours of the same call
        begin, end = theirs[name]["ts"], theirs[name]["ts"] + theirs[name]["dur"]
        assert begin <= ours[module]["ts"] <= ours[module]["ts"] + ours[module]["dur"] <= end, name


def test_ranges_are_gone_afterwards() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    with named_ranges([model]):
        assert all(len(m._forward_pre_hooks) == 1 for m in model.modules())
        with pytest.raises(RuntimeError):
            model(torch.randn(2, 3))
        model(torch.randn(2, 4))
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


def test_folders_are_read_as_files(tmp_path: Path) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(4).sum()
    profiler.export_chrome_trace(str(tmp_path / "rank-3.json.gz"))
    traces, problems = read_traces([tmp_path])
    assert problems == []
    assert [t.rank for t in traces] == [3]
    assert any(e.name == "aten::sum" for e in traces[0].host)
