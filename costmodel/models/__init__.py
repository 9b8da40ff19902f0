"""The model argument: a shipped name, a configuration, or module:callable, to a ModelSource.

resolve.py   the three forms
source.py    ModelSource and BuiltModel
inputs.py    example inputs that follow from a configuration
heads.py     heads that see part of the sequence
adapters.py  low-rank adapters beside frozen weights
modules.py   the shipped modules that no library has
"""

from costmodel.models.adapters import with_adapters
from costmodel.models.heads import with_fewer_predictions
from costmodel.models.resolve import resolve, resolve_config, shipped_config, shipped_names
from costmodel.models.source import BuiltModel, ModelSource

__all__ = [
    "BuiltModel",
    "ModelSource",
    "resolve",
    "resolve_config",
    "shipped_config",
    "shipped_names",
    "with_adapters",
    "with_fewer_predictions",
]
