"""Exported plans: the targets' own parsers read them, and a torch script runs."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from costmodel.errors import ForeshardError, PlanError, UsageError
from planner.exporting import export

SMALL = ["n_layer=4", "n_embd=64", "n_head=4", "vocab_size=128", "n_positions=32"]


def exported(target: str, plan: str, folder: Path, **others: object) -> dict[str, str]:
    paths = export(
        "gpt2",
        hardware="a100-sxm4-80gb",
        plan=plan,
        target=target,
        out=folder,
        overrides=SMALL,
        **others,  # type: ignore[arg-type]
    )
    return {path.name: path.read_text() for path in paths}


def of_mixtral(target: str, plan: str, folder: Path) -> list[Path]:
    return export(
        "mixtral-8x7b",
        hardware="a100-sxm4-80gb",
        plan=plan,
        target=target,
        out=folder,
        seq_len=64,
        overrides=["num_hidden_layers=2", "hidden_size=128", "intermediate_size=256"],
    )


def test_megatron_arguments(tmp_path: Path) -> None:
    text = exported("megatron", "dp4.tp2.pp2.vpp2.mbs2.gbs64.zero1.sp.full", tmp_path)["megatron.args"]
    words = text.split()
    arguments = {a: b for a, b in zip(words, [*words[1:], ""], strict=True) if a.startswith("--")}
    assert arguments["--tensor-model-parallel-size"] == arguments["--pipeline-model-parallel-size"] == "2"
    assert arguments["--num-virtual-stages-per-pipeline-rank"] == "2"
    assert arguments["--global-batch-size"] == "64"
    assert {"--sequence-parallel", "--use-distributed-optimizer", "--bf16"} <= set(words)
    assert arguments["--recompute-granularity"] == "full"


@pytest.mark.parametrize(
    ("plan", "experts_tp"),
    [
        ("tp2.ep2.gbs1", "1"),
        ("dp2.tp4.ep4.gbs2", "2"),
        ("dp4.tp2.ep4.gbs4", ""),
        ("dp4.tp2.ep4.etp1.gbs4", "1"),
    ],
)
def test_megatron_splits_experts_as_the_plan_has_ranks(plan: str, experts_tp: str, tmp_path: Path) -> None:
    paths = of_mixtral("megatron", plan, tmp_path)
    lines = dict(line.split(maxsplit=1) for line in paths[0].read_text().splitlines() if " " in line)
    assert lines.get("--expert-tensor-parallel-size", "") == experts_tp


@pytest.mark.parametrize(
    ("plan", "experts_tp"),
    [("dp4.tp2.ep4.gbs4", 2), ("dp4.tp2.ep4.etp1.gbs4", 1), ("tp2.ep2.gbs1", 1), ("dp4.tp2.gbs4", None)],
)
def test_torchtitan_splits_experts_as_the_plan_does(
    plan: str, experts_tp: int | None, tmp_path: Path
) -> None:
    (toml,) = (file for file in of_mixtral("torchtitan", plan, tmp_path) if file.suffix == ".toml")
    parallelism = tomllib.loads(toml.read_text())["parallelism"]
    assert parallelism.get("expert_tensor_parallel_degree") == experts_tp


def test_torchtitan_has_no_experts_over_some_of_the_tensor_parallel_ranks(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="experts over 2 ranks"):
        of_mixtral("torchtitan", "dp2.tp4.ep4.gbs2", tmp_path)


@pytest.mark.parametrize(
    "plan", ["dp4.tp2.zero3.full.mbs2.gbs32", "pp2.vpp2.mbs2.gbs32", "dp2.zero3.hsdp1.mbs1"]
)
def test_torchtitan_sections(plan: str, tmp_path: Path) -> None:
    files = exported("torchtitan", plan, tmp_path)
    sections = tomllib.loads(files["torchtitan.toml"])
    lines = [line.split() for line in files["torchtitan.args"].splitlines()]
    assert {name for name, _ in lines} == {f"--{s}.{k}" for s, keys in sections.items() for k in keys}
    degrees = sections["parallelism"]
    ranks = 1
    for name, value in degrees.items():
        ranks *= value if name.endswith("_degree") and not name.startswith("expert") else 1
    from costmodel.plan import Plan

    assert ranks == Plan.parse(plan).world_size
    spec = importlib.util.find_spec("torchtitan")
    if spec is None or spec.submodule_search_locations is None:
        return
    source = Path(next(iter(spec.submodule_search_locations))) / "config" / "configs.py"
    known = {
        node.name: {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}  # type: ignore[attr-defined]
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert set(degrees) <= known["ParallelismConfig"]
    assert set(sections["training"]) <= known["TrainingConfig"]


@pytest.mark.parametrize(
    ("plan", "stage"),
    [
        ("dp4.zero2.mbs2.gbs32", 2),
        ("dp4.zero-offload.mbs2.gbs8", 2),
        ("dp4.zero3.zero-infinity-nvme.mbs1", 3),
    ],
)
def test_deepspeed_json(plan: str, stage: int, tmp_path: Path) -> None:
    config = json.loads(exported("deepspeed", plan, tmp_path)["deepspeed.json"])
    assert config["zero_optimization"]["stage"] == stage
    micro, steps = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == 4 * micro * steps
    deepspeed = pytest.importorskip("deepspeed.runtime.config", reason="deepspeed's parser is not installed")
    # outside a process group its parser takes the world for one replica
    read = deepspeed.DeepSpeedConfig({**config, "train_batch_size": micro * steps})
    assert read.gradient_accumulation_steps == steps
    assert read.zero_config.stage == stage


def test_deepspeed_places_experts_by_autoep(tmp_path: Path) -> None:
    (path,) = of_mixtral("deepspeed", "dp4.ep4.zero1.gbs4", tmp_path)
    assert json.loads(path.read_text())["expert_parallel"] == {"enabled": True, "autoep_size": 4}


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        ("dp4.ep4.zero3.gbs4", "ZeRO-3 beside its expert axis"),
        ("dp4.tp2.ep4.gbs4", "experts over 2 ranks"),
        ("dp4.ep4.pp2.gbs4", "expert axis under a pipeline"),
        ("dp2.cp2.gbs2", "context axis"),
    ],
)
def test_deepspeed_refuses_what_it_would_have_to_leave_out(plan: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=what):
        of_mixtral("deepspeed", plan, tmp_path)


@pytest.mark.parametrize("plan", ["dp4.mbs2", "dp4.zero3.full.mbs2", "dp4.tp2.zero3.hsdp2.mbs1", "dp1.mbs1"])
def test_accelerate_yaml(plan: str, tmp_path: Path) -> None:
    arguments = pytest.importorskip("accelerate.commands.config.config_args")
    exported("accelerate", plan, tmp_path)
    from costmodel.plan import Plan

    read = arguments.load_config_from_file(str(tmp_path / "accelerate.yaml"))
    parsed = Plan.parse(plan)
    assert read.num_processes == parsed.world_size
    assert read.mixed_precision == "bf16"
    if parsed.zero_stage == 3:
        from accelerate.utils import FullyShardedDataParallelPlugin

        assert read.distributed_type.value == "FSDP"
        assert read.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "GPT2Block"
        known = set(FullyShardedDataParallelPlugin.__dataclass_fields__)
        renamed = {
            "version": "fsdp_version",
            "transformer_layer_cls_to_wrap": "transformer_cls_names_to_wrap",
        }
        renamed["offload_params"] = "cpu_offload"
        names = {key.removeprefix("fsdp_") for key in read.fsdp_config}
        assert {renamed.get(name, name) for name in names} <= known


def test_colossalai_arguments(tmp_path: Path) -> None:
    arguments = json.loads(exported("colossalai", "dp2.tp2.pp2.mbs2.gbs16", tmp_path)["colossalai.json"])
    assert arguments["tp_size"] == arguments["pp_size"] == 2
    assert arguments["num_microbatches"] == 4
    assert arguments["pp_style"] == "1f1b"


@pytest.mark.parametrize(
    ("target", "plan", "what"),
    [
        ("megatron", "pp4.chimera.mbs1.gbs8", "schedule 'chimera'"),
        ("megatron", "dp4.ps", "word for ps"),
        ("torchtitan", "dp2.zero1", "ZeRO-1"),
        ("deepspeed", "dp2.cotrain", "offload like 'cotrain'"),
        ("accelerate", "pp2.mbs1.gbs4", "pipeline"),
        ("colossalai", "dp2.zero3", "ZeRO-3"),
        ("colossalai", "dp2.full", "recomputation in its arguments"),
        ("megatron", "dp2.full4", "recomputation like 'full4'"),
        ("accelerate", "dp2.zero3.selective", "recomputation like 'selective'"),
    ],
)
def test_what_a_target_cannot_express_is_named(target: str, plan: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=what):
        exported(target, plan, tmp_path)


def test_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are accelerate, colossalai"):
        exported("horovod", "dp2", tmp_path)


@pytest.mark.distributed
@pytest.mark.parametrize("plan", ["pp2.mbs1.gbs4", "tp2.mbs2", "dp2.zero3.mbs2"])
@pytest.mark.slow
def test_torch_script_runs(plan: str, tmp_path: Path) -> None:
    exported("torch", plan, tmp_path, seq_len=16)
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "train.py")],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    assert found["step_time_s"] > 0
    assert 0 < found["predicted_low_s"] < found["predicted_s"] < found["predicted_high_s"]
    from costmodel.plan import Plan

    assert Plan.parse(found["plan"]) == Plan.parse(plan)


def test_a_torch_script_of_a_model_beyond_memory_is_made_without_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._subclasses.fake_tensor import FakeTensor

    from costmodel.sharding import module_plan

    given = []
    found = module_plan.executable_styles

    def styles(module, *others, **named):  # type: ignore[no-untyped-def]
        given.extend(module.parameters())
        return found(module, *others, **named)

    monkeypatch.setattr(module_plan, "executable_styles", styles)
    assert exported("torch", "tp2", tmp_path)
    assert given
    assert all(p.is_meta or isinstance(p, FakeTensor) for p in given)


def test_a_plan_without_a_real_run_is_refused_before_it_is_forecast(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="sequence parallelism has no real run here; use a plan without sp"):
        exported("torch", "tp2.sp", tmp_path)


def test_files_that_are_there_are_overwritten_only_when_told_so(tmp_path: Path) -> None:
    exported("megatron", "dp2.mbs2", tmp_path)
    held = tmp_path / "megatron.args"
    held.write_text("mine")
    with pytest.raises(ForeshardError, match=r"megatron\.args.* --force "):
        exported("megatron", "dp2.mbs2", tmp_path)
    assert held.read_text() == "mine"
    exported("megatron", "dp2.mbs2", tmp_path, force=True)
    assert "--micro-batch-size 2" in held.read_text()


def test_of_several_files_none_is_written_where_one_is_there(tmp_path: Path) -> None:
    (tmp_path / "torchtitan.args").write_text("mine")
    with pytest.raises(ForeshardError, match="there already"):
        exported("torchtitan", "dp2.mbs2", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["torchtitan.args"]
