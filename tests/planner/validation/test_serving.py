"""`validate serving`: rows of servers to forecasts, or reasons."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from costmodel.errors import InputFileError
from costmodel.framework import FrameworkProfile
from costmodel.predict.loads import Load
from planner.cli import app
from planner.validation.published.rows import PublishedRow
from planner.validation.serving.score import is_serving_table, validate_serving
from planner.validation.serving.setting import (
    as_launched,
    cache_room_bytes,
    served_config,
    serving_framework,
    serving_load,
    serving_ranks,
)

_ROW = {
    "gpu": "H100-SXM5-80GB",
    "backend": "vllm",
    "backend_version": "0.18.0",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "precision": "fp8",
    "isl": "1024",
    "osl": "1024",
    "concurrency": "8",
    "tp_size": "2",
    "gemm_quant_mode": "fp8",
    "ttft_ms": "60",
    "tpot_ms": "6",
    "source": "lab",
}


def _table(folder: Path, *changes: dict[str, str]) -> Path:
    path = folder / "servers.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(_ROW))
        writer.writeheader()
        writer.writerows({**_ROW, **change} for change in changes)
    return path


def _row(**cells: str) -> PublishedRow:
    return PublishedRow(id="1", cells={k: v for k, v in {**_ROW, **cells}.items() if v})


def test_every_row_is_forecast_or_says_why(tmp_path: Path) -> None:
    table = _table(
        tmp_path,
        {},
        {"concurrency": "64"},
        {"model": "nobody/Unheard-1B"},
        {"backend": "abacus"},
        {"gpu": "Abacus-9"},
        {"concurrency": ""},
        {"tpot_ms": "soon"},
        {"ttft_ms": "", "tpot_ms": ""},
    )
    report = validate_serving(table)
    by_id = {(r.id, r.metric): r for r in report.rows}
    one, many = by_id["1", "tpot_ms"], by_id["2", "tpot_ms"]
    assert one.predicted
    assert many.predicted
    assert 1.0 < one.predicted < many.predicted < 60.0
    assert one.low
    assert one.high
    assert one.low < one.predicted < one.high
    first = by_id["1", "ttft_ms"].predicted
    assert first
    assert one.predicted < first < 1000.0
    reasons = {i: r.skipped or "" for (i, metric), r in by_id.items() if metric != "ttft_ms"}
    assert "Unheard" in reasons["3"]
    assert "abacus" in reasons["4"]
    assert "Abacus-9" in reasons["5"]
    assert "concurrency" in reasons["6"]
    assert "soon" in reasons["7"]
    assert "neither" in reasons["8"]
    assert by_id["7", "ttft_ms"].skipped is None
    overall = report.overall
    assert overall.n + overall.n_skipped == len(report.rows) == 15
    assert {s.key for s in report.summary if s.by == "metric"} == {"ttft_ms", "tpot_ms", "none"}


def test_a_table_of_servers_is_known_by_its_columns(tmp_path: Path) -> None:
    table = _table(tmp_path, {"model": "nobody/Unheard-1B"})
    assert is_serving_table(table)
    outputs = []
    for command in ("serving", "published"):
        result = CliRunner().invoke(app, ["validate", command, str(table), "--json"])
        assert result.exit_code == 0, result.output
        outputs.append(json.loads(result.stdout))
    assert outputs[0] == outputs[1]
    assert set(outputs[0]["rows"][0]) == {
        *("id", "source", "group", "metric", "measured", "predicted", "low", "high", "skipped", "labels")
    }


def test_a_table_without_the_columns_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("gpu,task,model_family\nT4,train,gpt\n")
    assert not is_serving_table(path)
    with pytest.raises(InputFileError, match="isl"):
        validate_serving(path)
    path.write_text(",".join(_ROW) + "\n")
    with pytest.raises(InputFileError, match="no row"):
        validate_serving(path)


@pytest.mark.parametrize(
    ("cells", "plan", "experts"),
    [
        ({"tp_size": "4", "moe_tp_size": "4", "moe_ep_size": "1"}, (1, 4), (4, 1)),
        ({"tp_size": "8", "moe_tp_size": "2", "moe_ep_size": "4"}, (1, 8), (2, 4)),
        ({"tp_size": "1", "attention_dp_size": "8", "moe_ep_size": "8"}, (8, 1), (1, 8)),
        # flags that name the same ranks twice
        ({"tp_size": "4", "attention_dp_size": "4", "moe_ep_size": "16"}, (1, 4), (1, 4)),
        ({"tp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"}, (1, 8), (1, 8)),
        ({"tp_size": "1", "attention_dp_size": "64", "moe_tp_size": "8", "moe_ep_size": "8"}, (8, 1), (1, 8)),
    ],
)
def test_sizes_of_parallelism_name_ranks(
    cells: dict[str, str], plan: tuple[int, int], experts: tuple[int, int]
) -> None:
    ranks = serving_ranks(_row(**cells), ranks_per_node=8)
    assert (ranks.plan.dp, ranks.plan.tp) == plan
    assert (ranks.experts.tp, ranks.experts.ep) == experts


def test_a_launch_script_may_divide_experts_and_attention_where_the_table_does_not_say() -> None:
    early = {"backend": "trtllm", "backend_version": "", "model": "DeepSeek-R1", "precision": "fp4"}
    few, many, long = (
        serving_ranks(_row(**early, tp_size="8", isl=isl, concurrency=clients), ranks_per_node=8)
        for isl, clients in (("1024", "8"), ("1024", "64"), ("8192", "64"))
    )
    assert (few.plan.tp, few.experts.ep) == (8, 1)
    assert (many.plan.tp, many.experts.ep) == (8, 8)
    assert (long.plan.dp, long.plan.tp, long.experts.ep) == (8, 1, 8)


def test_a_square_within_a_node_is_counted_twice_where_the_settings_say_so() -> None:
    cells = {"tp_size": "4", "moe_tp_size": "2", "moe_ep_size": "2", "attention_dp_size": "1"}
    twice = serving_ranks(_row(backend="sglang", **cells), ranks_per_node=8)
    once = serving_ranks(_row(backend="trtllm", **cells), ranks_per_node=8)
    assert (twice.plan.tp, twice.experts.tp, twice.experts.ep) == (2, 1, 2)
    assert (once.plan.tp, once.experts.tp, once.experts.ep) == (4, 2, 2)


def test_flags_choose_kernels_and_checkpoints_what_is_narrow() -> None:
    def framework(**cells: str) -> FrameworkProfile:
        found = serving_framework(_row(gpu="B200", gemm_quant_mode="", moe_quant_mode="", **cells))
        assert found is not None
        return found

    gated = {"backend": "sglang", "model": "Qwen/Qwen3.5-397B-A17B"}
    told, free = (framework(**gated, precision="fp8", backend_version=v) for v in ("0.5.9", "0.5.10.post1"))
    assert told.product_flop_per_s
    assert not free.product_flop_per_s
    assert set(told.product_flop_per_s) == {f"gemm/{told.half_products}"}
    narrow = framework(**gated, precision="fp4", backend_version="0.5.10.post1")
    assert (narrow.half_products, narrow.expert_products) == ("same", "nvfp4")


def test_keys_are_kept_as_the_launch_script_or_the_weights_say() -> None:
    def cache(**cells: str) -> str:
        framework = serving_framework(_row(gpu="B200", model="MiniMaxAI/MiniMax-M2.5", **cells))
        assert framework is not None
        return framework.cache_dtype

    assert cache(precision="fp8", backend_version="0.17.0") == "same"
    assert cache(precision="fp8", backend_version="0.19.0") == "fp8"
    assert cache(precision="fp4", backend_version="0.17.0") == "fp8"


def test_load_and_products_follow_the_wording() -> None:
    load = serving_load(_row(), 2)
    assert not isinstance(load, str)
    assert (load.clients, load.prompt_len, load.output_len) == (4, 1024, 1024)
    assert load.lengths == (0.8, 1.0)
    framework = serving_framework(_row(moe_quant_mode="nvfp4"))
    assert framework is not None
    assert (framework.half_products, framework.expert_products) == ("fp8", "nvfp4")
    blocks = serving_framework(_row(model="deepseek-ai/DeepSeek-R1"))
    assert blocks is not None
    assert blocks.half_products == "fp8_block"
    assert served_config(_row(model="moonshotai/Kimi-K2.5"))["n_routed_experts"] == 384  # type: ignore[index]


def test_load_follows_how_a_version_was_run() -> None:
    def load(**cells: str) -> Load:
        found = serving_load(_row(**cells), 1)
        assert not isinstance(found, str)
        return found

    guessing = load(backend="trtllm", backend_version="1.2.0rc6.post3")
    assert guessing.draft_tokens >= guessing.accepted_tokens - 1 > 0
    assert load(backend="trtllm", backend_version="1.2.0rc6.post2").accepted_tokens == 1.0
    polls = [load(backend="sglang", concurrency=str(n)).poll_steps for n in (8, 16)]
    assert polls == sorted(polls)
    assert polls[0] > load(backend="vllm").poll_steps == 1
    assert load(backend_version="0.19.0", gpu="B200", model="MiniMaxAI/MiniMax-M2.5").pass_tokens == 2048
    large = load(
        backend="trtllm", backend_version="1.1.0rc2", model="deepseek-ai/DeepSeek-R1", concurrency="64"
    )
    assert 64 + 1024 < large.pass_tokens < 1.2 * (64 + 1024)
    waiting, wide = (
        load(backend="trtllm", backend_version="", model="meta-llama/Llama-3.1-70B", tp_size=tp)
        for tp in "28"
    )
    assert waiting.wait_steps > wide.wait_steps == 0
    cold, small, warm = (
        load(backend="sglang", backend_version=version, precision="fp4", concurrency=clients).start_s
        for version, clients in (("", "64"), ("", "4"), ("0.5.9", "64"))
    )
    assert cold > small > warm == 0.0
    balanced = serving_load(_row(backend="trtllm", concurrency="64"), 8)
    assert not isinstance(balanced, str)
    assert balanced.poll_steps > load(backend="trtllm").poll_steps == 1


def test_a_launch_changes_the_framework_beside_what_passes_cost() -> None:
    row = _row(backend="trtllm", gemm_quant_mode="")
    framework, load = serving_framework(row), serving_load(row, 1)
    assert framework is not None
    assert not isinstance(load, str)
    launched = as_launched(row, framework, load)
    assert 0.0 < launched.frontend_token_s < framework.frontend_token_s
    assert launched.model_copy(update={"frontend_token_s": framework.frontend_token_s}) == framework


def test_memory_left_for_requests_follows_the_backend() -> None:
    def room(backend: str, parameters: float) -> float:
        return cache_room_bytes(_row(backend=backend), device_bytes=100e9, parameter_bytes=parameters)

    assert room("vllm", 95e9) < 0 < room("trtllm", 95e9) < 5e9
    assert room("vllm", 10e9) == pytest.approx(room("vllm", 0.0) - 10e9)
