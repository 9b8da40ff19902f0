"""What-if studies: the planner asked again with other counts, devices and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import ForeshardError, InfeasibleError, UsageError

if TYPE_CHECKING:
    from costmodel.predict import Prediction

__all__ = ["ScalingPoint", "scaling", "split_counts", "split_names"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    """The best plan of one device at one count; `reason` where there is none."""

    hardware: str
    n_devices: int
    global_batch_size: int
    prediction: Prediction | None
    efficiency: float | None
    reason: str = ""

    @property
    def dominant(self) -> str:
        """The largest part of the step besides computing."""
        if self.prediction is None:
            return "-"
        rest = {k: v for k, v in self.prediction.breakdown_s.items() if k not in ("compute", "recompute")}
        name, seconds = max(rest.items(), key=lambda item: item[1], default=("-", 0.0))
        return name if seconds > 0 else "compute"

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "hardware": self.hardware,
            "n_devices": self.n_devices,
            "global_batch_size": self.global_batch_size,
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "efficiency": self.efficiency,
            "dominant": self.dominant,
            "reason": self.reason,
        }


def split_names(text: str) -> list[str]:
    """`a,b` to names. Raises UsageError where there is none."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"--hardware {text!r}: give at least one profile name")
    return names


def split_counts(text: str) -> list[int]:
    """`8,64` to counts. Raises UsageError for anything that is no positive whole number."""
    counts = []
    for part in text.split(","):
        if not part.strip().isdigit() or int(part) < 1:
            raise UsageError(
                f"--gpus {text!r}: {part!r} is not a positive whole number; for example 8,64,512"
            )
        counts.append(int(part))
    return counts


def scaling(
    model: str,
    *,
    hardware: Sequence[str],
    n_devices: Sequence[int],
    global_batch_size: int,
    weak: bool = False,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> list[ScalingPoint]:
    """Best plan per hardware and count. A combination with no feasible plan keeps its reason."""
    from planner import api
    from planner.search import search

    points: list[ScalingPoint] = []
    for name in hardware:
        forecaster = api.forecaster(
            model,
            hardware=name,
            seq_len=seq_len,
            framework=framework,
            optimizer=optimizer,
            overrides=overrides,
            trust_remote_code=trust_remote_code,
        )
        base: float | None = None
        for count in n_devices:
            batch = global_batch_size * count // n_devices[0] if weak else global_batch_size
            try:
                best = search(forecaster, n_devices=count, global_batch_size=batch).ranked[0].prediction
            except (InfeasibleError, UsageError) as error:
                points.append(
                    ScalingPoint(
                        hardware=name,
                        n_devices=count,
                        global_batch_size=batch,
                        prediction=None,
                        efficiency=None,
                        reason=str(error),
                    )
                )
                continue
            per_device = best.samples_per_s / count
            base = base or per_device
            points.append(
                ScalingPoint(
                    hardware=name,
                    n_devices=count,
                    global_batch_size=batch,
                    prediction=best,
                    efficiency=per_device / base,
                )
            )
    if all(p.prediction is None for p in points):
        raise ForeshardError("; ".join(sorted({p.reason for p in points})))
    return points
