"""One file per kind of measurement; `base.load_benchmarks` registers them all."""

from __future__ import annotations

__all__: list[str] = []
