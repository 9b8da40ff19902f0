"""The one shape of every registry: a dictionary behind a decorator.

>>> REGISTRY: Registry[Callable[[int], int]] = Registry("example")
>>> @REGISTRY.register("double")
... def double(x: int) -> int:
...     return 2 * x
>>> REGISTRY["double"](3)
6
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from costmodel.errors import UsageError

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Maps keys to what was registered under them. A duplicate is an error; a miss lists what there is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._entries: dict[Hashable, T] = {}

    def register(self, *keys: Hashable) -> Callable[[T], T]:
        """Decorator that files its object under every key. Raises ValueError on a key already taken."""

        def decorate(entry: T) -> T:
            for key in keys:
                if key in self._entries:
                    raise ValueError(f"{self._what} {key!r} is registered twice")
                self._entries[key] = entry
            return entry

        return decorate

    def __getitem__(self, key: Hashable) -> T:
        try:
            return self._entries[key]
        except KeyError:
            known = ", ".join(sorted(str(k) for k in self._entries))
            raise UsageError(f"unknown {self._what} {str(key)!r}; there are: {known}") from None

    def get(self, key: Hashable) -> T | None:
        """The entry, or None where there is none."""
        return self._entries.get(key)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
