"""Runs before and after every request, on either path: authentication, counters, response headers.

A WebSocket handshake is a request until it is accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from qproxy.access.secret_limiter import SecretLimiter
from qproxy.server import request_context
from qproxy.server.authentication import Access, api_key_from
from qproxy.server.cors import SECURITY_HEADERS
from qproxy.server.request_body import read_coding
from qproxy.server.state import Route, StateHolder
from qproxy.telemetry import RequestRecord, ToolRunRecord
from qproxy.telemetry.counters import Listener, notify
from qproxy.wire.endpoints import Api, find_api

T = TypeVar("T")
UNLOGGED_PATHS = (
    "/livez", "/readyz", "/metrics", "/dashboard/live", "/dashboard/accounts/<name>/login/progress",
)  # fmt: skip
"""Requested every few seconds by machines and open pages: no log line."""


class RequestMiddleware:
    """The steps before and after every request of a server."""

    def __init__(self, server: StateHolder, apis: Sequence[Api], listeners: Sequence[Listener]) -> None:
        """`listeners` receive the record of every finished request.  They must be quick and must not wait."""
        self._server = server
        self._apis = apis
        self.listeners = tuple(listeners)

    def on_request(self, template: str, route: Route | None) -> None:
        """Begin a request to the path with this template, "" for an unknown one, whose route may be a
        program's (None).

        Raises RequestError for an unacceptable one.
        """
        context, state = request_context.current(), self._server.state
        record, headers = context.record, context.headers
        api = None if route is None else route.api
        context.api = api or find_api(self._apis, context.scope["path"], headers.__contains__)
        record.endpoint = template.removeprefix("/v1")
        record.uses_model = route is not None and (bool(route.operation) or route.websocket)
        record.operation = (route is not None and route.operation) or record.endpoint
        record.client = state.trusted_proxies.client_address(*request_context.peer())
        if template not in UNLOGGED_PATHS:
            state.counters.request_started(record)
            context.stack.callback(self._on_finished, record)
            if state.tracer is not None:
                record.relay.trace = state.tracer.start(record, headers.get)
        if context.scope["type"] != "websocket":
            context.coding = read_coding(headers, context.scope["headers"])
        elif not state.authentication.api_keys.required():
            state.cors.check_websocket(headers)

    async def authorize(self, access: Access) -> None:
        """Raise RequestError unless the sender may use a route with this access."""
        context, state = request_context.current(), self._server.state
        scope, headers, authentication = context.scope, context.headers, state.authentication
        if access is Access.KEY:
            names = context.api.api_key_headers
            check = partial(authentication.authenticate, headers, scope, names)
            owner = (
                scope["extensions"].get(request_context.OWNER_EXTENSION) if "extensions" in scope else None
            )
            if owner is not None:
                secret, check = "", partial(authentication.key_of, owner)
            else:
                secret = api_key_from(headers, names) if authentication.api_keys.required() else ""
            context.api_key = key = await _verify(state.client_keys, secret, check)
            context.record.key = None if key is None else key.label
        elif access is Access.ADMIN:
            secret = api_key_from(headers) if authentication.admin_key is not None else ""
            await _verify(state.admin_keys, secret, partial(authentication.require_admin, headers, scope))

    def on_response(self, status: int, headers: Any) -> None:
        """Add the server's headers to those of a response (a dict, or Quart's headers)."""
        context = request_context.current()
        record, api = context.record, context.api
        record.status = status
        if record.outcome == "client_disconnected" and not record.stream:
            record.outcome = "ok"  # an error would have replaced it by now
        relayed = record.relay
        for name in api.request_id_headers:
            headers[name] = record.id
        if api.processing_ms_header is not None:
            headers[api.processing_ms_header] = str(round(record.seconds * 1000))
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)  # a page of the dashboard has its own
        if status == 204:
            headers.pop("content-length", None)  # RFC 9110 8.6 forbids it there
        headers.update(self._server.state.cors.response_headers(context.headers, api.exposed_headers))
        if context.limited_key is not None:
            limits = self._server.state.usage_limiter.rate_limits(context.limited_key)
            headers.update(api.rate_limit_headers(limits, time.time()))
        if not record.stream and relayed.attempts:
            headers["x-qproxy-overhead-ms"] = f"{record.overhead_seconds * 1000:.1f}"
        if relayed.upstream_request_id:
            headers["x-qproxy-upstream-request-id"] = _header_text(relayed.upstream_request_id)
        if relayed.ignored:
            headers["x-qproxy-ignored-params"] = _header_text(", ".join(relayed.ignored))
        if relayed.fallback and status < 400:
            headers["x-qproxy-served-model"] = _header_text(relayed.served_model)
            headers["x-qproxy-fallback"] = relayed.fallback
        notes = relayed.rule_notes
        if not record.stream and status == 200 and record.is_estimated:
            notes = (*notes, ESTIMATED_USAGE)
        if notes:
            headers["x-qproxy-notes"] = _header_text("; ".join(notes))
        if record.tools and not record.stream:
            headers["x-qproxy-tools"] = _header_text(", ".join(map(_tool_item, record.tools)))

    def _on_finished(self, record: RequestRecord) -> None:
        record.redact(self._server.state.redact)
        self._server.state.counters.request_finished(record)
        notify(self.listeners, record)


ESTIMATED_USAGE = "usage estimated: the upstream reported none"
"""The mark of numbers that are not the upstream's, in the APIs that have no null for them."""


async def _verify(limiter: SecretLimiter, secret: str, check: Callable[[], T]) -> T:
    """Return what `check` returns, through the limiter of wrong secrets if there is a secret."""
    if not secret:
        return check()
    return await limiter.verify(secret, request_context.record().client or "", check)


def _tool_item(tool: ToolRunRecord) -> str:
    """Return a tool run as an item of a structured header (RFC 8941)."""
    return f"{tool.name};ok=?{tool.ok:d};ms={tool.seconds * 1000:.0f}"


def _header_text(text: str) -> str:
    """Return text that is valid in a header: printable ASCII, at most 1,000 characters."""
    text = text[:1000]
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if " " <= char <= "~" else "?" for char in text)
