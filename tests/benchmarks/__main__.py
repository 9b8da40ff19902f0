"""Prints each benchmark's figure, one line each."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks.tables import write_gemm_table


def engine_s() -> str:
    """100,000 actions on 16 ranks."""
    from costmodel.engine import Action, run

    actions = [
        Action(rank=i % 16, stream="compute", duration_s=1.0, after=(i - 1,) if i % 16 else ())
        for i in range(100_000)
    ]
    start = time.perf_counter()
    run(actions)
    return f"{time.perf_counter() - start:.2f} s for 100,000 actions"


def pricing_s() -> str:
    """1e6 GEMMs on a shipped profile."""
    from costmodel.hardware.pricing import operator_times
    from costmodel.hardware.store import load_profile

    profile = load_profile("h100-sxm5-80gb")
    sizes = np.random.default_rng(0).integers(1, 8192, size=(3, 1_000_000)).astype(np.float64)
    start = time.perf_counter()
    operator_times(profile, "gemm", "nt", "bf16", {"m": sizes[0], "n": sizes[1], "k": sizes[2]})
    return f"{time.perf_counter() - start:.2f} s for 1e6 GEMMs"


def _trace(model: str) -> str:
    code = (
        "import time; t = time.perf_counter()\n"
        "from costmodel.models import resolve\nfrom costmodel.graph import trace\n"
        f"trace(resolve({model!r}, seq_len={8192 if 'llama' in model else 4096}))\n"
        "import resource\n"
        "print(time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"
    )
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return f"{time.perf_counter() - start:.1f} s from process start, {float(out.split()[1]):.2f} GB"


def mesh_s() -> str:
    """The best split of one llama-3.1-405b layer on 8 x 8 devices."""
    from costmodel.graph import trace
    from costmodel.models import resolve
    from costmodel.sharding import Axis, Rules, solve_segment

    graph = trace(resolve("llama-3.1-405b", seq_len=8192, micro_batch_size=8), attention="flash")
    layer = next(s for s in graph.segments if s.count > 100)
    start = time.perf_counter()
    solve_segment(layer, (Axis(name="dp", n=8), Axis(name="tp", n=8)), rules=Rules(allow_batch=True))
    return f"{time.perf_counter() - start:.1f} s for one layer on an 8 x 8 mesh"


def _search(model: str, hardware: str, framework: str, n_devices: int, batch: int, seq: int) -> str:
    """The whole space by `foreshard plan` from process start, tracing included."""
    code = (
        "import resource, sys\nfrom planner.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, file=sys.stderr)"
    )
    sizes = ("-n", str(n_devices), "-B", str(batch), "--seq", str(seq))
    asked = ("plan", model, "-H", hardware, "--framework", framework, *sizes, "--json")
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True, check=True)
    whole_s = time.perf_counter() - start
    found = json.loads(done.stdout)
    return (
        f"{whole_s:.1f} s from process start, {float(done.stderr.split()[-1]):.2f} GB: "
        f"{found['n_considered']} plans considered, {found['n_feasible']} feasible, "
        f"{len(found['plans'])} by the event engine, first proven: {found['proven']}, "
        f"{found['plans'][0]['plan']}"
    )


def closed_forms() -> str:
    """Memory of every plan and time of every one that fits, once units and stages are priced."""
    from costmodel.closed_form import Choices, evaluate
    from planner import api

    made = api.forecaster("gpt3-175b", hardware="a100-sxm4-80gb", framework="megatron", seq_len=2048)
    choices = Choices(
        n_devices=1024,
        global_batch_size=1536,
        n_units=made.n_units(),
        tp=(1, 2, 4, 8),
        sequence_parallel=(False, True),
        schedules=("gpipe", "1f1b", "dapple", "looped-bfs", "zb-h1"),
        vpp=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16),
        zero=(0, 1, 2, 3),
        shard=(0, 8, 16, 32),
        recompute=("none", "selective", "full", "full2", "full3"),
        inside=(False, True),
    )
    evaluate(made, choices)
    start = time.process_time()
    found = evaluate(made, choices)
    seconds = time.process_time() - start
    n = int(np.isfinite(found.memory_bytes).sum())
    return (
        f"{seconds:.2f} s of one core: {n} plans with memory and, where they fit, time ({n / seconds:,.0f} a "
        f"second), {found.n_considered} considered ({found.n_considered / seconds:,.0f} a second)"
    )


def import_s() -> str:
    """`hardware import` of 100,000 GEMM rows in ten groups."""
    with tempfile.TemporaryDirectory() as folder:
        gpus = ("A100-SXM4-80GB", "H100-SXM5-80GB", "B200", "L40S", "V100-PCIe-32GB")
        table = write_gemm_table(Path(folder) / "gemm.csv", 100_000, gpus, ("fp16", "fp32"))
        command = [sys.executable, "-c", "from planner.cli import main; main()", "hardware", "import"]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--operators", str(table), "--out", folder], check=True, stderr=subprocess.DEVNULL
        )
        wall_s = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        f"{wall_s:.1f} s, {used.ru_utime + used.ru_stime:.0f} s of all processes so far, largest "
        f"{used.ru_maxrss / 1e6:.2f} GB"
    )


BENCHMARKS: dict[str, Callable[[], str]] = {
    "engine": engine_s,
    "pricing": pricing_s,
    "import": import_s,
    "trace llama-3.1-405b for training": lambda: _trace("llama-3.1-405b"),
    "trace deepseek-v3 for training": lambda: _trace("deepseek-v3"),
    "split llama-3.1-405b": mesh_s,
    "closed forms": closed_forms,
    "search gpt3-175b on 1,024 A100": lambda: _search(
        "gpt3-175b", "a100-sxm4-80gb", "megatron", 1024, 1536, 2048
    ),
    "search llama-3.1-405b on 16,384 H100": lambda: _search(
        "llama-3.1-405b", "h100-sxm5-80gb", "megatron-core", 16384, 2048, 8192
    ),
}

if __name__ == "__main__":
    asked = sys.argv[1:]
    for name, benchmark in BENCHMARKS.items():
        if asked and not any(word in name for word in asked):
            continue
        print(f"{name}: {benchmark()}", flush=True)
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
