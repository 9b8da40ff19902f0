"""What-if studies: the planner asked again with other counts, devices, speeds, sizes and prices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from typing import TYPE_CHECKING, Any

from costmodel.errors import ForeshardError, InfeasibleError, UsageError
from planner.whatif.levers import LEVERS, require_factor
from planner.whatif.sweep import Setting, forecast_all
from planner.whatif.terms import largest, terms_s

if TYPE_CHECKING:
    from costmodel.predict import Prediction

__all__ = ["ScalingPoint", "parse_axes", "scaling", "settings_of", "split_counts", "split_names"]

_WHOLE = ("batch", "seq")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingPoint:
    """The best plan of one device at one count; `reason` where there is none."""

    hardware: str
    n_devices: int
    global_batch_size: int
    prediction: Prediction | None
    efficiency: float | None
    """Throughput per device against that of the first count on the same curve."""
    reason: str = ""
    varied: tuple[tuple[str, Any], ...] = ()
    """Further axes of the study: name -> value."""
    usd_per_hour: float | None = None
    """Price of one device."""
    setting: Setting | None = None
    """What was asked."""

    @property
    def dominant(self) -> str:
        """The largest part of the step besides computing."""
        if self.prediction is None:
            return "-"
        rest = {k: v for k, v in self.prediction.breakdown_s.items() if k not in ("compute", "recompute")}
        name, seconds = max(rest.items(), key=lambda item: item[1], default=("-", 0.0))
        return name if seconds > 0 else "compute"

    @property
    def limit(self) -> str:
        """The largest term of the step (see `terms`)."""
        return "-" if self.prediction is None else largest(self.prediction.breakdown_s)

    @property
    def usd_per_sample(self) -> float | None:
        """Price of the devices over throughput."""
        if self.prediction is None or self.usd_per_hour is None:
            return None
        return self.usd_per_hour / 3600.0 * self.n_devices / self.prediction.samples_per_s

    def to_dict(self) -> dict[str, Any]:
        """Plain fields."""
        return {
            "hardware": self.hardware,
            "n_devices": self.n_devices,
            "global_batch_size": self.global_batch_size,
            "varied": dict(self.varied),
            "prediction": None if self.prediction is None else self.prediction.to_dict(),
            "terms_s": None if self.prediction is None else terms_s(self.prediction.breakdown_s),
            "efficiency": self.efficiency,
            "dominant": self.dominant,
            "limit": self.limit,
            "usd_per_hour": self.usd_per_hour,
            "usd_per_sample": self.usd_per_sample,
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


def parse_axes(texts: Sequence[str] | None) -> dict[str, list[Any]]:
    """`["inter_link=0.5,1,2", "seq=2048,4096"]` to axis -> values.

    An axis is `batch`, `seq`, `price` (USD per device-hour), a lever (factors), or a name of the model's own
    configuration (width, depth, ...). Raises UsageError on an axis without values, given twice, or whose
    values cannot be.
    """
    from planner.api import parse_overrides

    axes: dict[str, list[Any]] = {}
    for text in texts or ():
        name, equals, rest = text.partition("=")
        parts = [part.strip() for part in rest.split(",") if part.strip()]
        if not equals or not name or not parts:
            raise UsageError(f"--vary {text!r}: must be name=value,value, for example inter_link=0.5,1,2")
        if name in axes:
            raise UsageError(f"--vary {name}: given twice; list all its values behind one {name}=")
        speeds = [str(lever) for lever in LEVERS]
        if name not in LEVERS and (near := get_close_matches(name, speeds, n=1, cutoff=0.8)):
            raise UsageError(
                f"--vary {name}: no such speed; did you mean {near[0]}? There are {', '.join(speeds)}"
            )
        values = [parse_overrides([f"{name}={part}"])[name] for part in parts]
        for value in values:
            if name in _WHOLE and not (isinstance(value, int) and value > 0):
                raise UsageError(f"--vary {text!r}: {value!r} is not a positive whole number")
            if name in LEVERS or name == "price":
                if not isinstance(value, (int, float)):
                    raise UsageError(f"--vary {text!r}: {value!r} is not a number")
                require_factor(f"--vary {name}", float(value))
        axes[name] = values
    return axes


def settings_of(
    base: Setting,
    *,
    hardware: Iterable[str],
    n_devices: Sequence[int],
    axes: Mapping[str, Sequence[Any]] | None = None,
    weak: bool = False,
) -> list[Setting]:
    """Every combination, counts running fastest. `weak`: the batch grows with the count from the first."""
    axes = axes or {}
    found = []
    for name, values, count in product(hardware, product(*axes.values()), n_devices):
        varied = dict(zip(axes, values, strict=True))
        batch = int(varied.get("batch", base.global_batch_size))
        overrides = dict(base.overrides)
        overrides.update({k: v for k, v in varied.items() if k not in LEVERS and k not in (*_WHOLE, "price")})
        found.append(
            replace(
                base,
                hardware=name,
                n_devices=count,
                global_batch_size=batch * count // n_devices[0] if weak else batch,
                seq_len=varied.get("seq", base.seq_len),
                overrides=tuple(overrides.items()),
                factors=tuple((k, float(v)) for k, v in varied.items() if k in LEVERS),
                varied=tuple(varied.items()),
            )
        )
    return found


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
    vary: Mapping[str, Sequence[Any]] | None = None,
    plan: str | None = None,
    prices: Mapping[str, float] | None = None,
    n_jobs: int = 1,
) -> list[ScalingPoint]:
    """Best plan (or the one given) per hardware, count and value of every further axis.

    `prices`: hardware as asked -> USD per device-hour. A combination with no feasible plan keeps its reason;
    where none has one, InfeasibleError or UsageError with the reasons is raised.
    """
    from planner.api import parse_overrides

    changes = dict(overrides) if isinstance(overrides, Mapping) else parse_overrides(overrides)
    base = Setting(
        model=model,
        hardware="",
        n_devices=1,
        global_batch_size=global_batch_size,
        seq_len=seq_len,
        framework=framework,
        optimizer=optimizer,
        overrides=tuple(changes.items()),
        plan=plan,
        trust_remote_code=trust_remote_code,
    )
    settings = settings_of(base, hardware=hardware, n_devices=n_devices, axes=vary, weak=weak)
    outcomes = forecast_all(settings, n_jobs=n_jobs)
    points: list[ScalingPoint] = []
    per_device: dict[tuple[Any, ...], float] = {}
    for setting, outcome in zip(settings, outcomes, strict=True):
        price = dict(setting.varied).get("price", (prices or {}).get(setting.hardware))
        efficiency = None
        if outcome.prediction is not None:
            rate = outcome.prediction.samples_per_s / setting.n_devices
            efficiency = rate / per_device.setdefault((setting.hardware, setting.varied), rate)
        points.append(
            ScalingPoint(
                hardware=setting.hardware,
                n_devices=setting.n_devices,
                global_batch_size=setting.global_batch_size,
                prediction=outcome.prediction,
                efficiency=efficiency,
                reason=outcome.reason,
                varied=setting.varied,
                usd_per_hour=None if price is None else float(price),
                setting=setting,
            )
        )
    if all(p.prediction is None for p in points):
        reasons = "; ".join(sorted({p.reason for p in points}))
        kind: type[ForeshardError] = InfeasibleError if all(o.infeasible for o in outcomes) else UsageError
        raise kind(reasons)
    return points
