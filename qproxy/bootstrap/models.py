"""The model catalog, from the package's file and the operator's `[[models]]`.

The types of a row's cells are checked where the configuration is parsed; here its values are, so that no
request fails later for a price, a size or a date that cannot be.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.ledger.prices import CURRENCY, PRICE_CELLS
from qproxy.relay import model_names
from qproxy.wire import storable
from qproxy.wire.models import CatalogError, ModelCatalog, ModelRow
from qproxy.wire.models.spec import version_order


def build_catalog(rows: Sequence[ModelRow] = ()) -> ModelCatalog:
    """Return the package's catalog with these rows applied. Raise ConfigError for an invalid row."""
    if not rows:
        return package_catalog()
    ids: set[str] = set()
    for row in rows:
        if row.id.lower() in ids:
            raise ConfigError(f"[[models]]: there are two rows with the id {row.id!r}.")
        ids.add(row.id.lower())
        _check_row(row)
    try:
        return ModelCatalog(_package_data(), rows)
    except CatalogError as error:
        raise ConfigError(f"[[models]]: {error}") from None


def _check_row(row: ModelRow) -> None:
    """Raise ConfigError for errors that the types of the cells do not catch."""
    faults = [*_price_faults(row.prices or ()), *_cell_faults(row)]
    if faults:
        raise ConfigError(f"[[models]]: model {row.id!r}: {faults[0]}")


def _price_faults(tiers: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each cell of a price that cannot be."""
    for tier in tiers:
        for cell, value in tier.items():
            if cell not in PRICE_CELLS:
                yield f"there is no price {cell!r}."
            elif cell in ("currency", "region"):
                if not isinstance(value, str):
                    yield f"prices, {cell}: expected a string, got {value!r}."
            elif not storable.is_finite_number(value) or value < 0:
                yield f"prices, {cell}: expected a number of at least 0, got {value!r}."
        if "input" in tier and "output" not in tier and tier.get("currency", CURRENCY) == CURRENCY:
            yield "prices: a price of tokens has an input and an output."


def _cell_faults(row: ModelRow) -> Iterator[str]:
    """Yield a sentence for each cell with a value that cannot be."""
    if not row.id.strip():
        yield "id: expected a name."
    for cell in fields(row):
        value = getattr(row, cell.name)
        if type(value) is int and value < 1:
            yield f"{cell.name}: expected a number of at least 1, got {value}."
    for name in ("online", "retires"):
        try:
            date.fromisoformat(getattr(row, name) or "2000-01-01")
        except ValueError:
            yield f"{name} is no date (YYYY-MM-DD)."
    if row.successor is not None and row.successor.lower() == row.id.lower():
        yield "successor: expected another model."
    if row.version is not None and not version_order(row.version):
        yield f"version: expected a number such as 3.8, got {row.version!r}."


@cache
def package_catalog() -> ModelCatalog:
    """Return the package's catalog."""
    return ModelCatalog(_package_data())


@cache
def _package_data() -> dict[str, Any]:
    return tomllib.loads(resources.files("qproxy.wire.models").joinpath("models.toml").read_text("utf-8"))


def retirement_notices(config: Config, catalog: ModelCatalog) -> list[str]:
    """Return a line for each model that the settings name and that is retired, or soon will be."""
    plain = [name for account in config.accounts for name in account.models if not set(name) & set("*?[")]
    named = [config.default_model, *config.aliases.values(), *config.models, *plain]
    return model_names.retirement_notices(filter(None, named), catalog, time.time())
