"""`foreshard infer`: a batch of requests, or one forward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import (
    Framework,
    Hardware,
    Host,
    Json,
    Model,
    Overrides,
    PlanText,
    Seq,
    TrustRemoteCode,
)

if TYPE_CHECKING:
    from costmodel.predict.inference import ForwardCost, InferencePrediction
    from costmodel.predict.serving import ServingPrediction

__all__ = ["command"]


def command(
    model: Model,
    hardware: Hardware,
    plan: PlanText = "dp1",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples a replica answers together.")] = 1,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Tokens of each prompt.")] = None,
    output: Annotated[int | None, typer.Option("--output", min=1, help="Tokens generated for each.")] = None,
    seq: Seq = None,
    framework: Framework = "pytorch-bf16",
    cache: Annotated[
        str | None, typer.Option("--cache", help="Type of keys and values: same (as activations) or fp8.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Continuous batching: requests per second.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Continuous batching: clients at once.")
    ] = None,
    paged: Annotated[
        bool, typer.Option("--paged/--contiguous", help="How keys and values are kept while batching.")
    ] = True,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Forward passes in a row (denoising steps).")
    ] = 1,
    host: Host = None,
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Predict inference: with --prompt and --output time to first token, per token and of the whole answer;
    with --rate or --concurrency of requests that keep coming; without any, one forward pass."""
    from costmodel.predict.serving import ServingPrediction
    from planner import api

    answer = api.infer(
        model,
        hardware=hardware,
        plan=plan,
        batch_size=batch,
        prompt_len=prompt,
        output_len=output,
        seq_len=seq,
        framework=framework,
        cache_dtype=cache,
        rate_per_s=rate,
        concurrency=concurrency,
        paged=paged,
        steps=steps,
        host=host,
        overrides=set_,
        trust_remote_code=trust_remote_code,
    )
    if json:
        from planner.render import print_json

        print_json(answer.to_dict())
        return
    if isinstance(answer, ServingPrediction):
        _show_serving(model, hardware, answer)
    else:
        _show(model, hardware, answer, "a forward pass" if steps == 1 else f"{steps} forward passes")
    from planner.render import print_warnings

    print_warnings(answer.warnings)


def _show_serving(model: str, hardware: str, answer: ServingPrediction) -> None:
    from planner.render import bytes_text, duration, per_second

    print(
        f"{model} on {hardware} as {answer.plan}: {answer.rate_per_s:.4g} requests/s of "
        f"{answer.prompt_len} + {answer.output_len} tokens, {answer.concurrency:.1f} running "
        f"(up to {answer.most_running} fit)"
    )
    print(
        f"first token {duration(answer.time_to_first_token_s)}, each other "
        f"{duration(answer.time_per_output_token_s)}, an answer {duration(answer.latency_s)}, "
        f"{per_second(answer.tokens_per_s)} tokens/s; at most {answer.capacity_per_s:.4g} requests/s"
    )
    print(f"memory per rank: {_parts(answer)} of {bytes_text(answer.device_memory_bytes)}")


def _parts(answer: ServingPrediction | InferencePrediction) -> str:
    from planner.render import bytes_text

    return (
        f"parameters {bytes_text(answer.parameter_bytes)}, cache {bytes_text(answer.kv_cache_bytes)}, "
        f"activations {bytes_text(answer.activation_bytes)}, libraries {bytes_text(answer.overhead_bytes)}"
    )


def _show(model: str, hardware: str, answer: InferencePrediction | ForwardCost, what: str) -> None:
    from costmodel.predict.inference import InferencePrediction
    from planner.render import bytes_text, duration, per_second, percent, print_table

    low_s, high_s = answer.interval_s
    print(
        f"{model} on {hardware}: {duration(answer.time_s)} [{duration(low_s)} .. {duration(high_s)}] "
        + ("an answer" if isinstance(answer, InferencePrediction) else what)
    )
    print_table(
        ["part", "time", "share"],
        [
            [part, duration(seconds), percent(seconds / answer.time_s)]
            for part, seconds in answer.breakdown_s.items()
            if seconds > 0
        ],
        title="where the time goes",
    )
    if isinstance(answer, InferencePrediction):
        replicas = f" on each of {answer.plan.dp} replicas" if answer.plan.dp > 1 else ""
        print(
            f"{answer.plan}, batch {answer.batch_size}{replicas}, {answer.prompt_len} tokens in, "
            f"{answer.output_len} out: first token {duration(answer.time_to_first_token_s)}, each other "
            f"{duration(answer.time_per_output_token_s)}, {per_second(answer.tokens_per_s)} tokens/s"
        )
        verdict = "fits" if answer.fits else "DOES NOT FIT"
        print(f"memory per rank: {_parts(answer)}: {verdict} in {bytes_text(answer.device_memory_bytes)}")
