"""The model names of a request on its way: aliases, and successors of retired models.

Pure rules in `wire.models.retirement`; here they meet the accounts (does one still have the model?) and the
calendar.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta

from qproxy.accounts import AccountPool
from qproxy.relay.fallbacks import RETIRED, FallbackRule, fallback_models
from qproxy.wire.errors import RequestError
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.retirement import ModelRoute, find_route, retirement_warnings

WARNING_DAYS = 30
log = logging.getLogger("qproxy.models")
MAX_WARNED = 100


class ModelNames:
    """The names that lead to a model."""

    def __init__(
        self,
        accounts: AccountPool,
        *,
        aliases: ModelAliases,
        catalog: ModelCatalog,
        use_successor: bool,
        fallbacks: Sequence[FallbackRule],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.aliases = aliases
        self.catalog = catalog
        self._accounts = accounts
        self._use_successor = use_successor
        self._fallbacks = fallbacks
        self._wall_clock = wall_clock
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"<ModelNames {self.aliases!r}, {self.catalog!r}>"

    @property
    def today(self) -> str:
        """In UTC, as the dates of the catalog are written."""
        return _date(self._wall_clock()).isoformat()

    def route(self, name: str) -> ModelRoute:
        """Return every name on the way of a request for a model.

        Raises RequestError 404 for a retired one without a successor or a fallback.
        """
        model = self.aliases.lookup(name)
        served = name if model is None else model
        spec = self.catalog.find(served)
        if spec is None or spec.retires is None:
            return ModelRoute((name,)) if model is None else ModelRoute((name, model), is_alias=True)
        self._warn(served)
        try:
            return self._find_route(name)
        except RequestError:
            names = (name,) if model is None else (name, model)
            for fallback in fallback_models(self._fallbacks, names, RETIRED):
                if not self.is_retired(fallback):
                    found = (*names, self.aliases.resolve(fallback))
                    return ModelRoute(found, model is not None, replaced=served)
            raise

    def _find_route(self, name: str) -> ModelRoute:
        return find_route(
            name,
            self.aliases,
            self.catalog,
            today=self.today,
            is_served=self.is_listed,
            use_successor=self._use_successor,
        )

    def is_retired(self, name: str) -> bool:
        """Return whether a name's model is retired in the catalog."""
        spec = self.catalog.find(self.aliases.resolve(name))
        return spec is not None and spec.retires is not None and spec.retires <= self.today

    def is_listed(self, model: str) -> bool:
        """Return whether an account still has the model, regardless of the catalog."""
        return any(account.lists(model) for account in self._accounts.accounts)

    def _warn(self, model: str) -> None:
        """Say once that a model which is asked for will be retired."""
        if model in self._warned or len(self._warned) >= MAX_WARNED:
            return
        for warning in retirement_notices([model], self.catalog, self._wall_clock()):
            self._warned.add(model)
            log.warning("%s", warning)


def retirement_notices(names: Iterable[str], catalog: ModelCatalog, now: float) -> list[str]:
    """Return a line for each of the models that is retired at this Unix time, or will be within 30 days."""
    today = _date(now)
    until = today + timedelta(days=WARNING_DAYS)
    return retirement_warnings(names, catalog, today.isoformat(), until.isoformat())


def _date(now: float) -> date:
    return datetime.fromtimestamp(now, UTC).date()
