"""What a decision hangs on, as a list of operators, collectives and costs of a machine to measure.

The planner writes it (it knows plans), calibration reads it (it knows cases); JSON in between. `weights`
of an item are d ln(step time) / d ln(its time) for each contender.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from costmodel.errors import InputFileError

__all__ = ["CONSTANT", "SURE", "Item", "Wanted", "item_name", "read_wanted"]

CONSTANT = "constant"
"""Kind of an item that is one figure of the profile (a host cost, overlap, contention), by its name."""

SURE = 0.95
"""P(one plan is faster than another) at which the two are told apart, and measuring ends."""

# Format history:
#   1  first format
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing to measure: an operator or collective at one size, or a constant of the machine.

    `predicted_s`, `log_sigma`: what the base profile says of it, and the spread of ln of that. `together`:
    items of one name are priced by one fit and err together. `is_time`: it is longer on a slower machine (a
    ratio is not). `images`: see `benchmarks.exact`.
    """

    kind: str
    variant: str
    dtype: str
    dims: Mapping[str, int]
    predicted_s: float
    log_sigma: float
    weights: tuple[float, ...]
    together: str
    images: bool = False
    is_time: bool = True

    def __post_init__(self) -> None:
        for name in ("predicted_s", "log_sigma", *(f"weights {i}" for i in range(len(self.weights)))):
            word, _, place = name.partition(" ")
            value = self.weights[int(place)] if place else getattr(self, word)
            if not math.isfinite(value) or (word != "weights" and value < 0):
                raise ValueError(
                    f"{self.kind} {self.variant}: {name}={value} must be finite and not negative"
                )

    @property
    def name(self) -> str:
        """Equal for equal things."""
        return item_name(self)


class _Named(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def variant(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def dims(self) -> Mapping[str, int]: ...


def item_name(named: _Named) -> str:
    """The name of an item, or of the one that a sample is of."""
    sizes = ",".join(f"{k}={v}" for k, v in sorted(named.dims.items()))
    return "/".join((named.kind, named.variant, named.dtype, sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A decision among contenders (fastest first) and the items it hangs on.

    `machine_log_sigma`: spread of ln of how fast this machine is now, which all items share. `rest`:
    covariance [n][n] of ln(step time) that no item accounts for. `shared`: correlation of the errors of items
    that err together.
    """

    contenders: tuple[str, ...]
    step_times_s: tuple[float, ...]
    rest: tuple[tuple[float, ...], ...]
    shared: float
    machine_log_sigma: float
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        n = len(self.contenders)
        if n < 2:
            raise ValueError(f"{n} contenders: a decision needs at least 2")
        square = len(self.rest) == n and all(len(row) == n for row in self.rest)
        if len(self.step_times_s) != n or not square or any(len(i.weights) != n for i in self.items):
            raise ValueError(
                f"{n} contenders need {n} step times, an {n} x {n} rest and {n} weights per item"
            )
        if not (math.isfinite(self.machine_log_sigma) and self.machine_log_sigma >= 0):
            raise ValueError(f"machine_log_sigma({self.machine_log_sigma}): must be finite and not negative")
        if not 0.0 <= self.shared < 1.0:
            raise ValueError(f"shared({self.shared:g}): must be at least 0 and below 1, a correlation")

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, allow_nan=False)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read back. Raises KeyError, TypeError or ValueError on anything else."""
        items = tuple(Item(**{**item, "weights": tuple(item["weights"])}) for item in fields["items"])
        return cls(
            contenders=tuple(fields["contenders"]),
            step_times_s=tuple(fields["step_times_s"]),
            rest=tuple(tuple(row) for row in fields["rest"]),
            shared=fields["shared"],
            machine_log_sigma=fields["machine_log_sigma"],
            items=items,
        )


def read_wanted(path: Path) -> Wanted:
    """Read the file. Raises InputFileError where it is missing or not such a list."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] != _FORMAT:
            raise ValueError(f"format {fields['format']}, this version reads {_FORMAT}")
        return Wanted.from_fields(fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputFileError(f"{path}: not a list of wanted measurements: {error}") from error
