"""Loading the libraries that models come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from costmodel.errors import ModelArgumentError

__all__ = ["load_library"]


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
