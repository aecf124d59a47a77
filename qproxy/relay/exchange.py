"""One request to one account for an endpoint that produces no turn: speech, images, files, ...

An endpoint gives two functions: `build` makes the upstream request for an account, `read` turns its
response into a result. Accounts, retries, leases and errors are those of every request (`retry`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeAlias, TypeVar

import trio

from qproxy.accounts import Account, Capability
from qproxy.auth import Credential
from qproxy.relay.chat_attempt import check_status
from qproxy.relay.event_stream import MAX_WHOLE_BODY
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Attempt, RetryLoop
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse, UpstreamTransport
from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.dialects.error_mapping import error_from_event, invalid_response_error
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest

T = TypeVar("T")
Build: TypeAlias = Callable[[Account, UpstreamTarget], HTTPRequest]
Read: TypeAlias = Callable[[UpstreamResponse, Account], Awaitable[T]]


async def exchange(
    relay: Relay,
    record: RelayRecord,
    stack: AsyncExitStack,
    *,
    model: str,
    task: Capability,
    build: Build,
    read: Read[T],
    affinity: str = "",
) -> T:
    """Return what `read` makes of the response to `build`'s request, at the first account that can.

    A response that `read` leaves open is closed by `stack`. Raises QproxyError when no account succeeds.
    """
    record.model = model
    route = relay.names.route(model)
    record.served_model, record.model_notes = route.served, route.notes
    started_at = trio.current_time()
    loop = RetryLoop(relay.accounts, route.served, record, task=task, affinity=affinity)
    try:
        return await loop.run(_ExchangeAttempt(relay.transport, route.served, record, build, read), stack)
    finally:
        record.upstream_seconds += trio.current_time() - started_at


class _ExchangeAttempt(Attempt[T]):
    """The attempts of one exchange."""

    def __init__(
        self, transport: UpstreamTransport, model: str, record: RelayRecord, build: Build, read: Read[T]
    ) -> None:
        self._transport = transport
        self._model = model
        self._record = record
        self._build = build
        self._read = read

    async def start(self, account: Account, credential: Credential, stack: AsyncExitStack) -> T:
        """Send the request, and return what its response means."""
        target = account.target(credential, self._model, self._record.trace_headers)
        self._record.account = account.name
        response = await self._transport.send(self._build(account, target))
        await stack.enter_async_context(response)
        await check_status(response, account, self._record)
        return await self._read(response, account)


class PassedResponse:
    """The response of an own server, passed on as it is."""

    def __init__(self, response: UpstreamResponse) -> None:
        self.content_type = response.header(b"content-type") or "application/octet-stream"
        self._response = response

    async def receive(self) -> bytes:
        """Return some of the body, b"" at its end. Raises UpstreamError."""
        return await self._response.receive()


async def read_json(response: UpstreamResponse, account: Account) -> dict[str, JSON]:
    """Return the object in a whole response. Raises the UpstreamError that it reports with a status of 200,
    or that it is none."""
    body = await response.read(MAX_WHOLE_BODY)
    try:
        data = json_codec.loads(body)
    except ValueError:
        raise invalid_response_error(response.status, body) from None
    if not isinstance(data, dict):
        raise invalid_response_error(response.status, body)
    error = error_from_event(data, None, plan=account.plan)
    if error is not None:
        raise error
    return data


def is_only_on_own_servers(relay: Relay, model: str, task: Capability) -> bool:
    """Return whether accounts can do the task with the model, none of them Model Studio's."""
    served = relay.names.route(model).served
    able = [account for account in relay.accounts.accounts if account.supports(served, task)]
    return bool(able) and all(account.provider_family != "dashscope" for account in able)


def reject_ignored(relay: Relay, record: RelayRecord, ignored: tuple[str, ...]) -> None:
    """Record the parameters that are dropped. Raises RequestError for one with `strict_params`."""
    record.ignored = ignored
    if ignored and relay.policy.strict_params:
        message = f"Unsupported parameter '{ignored[0]}' for this model."
        raise RequestError(message, param=ignored[0], code="unsupported_parameter")
