"""A rank for tests of the launcher: `python -m tests.calibrate.a_rank MODE FILE`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

__all__: list[str] = []


def main(mode: str, file: Path) -> None:
    """Write this rank's process id, then end well, fail, report an error, or hang."""
    rank = os.environ["RANK"]
    Path(f"{file}.{rank}").write_text(str(os.getpid()))
    if mode == "environment":
        Path(f"{file}.env.{rank}").write_text(os.environ["OMP_NUM_THREADS"])
    if rank == "1":
        if mode == "dies":
            print("rank one says goodbye", file=sys.stderr, flush=True)
            os._exit(7)
        if mode == "error":
            print("error: this machine is not that machine", file=sys.stderr, flush=True)
            sys.exit(1)
        if mode == "hangs":
            (file.parent / "signs").write_text("so far")
            print("rank one waits for ever", file=sys.stderr, flush=True)
            time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
