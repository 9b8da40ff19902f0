"""The one place where numbers become text: units, rounding, tables, JSON; sizes by `costmodel.rendering`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from costmodel.rendering import bytes_text

__all__ = [
    "bytes_text",
    "count_text",
    "duration",
    "energy_text",
    "legend",
    "money",
    "per_second",
    "percent",
    "print_json",
    "print_table",
    "print_warnings",
    "progress",
    "rate_text",
]

_TIME = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))
_COUNT = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float | None) -> str:
    """Seconds with three significant digits: 12.3 ms."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds == 0:
        return "0 s"
    if seconds >= 86400 * 2:
        return f"{seconds / 86400:,.0f} d" if seconds >= 86400 * 1000 else f"{seconds / 86400:.3g} d"
    if seconds >= 3600 * 2:
        return f"{seconds / 3600:.3g} h"
    if seconds >= 1000:
        return f"{seconds / 60:.3g} min"
    for unit, name in _TIME:
        if abs(seconds) >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-9:.3g} ns"


def count_text(value: float | None) -> str:
    """A plain count in decimal units: 1.23 G."""
    if value is None:
        return "-"
    for unit, name in _COUNT:
        if abs(value) >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.3g}"


def rate_text(bytes_per_s: float) -> str:
    """A bandwidth in decimal GB/s."""
    rate = bytes_per_s / 1e9
    return f"{rate:,.0f} GB/s" if rate >= 100 else f"{rate:.3g} GB/s"


def per_second(rate: float) -> str:
    """Samples, tokens or requests a second: 12.34, 176,787."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def percent(fraction: float | None, *, sign: bool = False) -> str:
    """A fraction as percent with one digit."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    return f"{100 * fraction:+.1f} %" if sign else f"{100 * fraction:.1f} %"


def money(usd: float | None) -> str:
    """US dollars, in thousands or millions where they are many."""
    if usd is None or not math.isfinite(usd):
        return "-"
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if usd >= unit:
            return f"{usd / unit:.4g}{name} USD"
    return f"{usd:.4g} USD"


def energy_text(joules: float | None) -> str:
    """Energy in megawatt-hours."""
    return "-" if joules is None else f"{joules / 3.6e9:.4g} MWh"


def print_json(value: Any) -> None:
    """One JSON document on stdout; NaN and infinities become null."""
    print(json.dumps(_clean(value), indent=2))


def _clean(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(v) for v in value]
    if hasattr(value, "item"):
        return _clean(value.item())
    return value


def progress(message: str) -> None:
    """One line on stderr."""
    print(message, file=sys.stderr, flush=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """A line each on stdout."""
    for warning in warnings:
        print(f"warning: {warning}")


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", caption: str = ""
) -> None:
    """A table on stdout, texts as they are; the first column is left-aligned, the others right-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, caption=caption or None, title_justify="left", caption_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False)
    console.print(table)


def legend() -> str:
    """What the units in tables mean."""
    return "1 multiply-add = 2 FLOP; KiB/MiB/GiB = 2**10/20/30 bytes; GB/s = 1e9 bytes/s; [] = 90 % interval"
