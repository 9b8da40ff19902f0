"""Forwards from an empty pool: torch gave the driver its memory back before (torch.cuda.empty_cache).

What such a forward keeps is asked for anew, segment by segment (`graph.liveness.kept_segments`). Where the
driver wipes memory that it gets back, it has only

    left = memory - what lies there over steps - what the pass before gave back

at once; a forward that keeps more waits until the rest is wiped.
"""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.stage_costs import UnitCosts

__all__ = ["waits_for_wiping_s"]


def waits_for_wiping_s(units: Sequence[UnitCosts], left_bytes: float, wiped_bytes_per_s: float) -> float:
    """Seconds that a forward of `units`, one after another, waits for memory beyond `left_bytes`.

    Wiping starts with the forward and runs beside it. 0 where `wiped_bytes_per_s` is 0: nothing is wiped.
    """
    if not wiped_bytes_per_s:
        return 0.0
    end_s, kept_bytes = 0.0, 0.0
    for unit in units:
        kept_bytes += unit.saved_bytes
        end_s = max(end_s, (kept_bytes - left_bytes) / wiped_bytes_per_s) + unit.forward.total_s
    return end_s - sum(unit.forward.total_s for unit in units)
