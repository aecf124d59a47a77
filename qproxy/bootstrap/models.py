"""The model catalog, from the package's file and the operator's `[[models]]`."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Sequence
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.ledger.prices import PRICE_CELLS
from qproxy.relay import model_names
from qproxy.wire.models import CatalogError, ModelCatalog, ModelRow


def build_catalog(rows: Sequence[ModelRow] = ()) -> ModelCatalog:
    """Return the package's catalog with these rows applied. Raise ConfigError for an invalid row."""
    if not rows:
        return package_catalog()
    for row in rows:
        _check_row(row)
    try:
        return ModelCatalog(_package_data(), rows)
    except CatalogError as error:
        raise ConfigError(f"[[models]]: {error}") from None


def _check_row(row: ModelRow) -> None:
    """Raise ConfigError for errors that the types of the cells do not catch."""
    for tier in row.prices or ():
        unknown = tier.keys() - PRICE_CELLS
        if unknown:
            raise ConfigError(f"[[models]]: model {row.id!r}: there is no price {min(unknown)!r}.")
    for cell in ("online", "retires"):
        try:
            date.fromisoformat(getattr(row, cell) or "2000-01-01")
        except ValueError:
            raise ConfigError(f"[[models]]: model {row.id!r}: {cell} is no date (YYYY-MM-DD).") from None


@cache
def package_catalog() -> ModelCatalog:
    """Return the package's catalog."""
    return ModelCatalog(_package_data())


@cache
def _package_data() -> dict[str, Any]:
    return tomllib.loads(resources.files("qproxy.wire.models").joinpath("models.toml").read_text("utf-8"))


def retirement_notices(config: Config, catalog: ModelCatalog) -> list[str]:
    """A line for each model that the settings name and that is retired, or soon will be."""
    plain = [name for account in config.accounts for name in account.models if not set(name) & set("*?[")]
    named = [config.default_model, *config.aliases.values(), *config.models, *plain]
    return model_names.retirement_notices(filter(None, named), catalog, time.time())
