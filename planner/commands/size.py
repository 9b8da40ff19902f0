"""`foreshard size`: the fewest devices, or the least money, that meet a deadline, a budget or a latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.commands.options import Framework, Json, Model, Optimizer, Overrides, Seq, TrustRemoteCode

if TYPE_CHECKING:
    from planner.serving_size import ServingSize
    from planner.sizing import Sizing

__all__ = ["command"]


def command(
    model: Model,
    hardware: Annotated[str, typer.Option("--hardware", "-H", help="Profiles, separated by commas.")],
    tokens: Annotated[float | None, typer.Option("--tokens", help="Tokens to train, e.g. 1e12.")] = None,
    samples: Annotated[
        float | None, typer.Option("--samples", help="Samples to train (models without a sequence).")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global-batch", "-B", min=1, help="Samples per step (training).")
    ] = None,
    deadline: Annotated[str | None, typer.Option("--deadline", help="For example 30d, 12h.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="USD for all of it.")] = None,
    price: Annotated[
        list[str] | None,
        typer.Option("--price", help="NAME=USD per device-hour (repeatable); default: published offers."),
    ] = None,
    goodput: Annotated[
        float, typer.Option("--goodput", help="Share of the wall clock that trains: failures, restarts.")
    ] = 1.0,
    pue: Annotated[
        float | None, typer.Option("--pue", help="Energy of the building over that of its machines.")
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Probability with which limits are to be met.")
    ] = 0.9,
    max_gpus: Annotated[int, typer.Option("--max-gpus", min=1, help="Most devices to try.")] = 16384,
    rate: Annotated[float | None, typer.Option("--rate", help="Serving: requests per second.")] = None,
    prompt: Annotated[int | None, typer.Option("--prompt", min=1, help="Serving: tokens asked.")] = None,
    output: Annotated[int | None, typer.Option("--output", min=2, help="Serving: tokens answered.")] = None,
    ttft: Annotated[
        float | None, typer.Option("--ttft", help="Serving: seconds to the first token, at most.")
    ] = None,
    tpot: Annotated[
        float | None, typer.Option("--tpot", help="Serving: seconds per further token, at most.")
    ] = None,
    seq: Seq = None,
    framework: Framework = "pytorch-bf16",
    optimizer: Optimizer = "adamw",
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """The smallest GPU count and the cheapest way: with --tokens (or --samples) to train so much by a
    deadline and within a budget; with --rate, --prompt and --output to serve within limits of latency."""
    from costmodel.errors import UsageError
    from planner import sizes
    from planner.render import print_json

    if any(value is not None for value in (rate, prompt, output)):
        if rate is None or prompt is None or output is None or tokens or samples:
            raise UsageError("serving takes --rate, --prompt and --output together, and no --tokens")
        if deadline is not None or budget is not None or global_batch is not None:
            raise UsageError("--deadline, --budget and --global-batch are of training: leave them out")
        served = sizes.size_for_serving(
            model,
            hardware=hardware,
            rate_per_s=rate,
            prompt_len=prompt,
            output_len=output,
            ttft_s=ttft,
            tpot_s=tpot,
            confidence=confidence,
            prices=price,
            framework=framework,
            overrides=set_,
            trust_remote_code=trust_remote_code,
        )
        if json:
            print_json(served.to_dict())
        else:
            _show_serving(model, served)
        return
    if global_batch is None or (tokens is None) == (samples is None):
        raise UsageError(
            "training takes --global-batch and one of --tokens and --samples; "
            "serving takes --rate, --prompt and --output"
        )
    if ttft is not None or tpot is not None:
        raise UsageError("--ttft and --tpot are of serving: they need --rate, --prompt and --output")
    sized = sizes.size_for_training(
        model,
        hardware=hardware,
        global_batch_size=global_batch,
        tokens=tokens,
        samples=samples,
        deadline_s=None if deadline is None else sizes.parse_duration(deadline),
        budget_usd=budget,
        confidence=confidence,
        prices=price,
        goodput_fraction=goodput,
        pue=pue,
        most_devices=max_gpus,
        seq_len=seq,
        framework=framework,
        optimizer=optimizer,
        overrides=set_,
        trust_remote_code=trust_remote_code,
    )
    if json:
        print_json(sized.to_dict())
    else:
        _show_training(model, sized)


def _show_training(model: str, sized: Sizing) -> None:
    from planner.render import duration, energy_text, money, percent, print_table, print_warnings

    def span(ends: tuple[float, float] | None) -> str:
        return "-" if ends is None else f"{duration(ends[0])} .. {duration(ends[1])}"

    print_table(
        [
            "hardware",
            "GPUs",
            "best plan",
            "time",
            "90 % interval",
            "cost",
            "energy",
            "P(deadline)",
            "P(budget)",
        ],
        [
            [
                c.hardware,
                str(c.n_devices),
                str(c.prediction.plan) if c.prediction else c.reason,
                duration(c.time_s),
                span(c.interval(c.time_s)),
                money(c.cost_usd),
                energy_text(c.energy_j),
                percent(c.p_deadline),
                percent(c.p_budget),
            ]
            for c in sized.candidates
        ],
        title=f"{model}: counts tried",
        caption="; ".join(f"{name}: {text}" for name, text in sized.prices.items()),
    )
    for what, c in (("fewest GPUs", sized.fewest), ("cheapest", sized.cheapest)):
        if c is not None and c.prediction is not None:
            print(
                f"{what}: {c.n_devices} x {c.hardware} as {c.prediction.plan}, {duration(c.time_s)}, "
                f"{money(c.cost_usd)}, met with probability {percent(c.probability)}"
            )
    print_warnings(sized.warnings)


def _show_serving(model: str, served: ServingSize) -> None:
    from planner.render import duration, money, print_table, print_warnings

    print_table(
        [
            "hardware",
            "replica",
            "GPUs",
            "replicas",
            "rate each",
            "first token",
            "per token",
            "cost/h",
            "why not",
        ],
        [
            [
                r.hardware,
                str(r.plan),
                "-" if r.n_devices is None else str(r.n_devices),
                "-" if r.n_replicas is None else str(r.n_replicas),
                "-" if r.n_replicas is None else f"{r.rate_per_s:.3g}/s",
                duration(r.prediction.time_to_first_token_s) if r.prediction else "-",
                duration(r.prediction.time_per_output_token_s) if r.prediction else "-",
                money(r.usd_per_hour),
                r.reason,
            ]
            for r in served.replicas
        ],
        title=f"{model}: {served.goal.rate_per_s:g} requests/s within the limits",
        caption="rate each: the highest that one replica holds within them; times at its share of the rate",
    )
    for what, r in (("fewest GPUs", served.fewest), ("cheapest", served.cheapest)):
        if r is not None:
            print(f"{what}: {r.n_devices} x {r.hardware}, {r.n_replicas} replicas as {r.plan}")
    print_warnings(served.warnings)
