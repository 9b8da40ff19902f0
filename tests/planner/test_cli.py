"""The command line: bad input ends with a message and an exit code, never a traceback; output is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from planner.cli import main

PROFILE = "a100-sxm4-80gb"
SERVED = ("--rate", "1", "--prompt", "8", "--output", "8")
TINY = (
    "--set",
    "n_layer=2",
    "--set",
    "n_embd=64",
    "--set",
    "n_head=4",
    "--set",
    "vocab_size=128",
    "--seq",
    "16",
)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    out, err = capsys.readouterr()
    code = stop.value.code
    assert "Traceback" not in err
    return (0 if code is None else int(code)), out, err


def test_help_does_not_import_torch() -> None:
    code = "import sys; from planner.cli import app; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_predict_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "predict", "gpt2", *TINY, "-H", PROFILE, "-p", "dp2.tp2.pp2.mbs1.gbs8", "--json"
    )
    data = json.loads(out)
    assert code == 0
    assert sum(data["breakdown_s"].values()) == pytest.approx(data["step_time_s"], rel=1e-3)
    assert data["step_time_low_s"] < data["step_time_s"] < data["step_time_high_s"]
    assert len(data["peak_memory_bytes"]) == 2


@pytest.mark.parametrize(
    "plan", ["dp1", "dp4", "dp4.zero1", "dp4.zero3", "tp2", "pp2.gbs4.gpipe", "pp2.gbs4", "dp2.pp2.gbs8"]
)
def test_every_breakdown_adds_up(capsys: pytest.CaptureFixture[str], plan: str) -> None:
    code, out, _ = run(capsys, "predict", "gpt2", *TINY, "-H", PROFILE, "-p", plan, "--json")
    data = json.loads(out)
    assert code == 0
    assert sum(data["breakdown_s"].values()) == pytest.approx(data["step_time_s"], rel=1e-3)


def test_plan_ranks_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "gpt2", *TINY, "-H", PROFILE, "-n", "4", "-B", "8", "--json")
    data = json.loads(out)
    assert code == 0
    times = [p["step_time_s"] for p in data["plans"]]
    assert times == sorted(times)
    assert data["n_considered"] == data["n_feasible"] + sum(data["n_excluded"].values())
    assert data["n_feasible"] == data["n_skipped"] + len(times)
    assert all(p["why"] for p in data["plans"][1:])
    assert data["pareto"]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("predict", "gpt9", "-H", PROFILE), 2, "unknown model 'gpt9'"),
        (("predict", "gpt2", "-H", "no-such-gpu"), 2, "no-such-gpu"),
        (("predict", "gpt2", "-H", PROFILE, "-p", "dp2.tp2", "-n", "3"), 2, "!= world_size(3)"),
        (("predict", "gpt2", *TINY, "-H", PROFILE, "-p", "tp7"), 2, "tp(7)"),
        (("predict", "gpt2", *TINY, "-H", PROFILE, "-p", "pp9.gbs9"), 2, "pp * vpp = 9"),
        (("predict", "gpt2", "-H", PROFILE, "-p", "dp0"), 2, "must be at least 1"),
        (("predict", "gpt2", "-H", PROFILE, "-p", "mbs-4"), 2, "must be at least 1"),
        (("predict", "gpt2", "-H", PROFILE, "-p", "dp2.gbs3"), 2, "not a multiple"),
        (("predict", "gpt2", "-H", PROFILE, "--framework", "nope"), 2, "unknown framework"),
        (("predict", "gpt2", *TINY, "-H", PROFILE, "--optimizer", "nope"), 2, "unknown optimizer"),
        (("trace", "gpt2", "--set", "n_layer"), 2, "must be name=value"),
        (("trace", "nowhere/config.json"), 2, "does not exist"),
        (("trace", "no_such_module:thing"), 2, "no_such_module"),
        (("calibrate", "--budget", "-3s"), 2, "must be a time above zero"),
        (("calibrate", "--for", "plan.json", "--hosts", "hosts.json"), 2, "exclude each other"),
        (("size", "gpt2", "-H", PROFILE, *SERVED, "--deadline", "3d"), 2, "are of training"),
        (("size", "gpt2", "-H", PROFILE, "-B", "8", "--tokens", "1e9", "--ttft", "1"), 2, "are of serving"),
        (
            ("validate", "run", "--executor", "onnxruntime", "--out", "runs.json"),
            2,
            "are of runs under torch",
        ),
        (("whatif", "gpt2", "-H", PROFILE, "-n", "8,zero", "-B", "8"), 2, "not a positive whole number"),
        (("hardware", "import", "--operators", "nothing.csv"), 1, "no such file"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run(capsys, *args)
    assert found == code
    assert message in err


@pytest.mark.parametrize("args", [("trace", "gpt2", "--micro-batch", "0"), ("trace", "gpt2", "--seq", "-1")])
def test_sizes_must_be_positive(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    assert run(capsys, *args)[0] == 2


def test_a_profile_shows_its_links_and_nothing_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "hardware", "show", "h100")
    assert code == 0
    assert "nvlink4" in out
    assert "450 GB/s" in out
    assert "e+03 GB/s" not in out
    assert "host cost" not in out, "a GPU's host costs come with the framework"


def test_callable_that_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_that_raises.py").write_text("def build():\n    raise RuntimeError('out of ideas')\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "trace", "mine_that_raises:build")
    assert code == 2
    assert "RuntimeError: out of ideas (line 2 of mine_that_raises.py)" in err


def test_callable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_that_works.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh()), (torch.randn(4, 8),)\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "trace", "mine_that_works:build", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["parameters"] == 8 * 16 + 16
    assert data["flop_forward"] == 2 * 4 * 8 * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "profile"), ('{"format_version": 999}', "999"), ('{"format_version": 1, "na', "profile")],
)
def test_broken_profiles(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    code, _, err = run(capsys, "predict", "gpt2", "-H", str(path))
    assert code == 1
    assert message in err


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", "gpt3-175b", "-H", "t4", "-n", "1", "-B", "1")
    assert code == 3
    assert "nothing fits" in err
    assert "devices" in err


def test_systems_lists_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "systems", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["number"] for row in rows] == list(range(1, 27))
    assert all(row.keys() >= {"number", "name", "how", "source", "check"} for row in rows)


def test_lines_an_import_leaves_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "nccl.log"
    ranks = "".join(
        f"#  Rank {i} Group 0 Pid 1 on host device {i} [0x00] NVIDIA A100-SXM4-80GB\n" for i in range(4)
    )
    lines = [f"{2**p} {2**p // 4} float sum -1 {20.0 + 2.0**p / 2e5:.2f} 1.0 1.5 0" for p in range(10, 30, 2)]
    lines.insert(3, "65536 16384 float sum -1 soon 1.0 1.5 0")
    log.write_text("# nThread 1 nGpus 4\nall_reduce_perf -b 1K -e 1G -f 4 -g 4\n" + ranks + "\n".join(lines))
    command = ("hardware", "import", "--collectives", str(log), "--out")
    code, _, err = run(capsys, *command, str(tmp_path / "a"))
    assert code == 0
    where = f"{log}:{6 + 4}"
    assert f"left out: {where}: " in err.replace("\n", "")
    code, out, _ = run(capsys, *command, str(tmp_path / "b"), "--json")
    assert code == 0
    (left_out,) = json.loads(out)["left_out"]
    assert left_out.startswith(where)


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "folder.html"
    taken.mkdir()
    with pytest.raises(SystemExit) as error:
        main(["predict", "mlp-mnist", "--hardware", "h100", "--html", str(taken)])
    assert error.value.code == 1
    assert f"foreshard: {taken} cannot be written: Is a directory" in capsys.readouterr().err


@pytest.mark.parametrize("compression", ["nan", "inf", "0.5"])
def test_compression_is_a_finite_factor(capsys: pytest.CaptureFixture[str], compression: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["predict", "mlp-mnist", "--hardware", "h100", "--compression", compression])
    assert error.value.code == 2
    assert "must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ("predict", "-H", PROFILE),
        ("infer", "-H", PROFILE),
        ("plan", "-H", PROFILE, "-n", "1", "-B", "4"),
        ("size", "-H", PROFILE, "-B", "8", "--samples", "1e6", "--max-gpus", "1"),
        ("whatif", "-H", PROFILE, "--gpus", "1,2", "-B", "8"),
        ("share", "--devices", "t4,a10", "--global-batch", "8"),
        ("partition", "-H", PROFILE, "-n", "2", "-B", "8", "--micro-batch", "2"),
        ("export", "-H", PROFILE, "--to", "megatron"),
    ],
    ids=lambda args: args[0],
)
def test_a_sequence_without_effect_is_said_once(
    args: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, args[0], "mlp-mnist", *args[1:], "--seq", "128")
    assert code == 0, err
    assert (out + err).count("warning: a sequence length of 128 changes nothing") == 1
