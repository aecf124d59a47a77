"""Model aliases: names that clients may use, and the models that they stand for.

An alias is a name or a pattern (`gpt-*`, as in `fnmatch`). The exact name wins, then the longest matching
pattern, the first one among equals. `*` is the catch-all: it matches every name that is not itself a model
(`is_model`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase

CATCH_ALL = "*"


def is_pattern(name: str) -> bool:
    """Return whether a configured name is a pattern."""
    return not set(name).isdisjoint("*?[")


class ModelAliases:
    """The operator's aliases."""

    def __init__(
        self, table: Mapping[str, str], is_model: Callable[[str], bool] = lambda name: False
    ) -> None:
        self._exact = dict(table)
        patterns = (name for name in self._exact if is_pattern(name) and name != CATCH_ALL)
        self._patterns = sorted(patterns, key=len, reverse=True)
        self._is_model = is_model

    def __repr__(self) -> str:
        return f"<ModelAliases {len(self._exact)} names and patterns>"

    @property
    def names(self) -> list[str]:
        """Return the aliases that can be listed, which excludes patterns."""
        return [name for name in self._exact if not is_pattern(name)]

    def covered(self, names: Iterable[str]) -> list[str]:
        """Return those of the names that a pattern covers, other than `*`, and that are no aliases
        themselves."""
        return [
            name
            for name in names
            if name not in self._exact and any(fnmatchcase(name, pattern) for pattern in self._patterns)
        ]

    def lookup(self, name: str) -> str | None:
        """Return the model that a client's name stands for; None if it is not an alias."""
        if name in self._exact:
            return self._exact[name]
        for pattern in self._patterns:
            if fnmatchcase(name, pattern):
                return self._exact[pattern]
        return None if self._is_model(name) else self._exact.get(CATCH_ALL)

    def resolve(self, name: str) -> str:
        """Return the model to request from an account."""
        found = self.lookup(name)
        return name if found is None else found
