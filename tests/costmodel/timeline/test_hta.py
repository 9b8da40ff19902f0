"""HolisticTraceAnalysis reads our traces and finds in them what the breakdown says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.predict import Forecast
from planner import api

pytest.importorskip("hta")


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return api.predict("gpt2", hardware="v100-sxm2-32gb", plan="dp2.pp2.mbs2.gbs16", overrides=["n_layer=4"])


def test_four_ranks_are_read_and_add_up_to_the_breakdown(forecast: Forecast, tmp_path: Path) -> None:
    from hta.trace_analysis import TraceAnalysis

    forecast.write_trace(tmp_path)
    analysis = TraceAnalysis(trace_dir=str(tmp_path))
    table = analysis.get_temporal_breakdown(visualize=False).set_index("rank")
    assert sorted(table.index) == [0, 1, 2, 3]
    run = forecast.step.timeline
    outside_s = []
    for rank in range(4):
        mine = [i for i, action in enumerate(run.actions) if action.rank == rank // 2]
        span_s = max(run.end_s[i] for i in mine) - min(run.start_s[i] for i in mine)
        outside_s.append(forecast.step.step_time_s - span_s)
        busy_s = forecast.step.busy_s[rank // 2]
        assert table.loc[rank, "compute_time(us)"] * 1e-6 == pytest.approx(busy_s, rel=0.01)
        shares = ("idle_time(us)", "compute_time(us)", "non_compute_time(us)")
        total = sum(float(table.loc[rank, name]) for name in shares)
        assert total * 1e-6 == pytest.approx(span_s, rel=0.01), "from first kernel to last"
    parts = forecast.prediction.breakdown_s
    # gradients are copied by kernels of the compute stream, for communication's sake
    kernels = [a.parts_s or {} for a in run.actions if a.stream == "compute"]
    copies_s = sum(p.get("dp_comm", 0.0) for p in kernels) / 2
    working = copies_s + sum(parts[k] for k in ("compute", "recompute", "optimizer", "host"))
    assert table["compute_time(us)"].mean() * 1e-6 == pytest.approx(working, rel=0.01)
    waiting = sum(parts[k] for k in ("dp_comm", "pp_comm", "bubble")) - copies_s
    rest = table["idle_time(us)"].mean() + table["non_compute_time(us)"].mean()
    assert rest * 1e-6 + sum(outside_s) / 4 == pytest.approx(waiting, rel=0.01)


def test_trace_holds_collectives_arrows_step_and_memory(forecast: Forecast, tmp_path: Path) -> None:
    forecast.write_trace(tmp_path)
    ranks = [json.loads((tmp_path / f"rank-{r}.json").read_text()) for r in range(4)]
    assert [r["distributedInfo"]["rank"] for r in ranks] == [0, 1, 2, 3]
    assert {r["distributedInfo"]["world_size"] for r in ranks} == {4}
    events = [event for rank in ranks for event in rank["traceEvents"]]
    assert any("nccl:all_reduce" in event["name"] for event in events)
    sent = {event["id"]: event["pid"] for event in events if event["ph"] == "s"}
    received = {event["id"]: event["pid"] for event in events if event["ph"] == "f"}
    assert sent.keys() == received.keys()
    assert sent, "activations and gradients cross the stages"
    assert all({sent[i], received[i]} in ({0, 2}, {1, 3}) for i in sent), "each rank with its own neighbour"
    for rank in ranks:
        held = [e["args"]["bytes"] for e in rank["traceEvents"] if e["ph"] == "C"]
        assert held[0] == held[-1] == 0
        assert max(held) > 0
        assert sum(e["name"].startswith("ProfilerStep") for e in rank["traceEvents"]) == 1
