"""Which models there are: each account's server is asked for its list, now and then.

A client gives up on `/v1/models` after ten seconds, so the answer comes from a cache; the servers are asked
side by side, each with a limit of 5 s and 1 MiB, and a silent one costs nobody else anything.  Where a server
has no list, the table of Qwen's published models stands in for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import trio

from qproxy.accounts import Account
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
LIST_BYTES = 1024 * 1024
LIST_VALUES = 50_000
"""Of a large list; it is read in one go."""
log = logging.getLogger("qproxy.relay")


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
    ) -> None:
        self._accounts = accounts
        self._transport = transport
        self._cache_seconds = cache_seconds
        self._aliases = aliases
        self._catalog = catalog
        self._extra = (*extra, *catalog.listed)
        self._lock = trio.Lock()
        self._models: list[Model] = []
        self._fetched_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Discovery {len(self._models)} models>"

    async def models(self) -> list[Model]:
        """Every model that can be asked for: the operator's, the servers', and the aliases last."""
        async with self._lock:
            if trio.current_time() - self._fetched_at > self._cache_seconds:
                self._models = await self._fetch_all()
                self._fetched_at = trio.current_time()
        named = [self._describe(Model(name), own_server=False) for name in self._extra]
        aliases = [
            Model(name, owned_by="alias", alias_of=self._aliases.lookup(name)) for name in self._aliases.names
        ]
        return [*named, *self._models, *aliases]

    async def _fetch_all(self) -> list[Model]:
        lists: dict[str, list[Model]] = {}

        async def ask(account: Account) -> None:
            lists[account.name] = await self._fetch(account)

        async with trio.open_nursery() as nursery:
            for account in self._accounts:
                nursery.start_soon(ask, account)
        return [
            model for account in self._accounts for model in lists[account.name] if account.supports(model.id)
        ]

    async def _fetch(self, account: Account) -> list[Model]:
        own = account.provider_family == "open"
        try:
            with trio.fail_after(LIST_TIMEOUT):
                credential = await account.source.credential()
                target = UpstreamTarget(credential.base_url, "", credential.token, headers=account.headers)
                request = HTTPRequest("GET", f"{target.base_url}/models", target.with_authorization())
                async with await self._transport.send(request) as response:
                    body = await response.read(LIST_BYTES)
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            found = models.parse_models(json_codec.loads(body, LIST_VALUES), self._catalog)
        except (trio.TooSlowError, QproxyError, ValueError) as error:
            log.info("no list of models from account %s (%s)", account.name, error)
            return [self._describe(Model(name), own) for name in self._configured_models(account)]
        account.known_models = frozenset(model.id for model in found)
        return [self._describe(model, own) for model in found]

    def _configured_models(self, account: Account) -> list[str]:
        """Names to list for a server that lists none: the operator's patterns that are plain names, else Qwen's own."""
        plain = [pattern for pattern in account.models if not is_pattern(pattern)]
        if plain or account.provider_family != "dashscope":
            return plain
        embedding = [name for name in self._catalog.names("embedding") if account.supports(name, "embedding")]
        return [*self._catalog.names("chat"), *embedding]

    def _describe(self, model: Model, own_server: bool) -> Model:
        """The model with what is known of it; a server of one's own gives open weights the limits that it likes."""
        spec = self._catalog.get(model.id)
        if own_server and spec.open_weights and not self._catalog.is_own(model.id):
            return model
        output = max(spec.output or 0, spec.output_thinking or 0) or None
        return replace(model, context=spec.context, max_output=output, shutdown_date=spec.retires)
