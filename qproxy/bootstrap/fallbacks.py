"""Fallback models, from a `Config`."""

from __future__ import annotations

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from qproxy.config.fallbacks import CAUSES
from qproxy.relay.fallbacks import FallbackRule


def build_fallbacks(config: Config) -> tuple[FallbackRule, ...]:
    """Return the rules of the `[[fallbacks]]` tables. Raises ConfigError for one that cannot apply."""
    rules = []
    for number, table in enumerate(config.fallbacks, 1):
        where = f"[[fallbacks]] {number}"
        unknown = set(table.on).difference(CAUSES)
        if unknown:
            raise ConfigError(f"{where}: on: {min(unknown)!r} is none of {', '.join(CAUSES)}.")
        if not table.model.strip() or not table.on:
            raise ConfigError(f"{where}: set a model, and on to at least one of {', '.join(CAUSES)}.")
        if not table.models or not all(name.strip() for name in table.models):
            raise ConfigError(f"{where}: models: expected the names of the models to fall back to.")
        rules.append(FallbackRule(table.model, tuple(table.models), frozenset(table.on)))
    return tuple(rules)
