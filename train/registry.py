"""Named choices of a recipe: a name in YAML, a small function in code."""

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from videoauto_jax.errors import ConfigError

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping that grows by decoration and answers an unknown name with the nearest known one."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its argument under `name`; a name can be taken once only (`ValueError`)."""

        def file(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._entries[name] = entry
            return entry

        return file

    def __getitem__(self, name: str) -> T:
        """Returns the entry.

        Raises:
            ConfigError: nothing is registered under `name`.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(str(name), self._entries, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"unknown {self.kind} {name!r}", fix=f"{hint}Choose one of: {', '.join(self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
