"""The verbs of `foreshard size` as Python calls: names and texts in, sizes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from costmodel.errors import UsageError

if TYPE_CHECKING:
    from planner.serving_size import ServingSize
    from planner.sizing import Sizing

__all__ = ["parse_duration", "size_for_serving", "size_for_training"]

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def parse_duration(text: str) -> float:
    """`30d`, `12h`, `90m`, `45s`, `2w` to seconds. Raises UsageError.

    >>> parse_duration("1.5h")
    5400.0
    """
    unit = _UNITS_S.get(text[-1:].lower())
    try:
        seconds = float(text[:-1]) * unit if unit else math.nan
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise UsageError(
            f"--deadline {text!r}: must be a time above zero with its unit, for example 30d or 12h"
        )
    return seconds


def _names(hardware: str | Sequence[str]) -> list[str]:
    from planner.whatif.scaling import split_names

    return split_names(hardware) if isinstance(hardware, str) else list(hardware)


def _as_prices(prices: Sequence[str] | Mapping[str, float] | None) -> dict[str, float]:
    from planner.prices import parse_prices

    if isinstance(prices, Mapping):
        return parse_prices([f"{name}={usd}" for name, usd in prices.items()])
    return parse_prices(prices)


def size_for_training(
    model: str,
    *,
    hardware: str | Sequence[str],
    global_batch_size: int,
    tokens: float | None = None,
    samples: float | None = None,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
    confidence: float = 0.9,
    prices: Sequence[str] | Mapping[str, float] | None = None,
    goodput_fraction: float = 1.0,
    pue: float | None = None,
    most_devices: int = 16384,
    seq_len: int | None = None,
    framework: str = "pytorch-bf16",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Sizing:
    """Fewest devices and cheapest way to train `tokens` (or `samples`) within the limits.

    Raises InfeasibleError, with the nearest change, where no count tried meets them; UsageError.
    """
    from planner import api
    from planner.objectives import Terms
    from planner.prices import price_of
    from planner.sizing import Goal, size_training

    names, own = _names(hardware), _as_prices(prices)
    goal = Goal(deadline_s=deadline_s, budget_usd=budget_usd, confidence=confidence)
    amount = Terms(tokens=tokens, samples=samples, goodput_fraction=goodput_fraction, pue=pue)
    forecasters, terms, sources = {}, {}, {}
    for name in names:
        price = price_of(name, own)
        forecasters[name] = api.forecaster(
            model,
            hardware=name,
            seq_len=seq_len,
            framework=framework,
            optimizer=optimizer,
            overrides=overrides,
            trust_remote_code=trust_remote_code,
        )
        terms[name] = replace(
            amount,
            usd_per_hour=None if price is None else price.usd_per_hour,
            board_w=forecasters[name].profile.device.power_w,
        )
        sources[name] = "no price known" if price is None else price.text
    sized = size_training(
        forecasters,
        goal=goal,
        terms=terms,
        global_batch_size=global_batch_size,
        most_devices=most_devices,
    )
    return replace(sized, prices=sources)


def size_for_serving(
    model: str,
    *,
    hardware: str | Sequence[str],
    rate_per_s: float,
    prompt_len: int,
    output_len: int,
    ttft_s: float | None = None,
    tpot_s: float | None = None,
    confidence: float = 0.9,
    prices: Sequence[str] | Mapping[str, float] | None = None,
    framework: str = "pytorch-bf16",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> ServingSize:
    """Fewest devices and cheapest way to serve a rate of requests of one shape within limits of latency.

    Raises InfeasibleError, with the nearest change, where no shape of replica meets them; UsageError.
    """
    from costmodel.framework import load_framework
    from costmodel.hardware.store import load_profile
    from costmodel.predict.inference import InferenceForecaster
    from planner import api
    from planner.prices import price_of
    from planner.serving_size import LatencyGoal, size_serving

    goal = LatencyGoal(rate_per_s=rate_per_s, ttft_s=ttft_s, tpot_s=tpot_s, confidence=confidence)
    own = _as_prices(prices)
    source = api.model_source(
        model,
        seq_len=prompt_len,
        overrides=overrides,
        training=False,
        trust_remote_code=trust_remote_code,
    )
    forecasters, known = {}, {}
    for name in _names(hardware):
        profile, _, variant = name.partition(":")
        forecasters[name] = InferenceForecaster(
            source=source,
            profile=load_profile(profile),
            framework=load_framework(framework),
            network_variant=variant or None,
        )
        if (price := price_of(name, own)) is not None:
            known[name] = price.usd_per_hour
    return size_serving(forecasters, goal=goal, prompt_len=prompt_len, output_len=output_len, prices=known)
