"""What happens around every request, whichever way it takes: who is it, what is counted, what every response says.

A request that asks for a WebSocket is one of them, until it is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import trio

from qproxy.access.secret_limiter import SecretLimiter
from qproxy.server import request_context as current
from qproxy.server.request_policy import SECURITY, Access, shown_key
from qproxy.server.state import Parts
from qproxy.telemetry import BeginsTraces, ToolRun

T = TypeVar("T")
QUIET = (
    "/livez", "/readyz", "/metrics", "/dashboard/live", "/dashboard/accounts/<name>/login/progress",
)  # fmt: skip
"""Asked every few seconds by machines, and by open pages: no log line."""


class Around:
    """Of one server."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.tracer: BeginsTraces | None = None

    def begin(self, template: str) -> None:
        """A request has come to the route with this path, "" where there is none."""
        record, headers = current.record(), current.headers()
        record.endpoint = template.removeprefix("/v1")
        record.client = self._parts.proxies.client(*current.peer())
        if template not in QUIET:
            self._parts.counts.began(record)
            current.stack().callback(self._parts.counts.finished, record)
            if self.tracer is not None:
                record.story.trace = self.tracer.begin(record, headers.get)
        if current.scope()["type"] == "websocket":
            self._parts.door.check_page(headers)
        else:
            self._parts.door.check_framing(headers)

    async def admit(self, access: Access) -> None:
        """RequestError unless whoever asks may use a route with this access."""
        scope, headers, parts = current.scope(), current.headers(), self._parts
        door, record = parts.door, current.record()
        if access is Access.KEY:
            compare = partial(door.client, headers, scope)
            shown = shown_key(headers) if door.keyring.demanded() else ""
            key = await _verified(parts.client_keys, shown, compare)
            scope["qproxy.key"], record.key = key, None if key is None else key.label
        elif access is Access.ADMIN:
            shown = shown_key(headers) if door.admin_key is not None else ""
            await _verified(parts.admin_keys, shown, partial(door.admit_admin, headers, scope))

    def finish(self, status: int, fields: Any) -> None:
        """A response with this status goes out; `fields` (a dict, or Quart's headers) gets its header fields."""
        scope, record = current.scope(), current.record()
        record.status = status
        if record.outcome == "client_left" and not record.stream:
            record.outcome = "ok"  # an error has said so by now
        story = record.story
        fields["x-request-id"] = record.id
        fields["openai-processing-ms"] = str(round(record.seconds * 1000))
        for name, value in SECURITY.items():
            fields.setdefault(name, value)  # a page says its own
        fields.update(self._parts.door.page_fields(current.headers()))
        if "qproxy.meter" in scope:
            fields.update(scope["qproxy.meter"].headers(trio.current_time()))
        if not record.stream and story.tries:
            fields["x-qproxy-overhead-ms"] = f"{record.overhead * 1000:.1f}"
        if story.upstream_request_id:
            fields["x-qproxy-upstream-request-id"] = _header_text(story.upstream_request_id)
        if story.ignored:
            fields["x-qproxy-ignored-params"] = _header_text(", ".join(story.ignored))
        if story.notes:
            fields["x-qproxy-notes"] = _header_text("; ".join(story.notes))
        if record.tools and not record.stream:
            fields["x-qproxy-tools"] = _header_text(", ".join(map(_ran, record.tools)))


async def _verified(limiter: SecretLimiter, shown: str, compare: Callable[[], T]) -> T:
    """What `compare` returns; a secret that is shown passes the limiter of wrong ones."""
    if not shown:
        return compare()
    return await limiter.verify(shown, current.record().client or "", compare)


def _ran(tool: ToolRun) -> str:
    """A call of a tool, as an item of a structured field (RFC 8941)."""
    return f"{tool.name};ok=?{tool.ok:d};ms={tool.seconds * 1000:.0f}"


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])
