"""Tracing without torch's compiler, which takes as long to load as torch itself and is not used.

A fake-tensor mode reads two settings out of `torch._dynamo.config`, and torch and model libraries mark
functions that the compiler shall leave alone, keep whole or take as constant. Where the compiler is not
loaded a stand-in answers them. Whatever else is asked of it loads the compiler in its place, with the marks.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache, wraps
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import FunctionType, ModuleType
from typing import Any

import torch

__all__ = ["leave_compiler_unloaded"]

_NAME = "torch._dynamo"
_ALONE = ("config", "_trace_wrapped_higher_order_op")
"""Its modules that are used without compiling and need none of the others."""
_MARKS = ("allow_in_graph", "assume_constant_result")
"""Its functions that mark a function and give it back."""
_KEPT_ON = "__dynamo_disable"
"""Where `torch._compile` keeps what `disable` made of a function."""
_LOADING = RLock()


class _Unloaded(ModuleType):
    """`torch._dynamo` until somebody asks for more than a trace does."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(_NAME)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self._spec: ModuleSpec | None = spec
        """None once the compiler is loaded."""
        self._marked: list[tuple[str, Any]] = []
        self._plain: list[Callable[..., Any]] = []
        """Functions that `disable` gave back to `torch._compile` as they are."""
        self.disable = self._disable
        for name in _MARKS:
            setattr(self, name, self._mark(name))

    def __getattr__(self, name: str) -> Any:
        if self._spec is None or (name.startswith("__") and name != "__path__"):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        self._load()
        return getattr(self, name)

    def _mark(self, name: str) -> Callable[[Any], Any]:
        def mark(fn: Any) -> Any:
            self._marked.append((name, fn))
            return fn

        return mark

    def _disable(self, fn: Any = None, recursive: bool = True, **more: Any) -> Any:
        if fn is None:
            return lambda fn: torch._dynamo.disable(fn, recursive, **more)
        if self._spec is None or not isinstance(fn, FunctionType):
            return self._loaded("disable")(fn, recursive, **more)
        if not more.get("wrapping", True):
            self._plain.append(fn)
            return fn
        disabled = cache(lambda: self._loaded("disable")(fn, recursive, **more))

        @wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            return (disabled() if self._spec is None else fn)(*args, **kwargs)

        return call

    def _loaded(self, name: str) -> Any:
        self._load()
        return getattr(self, name)

    def _load(self) -> None:
        """Become the compiler."""
        with _LOADING:
            spec, self._spec = self._spec, None
            if spec is None:
                return
            assert spec.loader is not None
            for name in ("disable", *_MARKS):
                delattr(self, name)
            self.__package__, self.__path__ = _NAME, list(spec.submodule_search_locations or ())
            spec.loader.exec_module(self)
            for fn in self._plain:  # asked again at its next call
                if getattr(fn, _KEPT_ON, None) is fn:
                    delattr(fn, _KEPT_ON)
            for name, fn in self._marked:
                getattr(self, name)(fn)


def leave_compiler_unloaded() -> None:
    """Put the stand-in where torch's compiler would be loaded; nothing where it is already."""
    with _LOADING:
        spec = None if _NAME in sys.modules else importlib.util.find_spec(_NAME)
        if spec is None:
            return
        unloaded = sys.modules[_NAME] = torch._dynamo = _Unloaded(spec)
        for name in _ALONE:
            part = PathFinder.find_spec(f"{_NAME}.{name}", spec.submodule_search_locations)
            if part is None or part.loader is None:
                continue  # another torch: who asks for it loads the compiler
            module = sys.modules[part.name] = importlib.util.module_from_spec(part)
            setattr(unloaded, name, module)
            part.loader.exec_module(module)
