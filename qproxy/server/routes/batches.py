"""Batches: created, read, listed and cancelled; `server.batch_runner` runs them.

A batch belongs to its client's API key, by the full digest; for another key it does not exist.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from qproxy.server.batch_store import BatchNotFound
from qproxy.server.file_store import FileNotFound
from qproxy.server.http_response import HTTPResponse, json_response
from qproxy.server.request_body import read_json
from qproxy.server.routes.files import file_not_found
from qproxy.server.routes.stored_items import client_owner, page_query
from qproxy.server.state import Route, StateHolder
from qproxy.wire import batches
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import RequestError
from qproxy.wire.files import list_page

MAX_PAGE = 100


class BatchRoutes:
    """The views of batches, and their routes."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route("/batches", ("POST",), self._create, api=OPENAI, schema=batches.CREATE_SCHEMA)
        yield Route("/batches", ("GET",), self._list, api=OPENAI)
        yield Route("/batches/<id>", ("GET",), self._get, api=OPENAI)
        yield Route("/batches/<id>/cancel", ("POST",), self._cancel, api=OPENAI)

    async def _create(self) -> HTTPResponse:
        state, owner = self._server.state, client_owner()
        body = await read_json(state.request_limits, state.body_logger)
        batch = batches.decode_create(body, f"batch_{secrets.token_hex(16)}", int(time.time()))
        try:
            file = await state.files.get(owner, batch["input_file_id"])
        except FileNotFound as error:
            file_not_found(error.id, param="input_file_id", status=400)
        if file.purpose != "batch":
            message = f"The file's purpose is {file.purpose!r}: upload it with the purpose 'batch'."
            raise RequestError(message, param="input_file_id", code="invalid_value")
        await state.batches.create(owner, batch)
        state.batch_runner.notify()
        return _response(batch)

    async def _get(self, id: str) -> HTTPResponse:
        try:
            return _response(await self._server.state.batches.get(client_owner(), id))
        except BatchNotFound:
            _batch_not_found(id)

    async def _list(self) -> HTTPResponse:
        found = await self._server.state.batches.list_batches(client_owner())
        return json_response(list_page(list(map(_public, found)), page_query(), default=20, maximum=MAX_PAGE))

    async def _cancel(self, id: str) -> HTTPResponse:
        try:
            batch = await self._server.state.batches.cancel(client_owner(), id)
        except BatchNotFound:
            _batch_not_found(id)
        self._server.state.batch_runner.cancel(id)
        return _response(batch)


def _public(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch without what OpenAI's object does not have."""
    return {name: value for name, value in batch.items() if name != "output_expires_after"}


def _response(batch: dict[str, Any]) -> HTTPResponse:
    return json_response(_public(batch))


def _batch_not_found(id: str) -> NoReturn:
    raise RequestError(f"No batch found with id {id[:100]!r}.", status=404, param="id")
