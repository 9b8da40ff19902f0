"""Loading the libraries that models come from."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from costmodel.errors import ModelArgumentError

__all__ = ["load_library", "load_losses"]

_LOSSES = "transformers.loss.loss_utils"
_OPTIMIZE = "scipy.optimize"


def load_library(library: str, name: str) -> Any:
    """Import what the model called `name` is written with. Raises ModelArgumentError where it is missing."""
    try:
        module = importlib.import_module(library)
    except ImportError as error:
        raise ModelArgumentError(
            f"model {name!r} needs {library}: pip install 'foreshard[hf]' ({error})"
        ) from None
    if library == "transformers":
        _load_models(module)
    return module


def _load_models(transformers: Any) -> None:
    """Import `transformers.models` without reading its thousands of files once more for what they define:
    `transformers` has just read them, of which it remembers fewer folders than there are, and the whole."""
    utils = transformers.utils.import_utils
    read: Callable[[Any], Any] | None = getattr(utils, "create_import_structure_from_path", None)
    folder = Path(transformers.__file__).parent / "models"
    if read is not None:
        utils.create_import_structure_from_path = lambda path: read(
            folder if Path(path) == folder / "__init__.py" else path
        )
    try:
        importlib.import_module("transformers.models")
    finally:
        if read is not None:
            utils.create_import_structure_from_path = read


def load_losses() -> None:
    """Import the losses of transformers' models without `scipy.optimize`, which takes longer to load than a
    model takes to trace: they have one function of it, for detections, that loads it when it is called."""
    if _LOSSES in sys.modules or _OPTIMIZE in sys.modules:
        return
    stand_in = ModuleType(_OPTIMIZE)
    stand_in.linear_sum_assignment = _linear_sum_assignment  # type: ignore[attr-defined]
    sys.modules[_OPTIMIZE] = stand_in
    try:
        with suppress(ImportError):  # another version, which wants more of it: the model imports them itself
            importlib.import_module(_LOSSES)
    finally:
        del sys.modules[_OPTIMIZE]


def _linear_sum_assignment(*args: Any, **kwargs: Any) -> Any:
    return importlib.import_module(_OPTIMIZE).linear_sum_assignment(*args, **kwargs)
