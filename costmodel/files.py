"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.errors import ForeshardError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_figure", "write_whole"]

_DOTS_PER_INCH = 120


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write the content beside `path`, flush it to disk and move it into place; returns `path`.

    Folders that are missing are made. The file has the mode that the process gives any new file. Raises
    ForeshardError where it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ForeshardError(
            f"{path} cannot be written: {error.strerror or error}; check the folder and its permissions"
        ) from error
    return path


def write_figure(path: Path, figure: Figure) -> Path:
    """Write a figure in the format that the path's suffix names, PNG where it has none; returns `path`.

    Raises UsageError for a format that matplotlib cannot write, ForeshardError as `write_whole`.
    """
    form = path.suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if form not in known:
        raise UsageError(f"{path}: plots are not written as {form!r}; take one of {', '.join(sorted(known))}")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH, format=form)
    return write_whole(path, drawn.getvalue())
