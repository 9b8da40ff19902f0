"""`infer`: from a model argument to answers, or to forward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from costmodel.errors import UsageError

if TYPE_CHECKING:
    from costmodel.predict.inference import ForwardCost, InferencePrediction
    from costmodel.predict.serving import ServingPrediction

__all__ = ["infer"]


def infer(
    model: str,
    *,
    hardware: str,
    plan: str = "dp1",
    batch_size: int = 1,
    prompt_len: int | None = None,
    output_len: int | None = None,
    seq_len: int | None = None,
    framework: str = "pytorch-bf16",
    cache_dtype: str | None = None,
    rate_per_s: float | None = None,
    concurrency: int | None = None,
    paged: bool = True,
    steps: int = 1,
    host: str | None = None,
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> InferencePrediction | ServingPrediction | ForwardCost:
    """Requests of `prompt_len` tokens answered with `output_len` each; without both, one forward pass.

    `cache_dtype`: same (as activations) or fp8, instead of the framework's. `rate_per_s` or `concurrency`:
    continuous batching at a steady rate, or for so many clients, its cache in pages or contiguous.
    `steps`: forward passes in a row (the denoising steps of a diffusion model).

    Raises UsageError where only one of the two is given or what is asked for would not read an option,
    PlanError where the model cannot be run so.
    """
    from costmodel.framework import load_framework
    from costmodel.hardware.host_machine import load_host
    from costmodel.hardware.store import load_profile
    from costmodel.predict.inference import InferenceForecaster
    from costmodel.predict.serving import serve
    from planner import api

    if (prompt_len is None) != (output_len is None):
        raise UsageError("--prompt and --output go together; without both, one forward pass is predicted")
    arriving = rate_per_s is not None or concurrency is not None
    if prompt_len is not None:
        _refuse_unread(seq_len=seq_len, steps=steps, batch_size=batch_size if arriving else 1)
    name, _, variant = hardware.partition(":")
    source = api.model_source(
        model,
        seq_len=prompt_len or seq_len,
        overrides=overrides,
        training=False,
        trust_remote_code=trust_remote_code,
    )
    chosen = load_framework(framework)
    if cache_dtype is not None:
        if cache_dtype not in ("same", "fp8"):
            raise UsageError(f"cache type {cache_dtype!r}: must be same or fp8")
        chosen = chosen.model_copy(update={"cache_dtype": cache_dtype})
    inference = InferenceForecaster(
        source=source,
        profile=load_profile(name),
        framework=chosen,
        network_variant=variant or None,
        host=load_host(host) if host else None,
    )
    parsed = api.parse_plan(plan)
    answer: InferencePrediction | ServingPrediction | ForwardCost
    if prompt_len is None or output_len is None:
        if arriving:
            raise UsageError("--rate and --concurrency need --prompt and --output")
        answer = inference.forward(parsed, batch_size=batch_size).times(steps)
        return replace(answer, warnings=inference.warnings(source.seq_len, tp=parsed.tp))
    lengths = {"prompt_len": prompt_len, "output_len": output_len}
    if arriving:
        answer = serve(
            inference, parsed, **lengths, rate_per_s=rate_per_s, concurrency=concurrency, paged=paged
        )
    else:
        answer = inference.generate(parsed, batch_size=batch_size, **lengths)
    known = inference.warnings(prompt_len + output_len, tp=parsed.tp)
    return replace(answer, warnings=(*answer.warnings, *known))


def _refuse_unread(*, seq_len: int | None, steps: int, batch_size: int) -> None:
    """What answers do not read: given, it would be ignored. Raises UsageError."""
    if seq_len is not None:
        raise UsageError(
            f"--seq {seq_len} beside --prompt: the sequence of an answer is its prompt and its output; leave "
            "--seq out, or ask for one forward pass (without --prompt and --output)"
        )
    if steps != 1:
        raise UsageError(
            f"--steps {steps} beside --prompt: an answer has a pass for each of its tokens; leave --steps "
            "out, or ask for forward passes (without --prompt and --output)"
        )
    if batch_size != 1:
        raise UsageError(
            f"--batch {batch_size} beside --rate or --concurrency: which requests run together follows from "
            "when they come; leave one of the two out"
        )
