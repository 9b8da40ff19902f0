"""Sizes as text, for messages here and for everything that `planner.render` prints."""

from __future__ import annotations

__all__ = ["bytes_text"]

_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def bytes_text(size: float | None) -> str:
    """Bytes in binary units: 1.50 GiB."""
    if size is None:
        return "-"
    for unit, name in _BYTES:
        if abs(size) >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size:.0f} B"
