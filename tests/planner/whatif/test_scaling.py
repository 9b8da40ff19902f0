"""Studies: axes, weak and strong curves, crossovers on real forecasts, workers that change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from costmodel.errors import ForeshardError, InfeasibleError, UsageError
from planner.cli import main
from planner.whatif import backend, crossovers, curves, parse_axes, run_study, scaled, scaling, terms_s
from planner.whatif.crossovers import Curve
from planner.whatif.sweep import Outcome, Setting, fitted_plan, forecast_all, forecaster_of
from planner.whatif.terms import largest
from tests.planner.small import SIZES

HARDWARE = "a100-sxm4-80gb"


def study(**changes):  # type: ignore[no-untyped-def]
    wanted = {
        "hardware": [HARDWARE],
        "n_devices": [8, 16, 32],
        "global_batch_size": 64,
        "seq_len": 64,
        "overrides": SIZES,
        "plan": "dp1",
        **changes,
    }
    return scaling("gpt2", **wanted)


def test_strong_and_weak_curves() -> None:
    strong, weak = study(), study(weak=True)
    assert [p.global_batch_size for p in strong] == [64, 64, 64]
    assert [p.global_batch_size for p in weak] == [64, 128, 256]
    for points in (strong, weak):
        assert points[0].efficiency == 1.0
        efficiencies = [p.efficiency for p in points]
        assert efficiencies == sorted(efficiencies, reverse=True)
    assert all(s.efficiency <= w.efficiency for s, w in zip(strong, weak, strict=True))
    step_times = [p.prediction.step_time_s for p in strong]
    assert step_times == sorted(step_times, reverse=True)


def test_axes_of_sizes_speeds_and_price() -> None:
    axes = parse_axes(["n_layer=2,4", "inter_link=0.5,1", "price=1,3"])
    assert axes == {"n_layer": [2, 4], "inter_link": [0.5, 1], "price": [1, 3]}
    points = study(n_devices=[16], vary=axes)
    assert len(points) == 8
    found = {
        (dict(p.varied)["n_layer"], dict(p.varied)["inter_link"], dict(p.varied)["price"]): p for p in points
    }
    deep, shallow = found[4, 1, 1], found[2, 1, 1]
    assert deep.prediction.step_time_s > shallow.prediction.step_time_s
    assert found[4, 0.5, 1].prediction.step_time_s > deep.prediction.step_time_s
    assert found[4, 1, 3].usd_per_sample == pytest.approx(3 * deep.usd_per_sample)
    assert found[4, 1, 3].prediction.step_time_s == deep.prediction.step_time_s
    per_sample = 16 / 3600 / deep.prediction.samples_per_s
    assert deep.usd_per_sample == pytest.approx(per_sample)


def test_longer_sequences_and_larger_batches_take_longer() -> None:
    times = [p.prediction.step_time_s for p in study(n_devices=[8], vary={"seq": [16, 32, 64]})]
    assert times == sorted(times)
    times = [p.prediction.step_time_s for p in study(n_devices=[8], vary={"batch": [16, 64, 256]})]
    assert times == sorted(times)


def test_curves_hold_everything_but_their_axis() -> None:
    points = study(n_devices=[8, 16], vary={"inter_link": [0.1, 1.0]})
    found = {(c.axis, c.held): [x for x, _ in c.points] for c in curves(points)}
    assert found == {
        ("gpus", (("hardware", HARDWARE), ("inter_link", 0.1))): [8, 16],
        ("gpus", (("hardware", HARDWARE), ("inter_link", 1.0))): [8, 16],
        ("inter_link", (("hardware", HARDWARE), ("gpus", 8))): [0.1, 1.0],
        ("inter_link", (("hardware", HARDWARE), ("gpus", 16))): [0.1, 1.0],
    }


def test_a_crossover_is_where_the_terms_are_equal() -> None:
    points = study(n_devices=[16], plan="dp16", vary={"inter_link": [0.002, 8.0]})
    (curve,) = curves(points)
    (crossing,) = crossovers(curve)
    assert (crossing.before, crossing.after) == ("communication", "compute")
    assert crossing.how == "bisected"
    setting = points[0].setting
    today = forecaster_of(replace(setting, factors=()))
    plan = points[0].prediction.plan
    at = scaled(today, {"inter_link": crossing.at}).forecast(plan).prediction.breakdown_s
    terms = terms_s(at)
    assert terms["communication"] == pytest.approx(terms["compute"], rel=0.02)
    below = scaled(today, {"inter_link": crossing.at / 1.05}).forecast(plan).prediction
    assert largest(below.breakdown_s) == "communication"


def test_no_crossover_on_a_flat_curve() -> None:
    curve = curves(study(n_devices=[1, 2], vary={"offload": [0.5, 2.0]}))
    assert all(isinstance(c, Curve) and crossovers(c) == () for c in curve if c.axis == "offload")


def test_elasticities_of_a_study() -> None:
    result = run_study(
        "gpt2",
        hardware=[HARDWARE],
        n_devices=[8],
        global_batch_size=64,
        seq_len=64,
        overrides=SIZES,
        plan="dp1",
        with_elasticities=True,
        prices=[f"{HARDWARE}=2"],
    )
    ((point, found),) = result.elasticities
    assert {"gpus", "batch", "compute"} <= {e.what for e in found}
    assert point.usd_per_hour == 2.0
    json.dumps(result.to_dict())


@pytest.mark.slow
def test_results_do_not_depend_on_the_workers() -> None:
    settings = [
        Setting(model="mlp-mnist", hardware=name, n_devices=n, global_batch_size=64, plan="dp1")
        for name in (HARDWARE, "h100-sxm5-80gb")
        for n in (1, 8)
    ]
    assert timeless(forecast_all(settings, n_jobs=2)) == timeless(forecast_all(settings))


def timeless(outcomes: list[Outcome]) -> list[object]:
    """Predictions without the age of their profile, which is that of the moment."""
    return [replace(o.prediction, hardware=replace(o.prediction.hardware, age_days=None)) for o in outcomes]


def test_backends_of_joblib() -> None:
    joblib = pytest.importorskip("joblib")
    settings = [p.setting for p in study(n_devices=[8, 16], vary={"n_layer": [1, 2]})]
    alone = timeless(forecast_all(settings))
    with backend("threading"):
        assert timeless(forecast_all(settings, n_jobs=3)) == alone
    with joblib.parallel_config(backend="sequential"):
        assert timeless(forecast_all(settings, n_jobs=3)) == alone
    with pytest.raises(ForeshardError, match="no-such"), backend("no-such"):
        pass


def test_reasons_are_kept_and_all_of_them_raised() -> None:
    points = study(n_devices=[8, 12], plan="tp8")
    assert points[1].prediction is None
    assert "does not divide 12" in points[1].reason
    with pytest.raises(UsageError, match="does not divide 12"):
        study(n_devices=[12], plan="tp8")
    with pytest.raises(InfeasibleError, match="nothing fits"):
        scaling(
            "mlp-mnist", hardware=["t4"], n_devices=[1], global_batch_size=1, overrides={"width": 100_000}
        )
    with pytest.raises(UsageError, match="jobs 0"):
        study(n_jobs=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inter_link", "name=value"),
        ("inter_link=", "name=value"),
        ("inter_link=0", "positive factor"),
        ("inter_link=fast", "not a number"),
        ("seq=0", "positive whole number"),
        ("batch=1.5", "positive whole number"),
        ("price=-1", "positive factor"),
        ("inter_lnk=1,2", "did you mean inter_link"),
    ],
)
def test_axes_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_axes([text])
    with pytest.raises(UsageError, match="given twice"):
        parse_axes(["seq=1", "seq=2"])


def test_a_plan_that_fills_the_devices() -> None:
    assert str(fitted_plan("tp2.mbs2", 8, 64)) == "dp4.tp2.mbs2.gbs64"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "curves.png"
    arguments = ["whatif", "gpt2", "-H", HARDWARE, "-n", "8,16", "-B", "64", "--seq", "64", "--plan", "dp1"]
    arguments += [f"--set={name}={value}" for name, value in SIZES.items()]
    arguments += ["--vary", "inter_link=0.1,1", "--price", f"{HARDWARE}=1.5", "--plot", str(picture)]
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, *extra])
        assert not stop.value.code
    out = capsys.readouterr().out
    data = json.loads(out[out.index("{") :])
    assert len(data["points"]) == 4
    for point in data["points"]:
        assert sum(point["terms_s"].values()) == pytest.approx(point["prediction"]["step_time_s"], rel=1e-3)
        assert point["usd_per_hour"] == 1.5
    assert picture.read_bytes().startswith(b"\x89PNG")
