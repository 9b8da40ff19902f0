"""Reading measured tables and logs that others wrote."""

from __future__ import annotations

__all__: list[str] = []
