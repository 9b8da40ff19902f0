"""`foreshard partition`: JSON, text and exit codes."""

from __future__ import annotations

import json

import pytest

from tests.planner.test_cli import PROFILE, TINY, run

SIZE = ("-H", PROFILE, "-n", "4", "-B", "16")


def test_json_holds_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "partition", "gpt2", *TINY, *SIZE, "--micro-batch", "4", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["n_devices_used"] == sum(s["replicas"] for s in data["stages"]) <= 4
    assert data["stages"][0]["start"] == 0
    assert all(a["stop"] == b["start"] for a, b in zip(data["stages"], data["stages"][1:], strict=False))
    assert all(s["memory_bytes"] <= s["memory_limit_bytes"] for s in data["stages"])
    assert data["step_time_s"] <= data["even_step_time_s"] * 1.02
    assert len(data["sends"]) == len(data["stages"]) - 1
    phases = data["closed_form"]
    total = phases["warm_up_s"] + phases["steady_s"] + phases["ending_s"]
    assert total == pytest.approx(data["latency_s"])


def test_throughput_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "partition", "gpt2", *TINY, *SIZE, "--objective", "throughput")
    assert code == 0
    assert "pipedream" in out
    assert "4 of 4 devices" in out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--objective", "speed"), 2, "latency, throughput"),
        (("--placement", "nowhere"), 2, "fresh-first"),
        (("--with", "pp2"), 2, "what is searched for"),
        (("--with", "zero3"), 2, "leave out zero3"),
        (("--micro-batch", "3"), 2, "not a multiple"),
        (("--memory-gib", "0.001", "--micro-batch", "1"), 3, "no pipeline of 4 devices"),
    ],
)
def test_wrong_requests(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run(capsys, "partition", "gpt2", *TINY, *SIZE, *args)
    assert found == code
    assert message in err
