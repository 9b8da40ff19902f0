"""The link between nodes that a row's wording means.

>>> link_between("8x HDR InfiniBand 200 Gb/s per node"), link_between("400 Gb/s per node", gpus_per_node=8)
('infiniband-8x200g', 'infiniband-2x200g')
>>> link_between("2 x 100 GbE"), link_between("RDMA over Ethernet, 50 GB/s per GPU", gpus_per_node=4)
('ethernet-2x100g', 'roce-4x400g')
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import costmodel

__all__ = ["link_between"]

_DATA = Path(costmodel.__path__[0]) / "data" / "published" / "settings.json"
_USUAL_NODE = 8
_RATE = r"(\d+(?:\.\d+)?) ?(?:(GB|TB)/s|([GT])(?:[Bb]E|b(?:it)?/s|bps|b|)\b)"
"""A rate: bytes a second, or bits in the usual spellings (400 Gb/s, 400Gbps, 400G, 100GbE, 3.2 Tb/s)."""
_COUNTED = re.compile(r"(\d+) ?[x×*] ?(?:[A-Za-z-]+ )*[A-Za-z-]*" + _RATE)
_EACH_GPU = re.compile(_RATE + r"[^\d]*?(?i:(?:per|a|each|/) ?(?:GPU|rank|NIC|interface|port|adapter))")
_EACH_NODE = re.compile(_RATE + r"[^\d]*?(?i:(?:per|a|each|/) ?node|node-node|in all|aggregate|total)")
_BITS = {"G": 1.0, "T": 1e3, "GB": 8.0, "TB": 8e3}


@lru_cache(maxsize=1)
def _settings() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = json.loads(_DATA.read_text())
    return settings["inter_links"], settings["counted_links"]


def link_between(wording: str, gpus_per_node: int = _USUAL_NODE) -> str | None:
    """Name of the link ("infiniband-8x400g") that `wording` means; None where it says no rate.

    Interfaces that are counted come first, then the wordings listed in settings.json (inter_links), then a
    rate for each GPU, or one for a node of `gpus_per_node`.
    """
    listed, _ = _settings()
    said = _counted(wording)
    if said is None:
        if named := next((e["link"] for e in listed if re.search(e["match"], wording, re.I)), None):
            return str(named)
        said = _shared(wording, gpus_per_node)
    if said is None:
        return None
    interfaces, gbit = said
    if not interfaces or round(gbit) < 1:
        return None
    return f"{_kind(wording)}-{interfaces}x{gbit:.0f}g"


def _counted(wording: str) -> tuple[int, float] | None:
    """Interfaces of a node and Gbit/s of each, where both are said."""
    found = _COUNTED.search(wording)
    return (int(found.group(1)), _gbit(found.groups()[1:])) if found else None


def _shared(wording: str, gpus_per_node: int) -> tuple[int, float] | None:
    """The same where one rate is said, a GPU's or a node's: whichever follows it first."""
    _, usual = _settings()
    of_gpu, of_node = _EACH_GPU.search(wording), _EACH_NODE.search(wording)
    if of_gpu and not (of_node and of_node.end() < of_gpu.end()):
        return gpus_per_node, _gbit(of_gpu.groups())
    if of_node and (total := _gbit(of_node.groups())):
        each = max(total / gpus_per_node, min(total, float(usual["usual_gbit_per_s"])))
        return max(1, round(total / each)), each
    return None


def _gbit(groups: tuple[str | None, ...]) -> float:
    number, in_bytes, in_bits = groups[:3]
    return float(number or 0.0) * _BITS[in_bytes or in_bits or "G"]


def _kind(wording: str) -> str:
    _, usual = _settings()
    return next(str(e["kind"]) for e in usual["kinds"] if re.search(e["match"], wording, re.I))
