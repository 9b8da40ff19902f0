"""Datasheet limits of known devices, from `costmodel/data/datasheets.json`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from costmodel.hardware.schema import DeviceSpec

__all__ = ["Datasheet", "datasheets", "find_datasheet"]

_FILE = Path(__file__).resolve().parent.parent / "data" / "datasheets.json"


class Datasheet(NamedTuple):
    """One device's limits and the other names it goes by."""

    device: DeviceSpec
    aliases: tuple[str, ...]


@lru_cache(maxsize=1)
def datasheets() -> dict[str, Datasheet]:
    """Device name -> datasheet, in file order."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    found = {}
    for entry in data["devices"]:
        aliases = tuple(entry.pop("aliases"))
        found[entry["name"]] = Datasheet(DeviceSpec.model_validate(entry), aliases)
    return found


def find_datasheet(name: str) -> Datasheet | None:
    """The datasheet of a device by name or alias (letter case and separators do not count), or None."""

    def key(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    table = datasheets()
    own = {key(n): sheet for n, sheet in table.items()}
    others = {key(alias): sheet for sheet in table.values() for alias in sheet.aliases}
    return own.get(key(name)) or others.get(key(name))
