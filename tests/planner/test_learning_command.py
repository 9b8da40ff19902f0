"""`foreshard hardware learn` on a table of runs: it learns, refuses to learn twice, and undoes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from planner.cli import main
from planner.validation.published.score import validate_published

PROFILE = "a100-sxm4-80gb"
COLUMNS = {
    "gpu": "A100-SXM4-80GB",
    "framework": "Megatron-LM",
    "task": "train",
    "model_family": "gpt",
    "vocab": 1024,
    "seq_len": 64,
    "heads": 8,
    "dtype": "fp16",
    "recompute": "none",
}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return (0 if stop.value.code is None else int(stop.value.code)), out, err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Small models, each step a quarter longer than the shipped profile says."""
    path = tmp_path / "mine.csv"
    rows = [
        {**COLUMNS, "id": f"mine-{hidden}-{n}", "source": "mine", "model_name": f"gpt {hidden}"}
        | {"layers": 2, "hidden": hidden, "n_gpus": n, "tp": tp, "dp": n // tp, "micro_batch": 2}
        | {"global_batch": 4 * n, "iter_time_s": 1.0}
        for hidden in (256, 512)
        for n, tp in ((1, 1), (2, 1), (4, 2))
    ]
    rows.append({**rows[0], "id": "other-1", "gpu": "H100-SXM5-80GB"})
    _write(path, rows)
    predicted = {row.id: row.predicted for row in validate_published(path).rows}
    for row in rows:
        row["iter_time_s"] = 1.25 * (predicted[str(row["id"])] or 0.0)
    _write(path, rows)
    return path


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_learn_show_refuse_and_undo(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taught, undone = tmp_path / "taught.json", tmp_path / "undone.json"
    learn = ("hardware", "learn", str(table), "--profile")
    code, out, _ = run(capsys, *learn, PROFILE, "--out", str(taught), "--check", "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["skipped"] == {"of another GPU": 1}
    assert len(answer["learnt"]["runs"]) == 6
    for one in answer["learnt"]["runs"]:
        assert one["error_before"] == pytest.approx(-0.2, abs=1e-6)
        assert abs(one["error_after"]) < 0.1
    before, after = (answer["held_back"][name]["summary"][0]["mape"] for name in ("before", "after"))
    assert before == pytest.approx(0.2, abs=1e-6)
    assert after < before * 2 / 3

    code, out, _ = run(capsys, "hardware", "show", str(taught))
    assert code == 0
    assert "learnt from 6 runs" in out
    code, _, err = run(capsys, *learn, str(taught), "--out", str(tmp_path / "twice.json"))
    assert code == 2
    assert "already behind" in err
    assert not (tmp_path / "twice.json").exists()
    code, _, err = run(capsys, *learn, PROFILE, "--out", str(taught))
    assert code == 1
    assert "--force" in err

    undo = ("hardware", "learn", "--undo", "--out", str(undone), "--profile")
    assert run(capsys, *undo, str(taught))[0] == 0
    predict = ("predict", "gpt2", "--set", "n_layer=1", "--set", "n_embd=64", "--set", "n_head=4")
    times = {}
    for name in (PROFILE, str(taught), str(undone)):
        code, out, _ = run(capsys, *predict, "--seq", "16", "-H", name, "--plan", "dp2", "--json")
        assert code == 0
        times[name] = [json.loads(out)[key] for key in ("step_time_s", "step_time_low_s", "step_time_high_s")]
    assert times[str(undone)] == times[PROFILE] != times[str(taught)]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--out", "q.json"), 2, "--profile"),
        (("--profile", PROFILE, "--out", "q.json"), 2, "no runs"),
        (("--profile", PROFILE, "--undo", "--out", "q.json"), 2, "nothing to undo"),
        (("--profile", PROFILE, "--undo", "--check", "--out", "q.json"), 2, "--undo"),
        (("missing.json", "--profile", PROFILE, "--out", "q.json"), 1, "validate run"),
        (("missing.json", "--profile", PROFILE), 2, "--out"),
        (("half.json", "--profile", PROFILE, "--out", "q.json"), 1, "validate run"),
        (("empty.json", "--profile", PROFILE, "--out", "q.json"), 1, "no run"),
    ],
)
def test_bad_requests_say_what_to_do(
    args: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("half.json").write_text('{"runs": [{"spec"')
    Path("empty.json").write_text('{"format": 1, "runs": []}')
    got, _, err = run(capsys, "hardware", "learn", *args)
    assert got == code, err
    assert said in err
    assert not Path("q.json").exists()
