"""One form per family of operators; `base.load_forms` registers them all."""

from __future__ import annotations

__all__: list[str] = []
