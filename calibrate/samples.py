"""SampleTable: measured times of one operator kind, as columns.

>>> import numpy as np
>>> table = SampleTable.of(
...     "gemm", {"m": [8, 16], "n": [64, 64], "k": [64, 64]}, time_s=[1e-5, 2e-5],
...     variant="nt", dtype="fp32", timing="eager_loop", device="cpu", source="own", framework="torch",
... )
>>> len(table), table.shape_ids().tolist()
(2, [0, 1])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from costmodel.errors import MeasurementError
from costmodel.estimate import FloatArray
from costmodel.hardware.kinds import OPERATOR_KINDS

__all__ = ["SampleGroup", "SampleTable", "StrArray"]

StrArray = NDArray[np.str_]
_LABELS = ("variant", "dtype", "timing", "device", "source", "framework")


class SampleGroup(NamedTuple):
    """What one fit may hold: ways of timing never mix, nor do devices."""

    device: str
    variant: str
    dtype: str
    timing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleTable:
    """Rows of one operator kind; every array has the same length.

    `timing`: how the time was taken (cuda_graph, event_eager, kernel_only, eager_loop, ...). `row_id`: the
    row's name in its file. `spread`: interquartile range over median of the repeats, 0 where unknown.
    """

    kind: str
    dims: Mapping[str, FloatArray]
    time_s: FloatArray
    variant: StrArray
    dtype: StrArray
    timing: StrArray
    device: StrArray
    source: StrArray
    framework: StrArray
    row_id: StrArray
    spread: FloatArray

    def __post_init__(self) -> None:
        if self.kind not in OPERATOR_KINDS:
            raise MeasurementError(
                f"unknown operator kind {self.kind!r}; there are: {', '.join(OPERATOR_KINDS)}"
            )
        if tuple(self.dims) != OPERATOR_KINDS[self.kind].dims:
            raise MeasurementError(
                f"{self.kind} samples have sizes {tuple(self.dims)}, "
                f"expected {OPERATOR_KINDS[self.kind].dims}"
            )
        lengths = {len(a) for a in (*self.dims.values(), *(getattr(self, name) for name in self._columns()))}
        if len(lengths) != 1:
            raise MeasurementError(f"columns of {self.kind} samples differ in length: {sorted(lengths)}")
        if not np.all((self.time_s > 0) & np.isfinite(self.time_s)):
            raise MeasurementError(f"{self.kind} samples: every time_s must be positive and finite")

    @staticmethod
    def _columns() -> tuple[str, ...]:
        return ("time_s", *_LABELS, "row_id", "spread")

    @classmethod
    def of(
        cls,
        kind: str,
        dims: Mapping[str, ArrayLike],
        *,
        time_s: ArrayLike,
        variant: str | Sequence[str],
        dtype: str | Sequence[str],
        timing: str | Sequence[str],
        device: str | Sequence[str],
        source: str | Sequence[str] = "",
        framework: str | Sequence[str] = "",
        row_id: Sequence[str] | None = None,
        spread: ArrayLike | None = None,
    ) -> Self:
        """A table from plain sequences; a single string stands for the whole column.

        Sizes that the kind has and `dims` lacks are 1 for `batch`/`groups`, else 0.
        """
        times = np.asarray(time_s, dtype=np.float64)
        n = len(times)

        def label(value: str | Sequence[str]) -> StrArray:
            return np.full(n, value) if isinstance(value, str) else np.asarray(value, dtype=np.str_)

        known = OPERATOR_KINDS[kind].dims if kind in OPERATOR_KINDS else tuple(dims)
        columns = {
            name: np.asarray(
                dims.get(name, np.full(n, 1.0 if name in ("batch", "groups") else 0.0)), dtype=np.float64
            )
            for name in known
        }
        return cls(
            kind=kind,
            dims=columns,
            time_s=times,
            variant=label(variant),
            dtype=label(dtype),
            timing=label(timing),
            device=label(device),
            source=label(source),
            framework=label(framework),
            row_id=label([str(i + 1) for i in range(n)] if row_id is None else row_id),
            spread=np.zeros(n) if spread is None else np.asarray(spread, dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.time_s)

    def take(self, index: NDArray[Any]) -> Self:
        """Rows by boolean mask or position."""
        columns = {name: getattr(self, name)[index] for name in self._columns()}
        return type(self)(kind=self.kind, dims={k: v[index] for k, v in self.dims.items()}, **columns)

    def groups(self) -> Iterator[tuple[SampleGroup, Self]]:
        """Each (device, variant, dtype, timing) with its rows, sorted by name."""
        names = ("device", "variant", "dtype", "timing")
        keys = np.array([getattr(self, name) for name in names]).T.reshape(len(self), len(names))
        unique, inverse = np.unique(keys, axis=0, return_inverse=True)
        for number, key in enumerate(unique):
            yield SampleGroup(*map(str, key)), self.take(np.flatnonzero(inverse.reshape(-1) == number))

    def shape_ids(self) -> NDArray[np.int64]:
        """Number [n] of each row's shape: rows with equal sizes share one, whoever measured them."""
        sizes = np.stack(list(self.dims.values()), axis=1)
        _, inverse = np.unique(sizes, axis=0, return_inverse=True)
        return np.asarray(inverse, dtype=np.int64).reshape(-1)

    @classmethod
    def concat(cls, tables: Sequence[Self]) -> Self:
        """Tables of one kind, one after another."""
        kinds = {table.kind for table in tables}
        if len(kinds) != 1:
            raise MeasurementError(f"only tables of one kind go together, got {sorted(kinds) or 'none'}")
        first = tables[0]
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(t, name) for t in tables]) for name in cls._columns()
        }
        dims = {name: np.concatenate([t.dims[name] for t in tables]) for name in first.dims}
        return cls(kind=first.kind, dims=dims, **columns)
