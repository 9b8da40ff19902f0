"""Cluster descriptions, and models on unlike nodes by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import InputFileError
from planner import api
from planner.cluster import load_cluster
from tests.planner.test_cli import TINY, run

GOOD = """
name = "lab"

[[group]]
name = "fast"
hardware = "a100-sxm4-80gb"
gpus_per_node = 1

[[group]]
name = "slow"
hardware = "t4"
nodes = 2
gpus_per_node = 1

[[link]]
between = ["slow", "fast"]
bytes_per_s = 1.25e9
latency_s = 30e-6
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_a_description_is_read(tmp_path: Path) -> None:
    cluster = load_cluster(write(tmp_path, GOOD))
    assert cluster.n_devices == 3
    assert [g.nodes for g in cluster.group] == [1, 2]
    assert cluster.link[0].between == ("slow", "fast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("gpus_per_node = 1", "gpus_per_node = 0"), "group.0.gpus_per_node"),
        (('hardware = "t4"', 'hardwear = "t4"'), "hardware"),
        (('name = "slow"', 'name = "fast"'), "share a name"),
        (('["slow", "fast"]', '["slow", "none"]'), "must join two of the groups"),
        (('["slow", "fast"]', '["slow", "slow"]'), "must join two of the groups"),
        (("bytes_per_s = 1.25e9", "bytes_per_s = -1"), "link.0.bytes_per_s"),
        (("bytes_per_s = 1.25e9", "bytes_per_s = inf"), "link.0.bytes_per_s"),
        (("nodes = 2", 'nodes = "two"'), "group.1.nodes"),
        (("[[group]]", "[[group"), "not valid TOML"),
    ],
)
def test_a_bad_description_says_what(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(InputFileError, match=message):
        load_cluster(write(tmp_path, GOOD.replace(*change)))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        load_cluster(tmp_path / "missing.toml")
    with pytest.raises(InputFileError, match="group"):
        load_cluster(write(tmp_path, 'name = "empty"'))


def test_the_command_shows_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, GOOD)
    code, out, _ = run(
        capsys, "cluster", "gpt2", *TINY, "-c", str(path), "-B", "12", "--micro-batch", "2", "--json"
    )
    data = json.loads(out)
    assert code == 0
    assert data["n_devices"] == 3
    ways = {way: data[way]["step_time_s"] for way in ("pipeline", "replicas")}
    assert data["step_time_s"] == min(ways.values()) == ways[data["best"]]
    assert sum(s["samples"] for s in data["replicas"]["shares"]) == 12
    for way in ways:
        assert data[way]["step_time_low_s"] < data[way]["step_time_s"] < data[way]["step_time_high_s"]
    code, out, _ = run(capsys, "cluster", "gpt2", *TINY, "-c", str(path), "-B", "12", "--micro-batch", "2")
    assert code == 0
    assert f"faster as {data['best']}" in out


def test_nothing_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GOOD.replace("gpus_per_node = 1", "gpus_per_node = 1\nmemory_bytes = 1e6")
    args = ("-c", str(write(tmp_path, text)), "-B", "4", "--micro-batch", "1")
    code, _, err = run(capsys, "cluster", "gpt2", *TINY, *args)
    assert code == 3
    assert "stages:" in err
    assert "replicas:" in err


def test_wrong_requests_end_with_their_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, GOOD))
    for args, expected in (
        (("-c", path, "-B", "5", "--micro-batch", "2"), 2),
        (("-c", path, "-B", "4", "--with", "tp2"), 2),
        (("-c", path, "-B", "4", "--with", "zero3"), 2),
        (("-c", str(tmp_path / "none.toml"), "-B", "4"), 1),
        (("-c", _many(tmp_path), "-B", "4"), 2),
    ):
        code, _, err = run(capsys, "cluster", "gpt2", *TINY, *args)
        assert code == expected, (args, err)


def _many(folder: Path) -> str:
    path = folder / "many.toml"
    path.write_text(GOOD.replace("gpus_per_node = 1", "gpus_per_node = 99"))
    return str(path)


def test_one_group_is_the_plain_forecast(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index('[[group]]\nname = "slow"')].replace("gpus_per_node = 1", "gpus_per_node = 2")
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 128}
    found = api.cluster(
        "gpt2",
        description=write(tmp_path, text),
        global_batch_size=8,
        micro_batch_size=2,
        overrides=sizes,
        seq_len=16,
    )
    plain = api.predict(
        "gpt2", hardware="a100-sxm4-80gb", plan="dp2.mbs2.gbs8", overrides=sizes, seq_len=16
    ).prediction
    assert found.replicas is not None
    assert found.replicas.step_time_s == pytest.approx(plain.step_time_s)
