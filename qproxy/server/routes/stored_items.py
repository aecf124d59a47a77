"""Stored items as routes use them: whose they are, the ones that a request names, and pages of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quart import request

from qproxy.server import request_context
from qproxy.server.response_store import ResponseNotFound, ResponseStore
from qproxy.wire.endpoints import responses

Item = dict[str, Any]


def client_owner() -> str:
    """Return the owner whose responses and conversations the current client may access."""
    key = request_context.api_key()
    return "" if key is None else key.digest


def page_query() -> dict[str, str]:
    """Return the parameters of the current request that select a page of a list."""
    return {name: request.args[name] for name in ("limit", "after", "order") if name in request.args}


def include_query() -> list[str]:
    """Return the values of `include`, which SDKs write as `include[]`."""
    return [*request.args.getlist("include"), *request.args.getlist("include[]")]


async def load_items(store: ResponseStore | None, owner: str, ids: Sequence[str]) -> dict[str, Item]:
    """Return the items of stored responses among these, by ID."""
    known: dict[str, Item] = {}
    wanted = frozenset(ids)
    for response in dict.fromkeys(map(responses.response_of, ids)):
        if response is not None and store is not None:
            try:
                stored = await store.get(owner, response)
            except ResponseNotFound:
                continue
            known.update((item["id"], item) for item in stored.conversation() if item["id"] in wanted)
    return known
