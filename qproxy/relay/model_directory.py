"""Which models there are: each account's server is asked for its list, now and then.

A client gives up on `/v1/models` after ten seconds, so the answer comes from a cache; the servers are asked
side by side, each with a limit of 5 s and 1 MiB, and a silent one costs nobody else anything.  Where a server
has no list, the table of Qwen's published models stands in for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from qproxy.accounts import Account
from qproxy.transport import Transport
from qproxy.wire import json_codec as jsontext
from qproxy.wire.dialects import Target
from qproxy.wire.dialects import model_catalog as catalogue
from qproxy.wire.endpoints import models
from qproxy.wire.endpoints.models import Model
from qproxy.wire.errors import QproxyError
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.model_aliases import Aliases, is_pattern

LIST_TIMEOUT = 5.0
LIST_BYTES = 1024 * 1024
LIST_VALUES = 50_000
"""Of a large list; it is read in one go."""
log = logging.getLogger("qproxy.discovery")


class Discovery:
    """The models of all accounts, cached for `cache_seconds`."""

    def __init__(
        self,
        accounts: Sequence[Account],
        transport: Transport,
        *,
        cache_seconds: float = 300.0,
        aliases: Aliases | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        self._accounts = accounts
        self._transport = transport
        self._cache_seconds = cache_seconds
        self._aliases = aliases or Aliases()
        self._extra = extra
        self._lock = trio.Lock()
        self._found: list[Model] = []
        self._asked = float("-inf")

    def __repr__(self) -> str:
        return f"<Discovery {len(self._found)} models>"

    async def models(self) -> list[Model]:
        """Every model that can be asked for: the operator's, the servers', and the aliases last."""
        async with self._lock:
            if trio.current_time() - self._asked > self._cache_seconds:
                self._found = await self._ask_all()
                self._asked = trio.current_time()
        named = [_described(Model(name)) for name in self._extra]
        aliases = [Model(name, owned_by="alias") for name in self._aliases.names]
        return [*named, *self._found, *aliases]

    async def _ask_all(self) -> list[Model]:
        lists: dict[str, list[Model]] = {}

        async def ask(account: Account) -> None:
            lists[account.name] = await self._ask(account)

        async with trio.open_nursery() as nursery:
            for account in self._accounts:
                nursery.start_soon(ask, account)
        return [
            model for account in self._accounts for model in lists[account.name] if account.offers(model.id)
        ]

    async def _ask(self, account: Account) -> list[Model]:
        try:
            with trio.fail_after(LIST_TIMEOUT):
                credential = await account.source.credential()
                target = Target(credential.base_url, "", credential.token, headers=account.headers)
                request = HTTPRequest("GET", f"{target.base_url}/models", target.authorised())
                async with await self._transport.send(request) as response:
                    body = await response.read(LIST_BYTES)
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            found = models.parse(jsontext.loads(body, LIST_VALUES))
        except (trio.TooSlowError, QproxyError, ValueError) as error:
            log.info("no list of models from account %s (%s)", account.name, error)
            return [_described(Model(name)) for name in self._stand_in(account)]
        account.known_models = frozenset(model.id for model in found)
        return [_described(model) for model in found]

    def _stand_in(self, account: Account) -> list[str]:
        """Names to list for a server that lists none: the operator's patterns that are plain names, else Qwen's own."""
        plain = [pattern for pattern in account.models if not is_pattern(pattern)]
        if plain or account.family != "dashscope":
            return plain
        return list(catalogue.names(embedding=account.offers(catalogue.EMBEDDING[0], "embedding")))


def _described(model: Model) -> Model:
    limits = catalogue.lookup(model.id)
    if limits is None:
        return model
    return Model(model.id, model.created, model.owned_by, limits.context, limits.output)
