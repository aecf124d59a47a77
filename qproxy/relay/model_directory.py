"""The models of all accounts, from their upstreams' lists.

Clients time out on `/v1/models` after ten seconds, so lists are cached; they are fetched concurrently, each
with a limit of 5 s and 1 MiB, and an unresponsive upstream does not affect the others.

Only 404 and 405 mean that an upstream has no list; the configured names or Qwen's published models replace
it. After any other failure the last list stays, and the next attempt follows within seconds: a failed fetch
shows nothing about the models. Where processes share lists, one of them fetches and the others read.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from qproxy.accounts import Account
from qproxy.relay.model_lists import ModelListStore, SharedModelList
from qproxy.transport import UpstreamTransport
from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.endpoints import models
from qproxy.wire.endpoints.models import Model
from qproxy.wire.errors import QproxyError
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.model_aliases import ModelAliases, is_pattern
from qproxy.wire.models import ModelCatalog

LIST_TIMEOUT = 5.0
CLAIM_SECONDS = 2 * LIST_TIMEOUT
"""Seconds after which another process may fetch a list that one is fetching."""
LIST_BYTES = 1024 * 1024
LIST_VALUES = 50_000
"""Maximum JSON values of a list, which is parsed at once."""
FAILURE_RETRY_SECONDS = 5.0
"""Maximum seconds between a failed fetch and the next one."""
NO_LIST_STATUSES = (404, 405)
"""Statuses of an upstream without a list; others are failures."""
log = logging.getLogger("qproxy.relay")


@dataclass(frozen=True, slots=True)
class _ModelList:
    """The models of one account."""

    models: tuple[Model, ...]
    is_fetched: bool
    """Whether the upstream listed them; otherwise it may serve others too."""
    expires_at: float
    """When the next fetch is due; Trio's clock."""


class ModelDirectory:
    """The models of all accounts, cached for `cache_seconds`."""

    def __init__(
        self,
        accounts: Sequence[Account],
        transport: UpstreamTransport,
        *,
        cache_seconds: float,
        aliases: ModelAliases,
        catalog: ModelCatalog,
        extra: Sequence[str],
        shared: ModelListStore | None,
    ) -> None:
        """`shared` has the lists that other processes have fetched, if there are such."""
        self._accounts = accounts
        self._transport = transport
        self._cache_seconds = cache_seconds
        self._aliases = aliases
        self._catalog = catalog
        self._extra = (*extra, *catalog.listed)
        self.shared = shared
        self._lock = trio.Lock()
        self._lists: dict[str, _ModelList] = {}
        """By account name."""

    def __repr__(self) -> str:
        return f"<ModelDirectory {sum(len(each.models) for each in self._lists.values())} models>"

    def is_configured(self, name: str) -> bool:
        """Return whether the settings or the catalog name the model, whatever the upstreams list."""
        return name in self._extra

    async def models(self) -> list[Model]:
        """Return the models of the settings, of the upstreams, and the aliases."""
        async with self._lock:
            await self._fetch_expired()
        listed = [
            model
            for account in self._accounts
            for model in self._lists[account.name].models
            if account.supports(model.id)
        ]
        named = [self._describe(Model(name), own_server=False) for name in self._extra]
        names = [*self._aliases.names, *self._aliases.covered(self._catalog.client_names)]
        aliases = [Model(name, owned_by="alias", alias_of=self._aliases.lookup(name)) for name in names]
        return [*named, *listed, *aliases]

    async def model(self, name: str) -> Model:
        """Return the model with this name or alias. Raises RequestError 404 if no account can have it.

        An account whose upstream has not listed its models may have any model that its settings allow. Some
        upstreams serve more than they list, so a model that was served, or that the settings name, is found.
        """
        listed = await self.models()
        possible = [
            self._describe(Model(name), account.provider_family == "open")
            for account in self._accounts
            if self._aliases.lookup(name) is None
            and account.supports(name)
            and (not self._lists[account.name].is_fetched or _is_beyond_list(account, name))
        ]
        return models.find_model([*possible[:1], *listed], name, self._aliases)

    async def _fetch_expired(self) -> None:
        now = trio.current_time()
        async with trio.open_nursery() as nursery:
            for account in self._accounts:
                current = self._lists.get(account.name)
                if current is None or now > current.expires_at:
                    nursery.start_soon(self._update, account)

    async def _update(self, account: Account) -> None:
        """Fetch one account's list; keep the current one after a failure."""
        own = account.provider_family == "open"
        current = self._lists.get(account.name)
        try:
            fetched, seconds = await self._find(account)
        except (trio.TooSlowError, QproxyError, ValueError) as error:
            log.info("no list of models from account %s (%s)", account.name, error)
            expires_at = trio.current_time() + min(FAILURE_RETRY_SECONDS, self._cache_seconds)
            if current is not None:
                self._lists[account.name] = replace(current, expires_at=expires_at)
                return
            fetched = None
        else:
            expires_at = trio.current_time() + min(seconds, self._cache_seconds)
            account.known_models = None if fetched is None else frozenset(model.id for model in fetched)
        found = [Model(name) for name in self._configured_models(account)] if fetched is None else fetched
        described = tuple(self._describe(model, own) for model in found)
        self._lists[account.name] = _ModelList(described, fetched is not None, expires_at)

    async def _find(self, account: Account) -> tuple[Sequence[Model] | None, float]:
        """Return the upstream's list, None if it has none, and for how many seconds it is valid.

        Raises TooSlowError, QproxyError or ValueError.
        """
        store = self.shared
        if store is None or not account.identity:
            return await self._fetch(account), self._cache_seconds
        with trio.fail_after(LIST_TIMEOUT):
            found = await store.get_or_claim(account.identity, CLAIM_SECONDS)
        if found is not None:
            shared, seconds = found
            if shared.is_failure:
                raise ValueError("another process could not fetch it")
            return shared.models, seconds
        try:
            models = await self._fetch(account)
        except (trio.TooSlowError, QproxyError, ValueError):
            retry = min(FAILURE_RETRY_SECONDS, self._cache_seconds)
            await store.save(account.identity, SharedModelList(None, is_failure=True), retry)
            raise
        fetched = SharedModelList(None if models is None else tuple(models))
        await store.save(account.identity, fetched, self._cache_seconds)
        return models, self._cache_seconds

    async def _fetch(self, account: Account) -> list[Model] | None:
        """Return the upstream's list, None if it has none. Raises TooSlowError, QproxyError or ValueError."""
        with trio.fail_after(LIST_TIMEOUT):
            credential = await account.source.credential()
            target = UpstreamTarget(credential.base_url, "", credential.token, headers=account.headers)
            request = HTTPRequest("GET", f"{target.base_url}/models", target.with_authorization())
            async with await self._transport.send(request) as response:
                body = await response.read(LIST_BYTES)
        if response.status in NO_LIST_STATUSES:
            return None
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        return models.parse_models(json_codec.loads(body, LIST_VALUES), self._catalog)

    def _configured_models(self, account: Account) -> list[str]:
        """Return names for an upstream without a list: configured plain names, or Qwen's published models."""
        plain = [pattern for pattern in account.models if not is_pattern(pattern)]
        if plain or account.provider_family != "dashscope":
            return plain
        embedding = [name for name in self._catalog.names("embedding") if account.supports(name, "embedding")]
        return [*self._catalog.names("chat"), *embedding]

    def _describe(self, model: Model, own_server: bool) -> Model:
        """Return the model with its limits; those of open weights on a self-hosted server are unknown."""
        spec = self._catalog.get(model.id)
        if own_server and spec.open_weights and not self._catalog.is_own(model.id):
            return model
        output = max(spec.output or 0, spec.output_thinking or 0) or None
        return replace(model, context=spec.context, max_output=output, shutdown_date=spec.retires)


def _is_beyond_list(account: Account, name: str) -> bool:
    """Return whether an account is known to serve a model that its upstream may not list."""
    return name in account.served_models or name in account.models
