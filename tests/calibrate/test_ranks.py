"""What a rank does with its own process before it measures."""

from __future__ import annotations

import subprocess
import sys

_PROBE = """
import resource, torch
from calibrate.ranks import keep_freed_memory
kept = keep_freed_memory(touch_bytes=256 << 20)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(40 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
print(kept, first, faults())
"""


def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    """40 MB of the 256 MB that were touched: without keeping them each call faults in some 10,000 pages."""
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    kept, first, again = done.stdout.split()
    if kept == "True":  # glibc
        assert int(first) < 1000
        assert int(again) < 100
