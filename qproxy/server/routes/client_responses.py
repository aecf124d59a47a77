"""A client's stored responses, those in the background among them: found, cancelled, deleted and streamed.

A response is stored as queued before it is generated, and again in its last state. In between its run
(`server.response_runs`) has the current state: a response whose run is lost or has ended without one is
stored as failed when a client asks for it, so that none is in progress forever.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NoReturn

import trio

from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.response_runs import ResponseRunStore, RunEvents, RunNotFound, RunState
from qproxy.server.response_store import ResponseNotFound, ResponseStore, StoredResponse
from qproxy.server.routes.generate import STREAM_HEADERS, STREAM_TYPE
from qproxy.server.run_events import POLL_SECONDS, RunEventsBody
from qproxy.server.state import ServerState
from qproxy.wire.endpoints import OPENAI, responses
from qproxy.wire.errors import QproxyError, RequestError

CANCEL_SECONDS = 5.0
"""Seconds to wait until a response is cancelled by the process that generates it."""
QUEUED_EVENTS = 2
"""Events of a response that is still queued."""
LAST_EVENT = 2**53


def not_found(id: str) -> NoReturn:
    raise RequestError(f"Response with id {id[:100]!r} not found.", status=404)


class ClientResponses:
    """The stored responses of one client."""

    def __init__(self, state: ServerState, owner: str) -> None:
        self._state = state
        self._owner = owner

    def store(self, id: str) -> ResponseStore:
        """Return the store, for a response with this id. Raises RequestError if there is none."""
        return self._state.responses or not_found(id)

    def _runs(self, id: str) -> ResponseRunStore:
        return self._state.response_runs or not_found(id)

    async def find(self, id: str) -> StoredResponse:
        """Return a response in its current state. Raises RequestError."""
        stored = await self._get(id)
        if not responses.is_active(stored.response):
            return stored
        try:
            run = await self._runs(id).read(self._owner, id, LAST_EVENT)
        except RunNotFound:
            return await self._settle(id)
        if run.state is RunState.ACTIVE or (
            run.state is RunState.LOST and not await self._runs(id).end_lost(self._owner, id)
        ):
            status = "queued" if run.next <= QUEUED_EVENTS else "in_progress"
            return replace(stored, response={**stored.response, "status": status})
        return await self._settle(id)

    async def cancel(self, id: str) -> StoredResponse:
        """Cancel a response in the background, and return it. Raises RequestError."""
        stored = await self.find(id)
        if not stored.response["background"]:
            raise RequestError("Cannot cancel a synchronous response.")
        run = self._state.background_runs.get(self._owner, id)
        if run is not None:
            run.cancel()
        elif responses.is_active(stored.response):
            await self._runs(id).request_cancel(self._owner, id)
        with trio.move_on_after(CANCEL_SECONDS):
            while responses.is_active(stored.response):
                await self._state.background_runs.wait_events(self._owner, id, POLL_SECONDS)
                stored = await self.find(id)
        return stored

    async def delete(self, id: str) -> None:
        """Delete a response, after cancelling it if it is active. Raises RequestError."""
        await self._get(id)
        await self._runs(id).delete(self._owner, id)  # first: then its process stores nothing more
        run = self._state.background_runs.get(self._owner, id)
        if run is not None:
            run.stop()
        try:
            await self.store(id).delete(self._owner, id)
        except ResponseNotFound:
            not_found(id)

    async def stream(self, id: str, after: int) -> HTTPResponse:
        """Return a stream of the events of a response with numbers above `after`. Raises RequestError."""
        await self.find(id)
        read, runs = partial(self._runs(id).read, self._owner, id), self._state.background_runs
        try:
            _check_stored(await read(after), after)
        except RunNotFound:
            _events_missing("")
        limits = self._state.request_limits
        body = RunEventsBody(
            after,
            read=read,
            wait=partial(runs.wait_events, self._owner, id),
            load=partial(self.find, id),
            in_flight=self._state.in_flight.add(
                request_context.stack(), limits.client_request_timeout, "client_request_timeout"
            ),
            keep_alive=OPENAI.keep_alive,
            keep_alive_interval=limits.keep_alive_interval,
        )
        return HTTPResponse(body, content_type=STREAM_TYPE, headers=dict(STREAM_HEADERS))

    async def _get(self, id: str) -> StoredResponse:
        await self._state.stream_recorder.flush()
        try:
            return await self.store(id).get(self._owner, id)
        except ResponseNotFound:
            not_found(id)

    async def _settle(self, id: str) -> StoredResponse:
        """Return a response whose run has ended; store it as failed if its process could not store its
        end."""
        stored = await self._get(id)  # again: it is stored before its run ends
        if responses.is_active(stored.response):
            message = "The server process that generated this response has stopped: create it again."
            error = QproxyError(message, code="response_lost")
            stored = replace(stored, response=responses.with_error(stored.response, error))
            await self.store(id).save(stored)
        return stored


def _check_stored(read: RunEvents, after: int) -> None:
    """Raise RequestError unless the events that follow `after` are stored."""
    if read.first > after + 1:
        _events_missing(f" before number {read.first}")


def _events_missing(which: str) -> NoReturn:
    message = f"The events of this response{which} are not stored (any more): retrieve it without 'stream'."
    raise RequestError(message, param="stream", code="unsupported_parameter")
