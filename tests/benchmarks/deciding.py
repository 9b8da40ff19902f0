"""Regret of the plan chosen after a few seconds of deciding measurements and after a full calibration.

    python -m tests.benchmarks.deciding --runs RUNS.json --full FULL.json [--base NAME] [--budget-s 20]

RUNS.json: `foreshard validate run --out RUNS.json` on this machine; FULL.json: `foreshard calibrate --out`.
Regret is the measured step of the plan chosen over that of the best plan measured, less one; of plans that
are predicted alike (GPipe and 1F1B are) any is chosen, and the mean counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from costmodel.hardware.store import load_profile
from costmodel.plan import Plan
from planner.deciding import decide
from planner.problem import Problem
from planner.validation.harness import load_results
from planner.validation.run_spec import ModelSpec
from planner.validation.standard import standard_models, standard_plans

_RANKS = 2
_ALIKE = 1e-3


def problem_of(model: ModelSpec, global_batch_size: int, hardware: str) -> Problem:
    """The search that `foreshard plan` would be asked for a validation model."""
    return Problem(
        model=model.model,
        hardware=hardware,
        n_devices=_RANKS,
        global_batch_size=global_batch_size,
        seq_len=model.seq_len,
        overrides=tuple(f"{name}={value}" for name, value in model.overrides.items()),
    )


def measured_steps(runs: Path) -> dict[tuple[str, str], float]:
    """(model, plan) -> median measured step, seconds."""
    return {
        (r.spec.model.label, str(r.spec.plan)): r.step_time_s
        for r in load_results(runs)
        if r.step_time_s is not None and r.spec.plan.world_size == _RANKS
    }


def predicted_by(problem: Problem, plans: list[Plan], profile: str) -> dict[str, float]:
    """Step of each plan as a profile predicts it, seconds."""
    forecaster = problem.forecaster(load_profile(profile))
    return {str(plan): forecaster.forecast(plan).prediction.step_time_s for plan in plans}


def chosen_of(predicted: dict[str, float]) -> list[str]:
    """The plan predicted fastest, and those predicted alike."""
    least = min(predicted.values())
    return [plan for plan, seconds in predicted.items() if seconds <= least * (1.0 + _ALIKE)]


def main() -> None:
    """Print a line per model and the mean."""
    parser = argparse.ArgumentParser(prog="tests.benchmarks.deciding", description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--full", required=True)
    parser.add_argument("--base", default="epyc-core")
    parser.add_argument("--budget-s", type=float, default=20.0)
    given = parser.parse_args()
    measured = measured_steps(given.runs)
    regrets: dict[str, list[float]] = {"full": [], "deciding": [], "base": []}
    with tempfile.TemporaryDirectory(prefix="foreshard-") as folder:
        for entry in standard_models():
            model = entry.model.label
            problem = problem_of(entry.model, entry.global_batch_size, given.base)
            plans = [p for p in standard_plans(entry.global_batch_size) if (model, str(p)) in measured]
            forecaster = problem.forecaster()
            predictions = [forecaster.forecast(plan).prediction.to_dict() for plan in plans]
            file = Path(folder) / f"{model}.json"
            file.write_text(json.dumps({"problem": problem.to_dict(), "plans": predictions}))
            start = time.monotonic()
            decided = decide(
                file, out=Path(folder) / f"{model}-here.json", base=given.base, budget_s=given.budget_s
            )
            took_s = time.monotonic() - start
            assert decided is not None
            steps_s = {str(plan): measured[model, str(plan)] for plan in plans}
            chosen = {
                way: chosen_of(predicted)
                for way, predicted in (
                    ("full", predicted_by(problem, plans, given.full)),
                    ("deciding", {p: c.after_s for c in decided.contenders for p in (c.plan, *c.alike)}),
                    ("base", predicted_by(problem, plans, given.base)),
                )
            }
            for way, alike in chosen.items():
                mean_s = statistics.fmean(steps_s[plan] for plan in alike)
                regrets[way].append(mean_s / min(steps_s.values()) - 1.0)
            print(
                f"{model}: "
                + ", ".join(
                    f"{way} {' = '.join(p)} regret {regrets[way][-1]:.1%}" for way, p in chosen.items()
                )
                + f"; P {decided.winner.probability_after:.0%}, {decided.outcome.n_visits} visits of "
                f"{decided.outcome.n_items}, {decided.outcome.reason}, {took_s:.0f} s",
                flush=True,
            )
    print("mean regret: " + ", ".join(f"{way} {statistics.fmean(r):.2%}" for way, r in regrets.items()))


if __name__ == "__main__":
    main()
