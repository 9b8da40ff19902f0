"""The parallel systems of the project's table: what to type, where they come from, what checks them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["System", "systems"]

_DATA = Path(__file__).parent / "data" / "systems.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row. `how`: what to type; it starts with "not yet" where the system cannot be named so far."""

    number: int
    name: str
    how: str
    source: str
    check: str

    def to_dict(self) -> dict[str, object]:
        """Plain fields."""
        return asdict(self)


def systems() -> tuple[System, ...]:
    """Every row, by number."""
    return tuple(System(**row) for row in json.loads(_DATA.read_text())["systems"])
