"""From samples to the forms of `costmodel.hardware`."""

from __future__ import annotations

__all__: list[str] = []
