"""What happens around every request, whichever way it takes: who is it, what is counted, what every response says.

A request that asks for a WebSocket is one of them, until it is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio

from qproxy.access.secret_limiter import SecretLimiter
from qproxy.server import request_context
from qproxy.server.request_policy import SECURITY_HEADERS, Access, api_key_from
from qproxy.server.state import ServerState
from qproxy.telemetry import ToolRunRecord, TracerProtocol

T = TypeVar("T")
UNLOGGED_PATHS = (
    "/livez", "/readyz", "/metrics", "/dashboard/live", "/dashboard/accounts/<name>/login/progress",
)  # fmt: skip
"""Asked every few seconds by machines, and by open pages: no log line."""


class RequestMiddleware:
    """Of one server."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self.tracer: TracerProtocol | None = None

    def on_request(self, template: str) -> None:
        """A request has come to the route with this path, "" where there is none."""
        record, headers = request_context.record(), request_context.headers()
        record.endpoint = template.removeprefix("/v1")
        record.client = self._state.proxies.client(*request_context.peer())
        if template not in UNLOGGED_PATHS:
            self._state.counters.request_started(record)
            request_context.stack().callback(self._state.counters.request_finished, record)
            if self.tracer is not None:
                record.relay.trace = self.tracer.start(record, headers.get)
        if request_context.scope()["type"] == "websocket":
            self._state.policy.check_websocket_origin(headers)
        else:
            self._state.policy.check_encoding(headers)

    async def authorize(self, access: Access) -> None:
        """RequestError unless whoever asks may use a route with this access."""
        scope, headers, state = request_context.scope(), request_context.headers(), self._state
        policy, record = state.policy, request_context.record()
        if access is Access.KEY:
            compare = partial(policy.authenticate, headers, scope)
            shown = api_key_from(headers) if policy.api_keys.required() else ""
            key = await _verified(state.client_keys, shown, compare)
            scope["qproxy.key"], record.key = key, None if key is None else key.label
        elif access is Access.ADMIN:
            shown = api_key_from(headers) if policy.admin_key is not None else ""
            await _verified(state.admin_keys, shown, partial(policy.require_admin, headers, scope))

    def on_response(self, status: int, fields: Any) -> None:
        """A response with this status goes out; `fields` (a dict, or Quart's headers) gets its header fields."""
        scope, record = request_context.scope(), request_context.record()
        record.status = status
        if record.outcome == "client_left" and not record.stream:
            record.outcome = "ok"  # an error has said so by now
        story = record.relay
        fields["x-request-id"] = record.id
        fields["openai-processing-ms"] = str(round(record.seconds * 1000))
        for name, value in SECURITY_HEADERS.items():
            fields.setdefault(name, value)  # a page says its own
        fields.update(self._state.policy.cors_headers(request_context.headers()))
        if "qproxy.meter" in scope:
            fields.update(scope["qproxy.meter"].headers(trio.current_time()))
        if not record.stream and story.attempts:
            fields["x-qproxy-overhead-ms"] = f"{record.overhead_seconds * 1000:.1f}"
        if story.upstream_request_id:
            fields["x-qproxy-upstream-request-id"] = _header_text(story.upstream_request_id)
        if story.ignored:
            fields["x-qproxy-ignored-params"] = _header_text(", ".join(story.ignored))
        if story.rule_notes:
            fields["x-qproxy-notes"] = _header_text("; ".join(story.rule_notes))
        if record.tools and not record.stream:
            fields["x-qproxy-tools"] = _header_text(", ".join(map(_log_tools, record.tools)))


async def _verified(limiter: SecretLimiter, shown: str, compare: Callable[[], T]) -> T:
    """What `compare` returns; a secret that is shown passes the limiter of wrong ones."""
    if not shown:
        return compare()
    return await limiter.verify(shown, request_context.record().client or "", compare)


def _log_tools(tool: ToolRunRecord) -> str:
    """A call of a tool, as an item of a structured field (RFC 8941)."""
    return f"{tool.name};ok=?{tool.ok:d};ms={tool.seconds * 1000:.0f}"


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])
