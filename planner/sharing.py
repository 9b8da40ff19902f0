"""Unequal devices that train one batch together, by the names of their profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from costmodel.errors import UsageError

if TYPE_CHECKING:
    from costmodel.predict.uneven import UnevenPrediction

__all__ = ["parse_devices", "share"]


def parse_devices(text: str) -> list[tuple[str, int]]:
    """`t4*2,core-i7-13700` to (profile, count). Raises UsageError."""
    found = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, count = part.partition("*")
        if count and not (count.isdigit() and int(count) > 0):
            raise UsageError(f"--devices {text!r}: {part!r} must be a profile, or profile*count")
        found.append((name, int(count or 1)))
    if not found:
        raise UsageError(f"--devices {text!r}: give at least one profile, for example t4*2,core-i7-13700")
    return found


def share(
    model: str,
    *,
    devices: str,
    global_batch_size: int,
    prefetch: bool = True,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> UnevenPrediction:
    """Unequal devices that train one batch together: the shares with the shortest step, and that step."""
    from costmodel.predict.uneven import DeviceGroup, predict_uneven
    from planner.api import forecaster

    groups = [
        DeviceGroup(
            forecaster=forecaster(
                model,
                hardware=name,
                seq_len=seq_len,
                framework=framework,
                optimizer=optimizer,
                overrides=overrides,
                trust_remote_code=trust_remote_code,
            ),
            count=count,
        )
        for name, count in parse_devices(devices)
    ]
    return predict_uneven(groups, global_batch_size, prefetch=prefetch)
