"""A model's name to what is known of it.

The order of a lookup: the exact id, alias or listed snapshot; the name without a date (`-2025-07-28`,
`-0902`, `-latest`); the line that the name's pattern belongs to, there the row of its version, else the
newest known row before it, so that a version newer than all behaves as the newest known; at last what is
known of the vendor. A cell that a row does not know is that of the newest row of its line that does, then the
line's, then the vendor's own.

What is never another model's: prices and dates.  Cells from another row are named in `ModelSpec.guessed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qproxy.wire.models.name_pattern import NamePattern
from qproxy.wire.models.spec import CELLS, NAMES, OWN, ModelRow, ModelSpec, inherit, override, version_order

VENDOR = "qwen"
"""The vendor of the models that DashScope is made for."""
MAX_NAME = 200
"""Characters of a name that may mean something: names come from clients."""
MAX_CACHED_NAMES = 2000
_SNAPSHOT = re.compile(r"-(?:\d{4}-\d\d-\d\d|\d{4}|latest)\Z")
_NOTHING_OWN: Mapping[str, Any] = dict.fromkeys(OWN - {"id"})


class CatalogError(ValueError):
    """Rows that do not fit together; the message names the row."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A line, or a vendor: which names belong to it, and what holds for all of them."""

    name: str
    patterns: tuple[NamePattern, ...]
    common: ModelSpec

    def match(self, name: str) -> str | None:
        """Return the version in the name, "" without one, or None if the name does not belong to the
        group."""
        versions = (pattern.match(name) for pattern in self.patterns)
        return next((version for version in versions if version is not None), None)


class ModelCatalog:
    """The rows of the package's file, and the operator's own before them."""

    def __init__(self, data: Mapping[str, Any], rows: Sequence[ModelRow] = ()) -> None:
        self.as_of: str = data.get("as_of", "")
        """The date of the knowledge."""
        self.client_names: Sequence[str] = data.get("client_names", ())
        """Names of other vendors' models that programs request."""
        self.qwen_params: frozenset[str] = frozenset(data.get("qwen_params", ()))
        """Request parameters that only Qwen's servers know."""
        self.defaults: Mapping[str, Any] = data.get("defaults", {})
        """Default models, by purpose."""
        self.price_terms: Mapping[str, Any] = data.get("prices", {})
        """Terms of every price: currency, region, shares of the input's price."""
        self.listed = tuple(row.id for row in rows if row.listed)
        """The operator's additions to the list of models."""
        self._own = frozenset(row.id.lower() for row in rows)
        self._lines = [_group(entry) for entry in data.get("lines", ())]
        self._vendors = [_group(entry) for entry in data.get("vendors", ())]
        self._models: dict[str, ModelSpec] = {}
        """By id, in lower case."""
        self._names: dict[str, ModelSpec] = {}
        self._rows: dict[str, list[ModelSpec]] = {}
        """By line, the newest version first."""
        self._found: dict[str, ModelSpec | None] = {}
        self._strangers: dict[str, ModelSpec] = {}
        self._load([*map(_row, data.get("models", ())), *rows])

    def __repr__(self) -> str:
        return f"<ModelCatalog of {self.as_of}, {len(self._models)} models>"

    def _load(self, rows: Iterable[ModelRow]) -> None:
        other_names: dict[str, str] = {}
        for row in rows:
            key = row.id.lower()
            base = self._models.get(key)
            if base is None and key in other_names:  # a fact about one name does not hold for the others
                known = self._models[other_names[key]]
                base = replace(known, id=row.id, aliases=None, snapshots=None, listed=None)
            self._models[key] = made = override(base or ModelSpec(row.id), row)
            other_names.update((name.lower(), key) for name in _other_names(made))
        self._models = {key: self._place(model) for key, model in self._models.items()}
        for key in list(self._models):
            self._follow(key, ())
        for model in sorted(self._models.values(), key=lambda model: model.order, reverse=True):
            self._rows.setdefault(model.line or "", []).append(model)
        self._models = {key: self._complete(model) for key, model in self._models.items()}
        for model in self._models.values():
            for name in _other_names(model):
                self._names.setdefault(name.lower(), model)
        self._names.update(self._models)
        self._rows = {
            line: [self._models[row.id.lower()] for row in members] for line, members in self._rows.items()
        }
        self._spelled = frozenset(
            name for model in self._models.values() for name in (model.id, *_other_names(model))
        )

    def _place(self, model: ModelSpec) -> ModelSpec:
        """Return the row with its line and version, taken from its id where the row has none."""
        line, version = self._match(_base_name(model.id))
        if line is None:
            return model
        return replace(model, line=model.line or line.name, version=model.version or version or None)

    def _match(self, name: str) -> tuple[_Group | None, str]:
        """Return the line that a name belongs to, and the version in it."""
        for line in self._lines:
            if (version := line.match(name)) is not None:
                return line, version
        return None, ""

    def _follow(self, key: str, before: tuple[str, ...]) -> ModelSpec:
        """Return the row `key` with the cells of the row that it is `like`."""
        model = self._models[key]
        if model.like is None:
            return model
        if model.like.lower() not in self._models or key in before:
            raise CatalogError(f"model {model.id!r}: there is no other model {model.like!r} to be like.")
        base = self._follow(model.like.lower(), (*before, key))
        made = self._models[key] = replace(inherit(model, [base]), like=None)
        return made

    def _complete(self, model: ModelSpec) -> ModelSpec:
        """Return the row with its unknown cells taken from its line, its newest row and its vendor."""
        lines = [line.common for line in self._lines if line.name == model.line]
        made = inherit(inherit(model, lines), self._rows[model.line] if model.line else (), guess=True)
        return inherit(made, self._vendor(model.id))

    def _vendor(self, name: str) -> list[ModelSpec]:
        """Return the data that holds for all models of a model's vendor."""
        return [vendor.common for vendor in self._vendors if vendor.match(_base_name(name)) is not None][:1]

    def find(self, name: str) -> ModelSpec | None:
        """Return the data of a model of this name; None if it matches no row."""
        if name not in self._found:
            if len(name) > MAX_NAME:
                return None
            if len(self._found) >= MAX_CACHED_NAMES:
                self._found.clear()
                self._strangers.clear()
            self._found[name] = self._look_up(name)
        return self._found[name]

    def get(self, name: str) -> ModelSpec:
        """Return the data of a model, at least that of its vendor."""
        found = self.find(name) or self._strangers.get(name)
        if found is None:
            found = inherit(ModelSpec(name), self._vendor(name))
            if len(name) <= MAX_NAME:
                self._strangers[name] = found
        return found

    def __contains__(self, name: str) -> bool:
        """Return whether a row has exactly this name."""
        return name in self._spelled

    def knows(self, name: str) -> bool:
        """Return whether the name is that of a row, in whatever case and of whichever publisher, not only
        like one."""
        return name.lower() in self._names or _base_name(name) in self._names

    def is_own(self, name: str) -> bool:
        """Return whether the operator has a row for the name."""
        return name.lower() in self._own

    def _look_up(self, name: str) -> ModelSpec | None:
        for key in (name.lower(), _base_name(name)):
            if key in self._names:
                return self._names[key]
        key = _base_name(name)
        family = self._names.get(_SNAPSHOT.sub("", key))
        if family is not None:  # as its family, and gone with it; its price is unknown
            return replace(
                family, id=name, aliases=None, snapshots=None, prices=None, online=None, listed=None
            )
        line, version = self._match(key)
        return None if line is None else self._of_line(line, name, version_order(version))

    def _of_line(self, line: _Group, name: str, version: tuple[int, ...]) -> ModelSpec | None:
        rows = self._rows.get(line.name)
        if rows is None:
            return inherit(ModelSpec(name, line=line.name), [line.common, *self._vendor(name)])
        row = next((row for row in rows if not version or row.order <= version), None)
        return None if row is None else replace(row, id=name, guessed=frozenset(CELLS), **_NOTHING_OWN)

    def names(self, task: str) -> list[str]:
        """Return the models to list for a task where a server has no list."""
        return [model.id for model in self._models.values() if model.listed and model.is_for(task)]

    def models(self) -> list[ModelSpec]:
        """Return every row."""
        return list(self._models.values())


def _base_name(name: str) -> str:
    """Return the name in lower case, without its publisher (`Qwen/`)."""
    return name[-MAX_NAME:].lower().rpartition("/")[2]


def _other_names(model: ModelSpec) -> list[str]:
    return [*(model.aliases or ()), *(f"{model.id}-{date}" for date in model.snapshots or ())]


def _row(entry: Mapping[str, Any]) -> ModelRow:
    unknown = entry.keys() - set(NAMES)
    if unknown or "id" not in entry:
        raise CatalogError(f"model {entry.get('id')!r}: there is no cell {min(unknown, default='id')!r}.")
    return ModelRow(**entry)


def _group(entry: Mapping[str, Any]) -> _Group:
    """Return a line or a vendor of the file: `name`, `names` as patterns, and common cells."""
    cells = {cell: value for cell, value in entry.items() if cell not in ("name", "names")}
    patterns = tuple(map(NamePattern, entry["names"]))
    return _Group(entry["name"], patterns, ModelSpec(entry["name"], **cells))


EMPTY = ModelCatalog({})
"""A catalog without rows."""
