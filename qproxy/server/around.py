"""What happens around every request, whichever way it takes: who is it, what is counted, what every response says."""

from __future__ import annotations

from typing import Any

import trio

from qproxy.door import SECURITY, Access
from qproxy.observe import BeginsTraces, ToolRun
from qproxy.server import current
from qproxy.server.parts import Parts

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
        if template not in QUIET:
            self._parts.counts.began(record)
            current.stack().callback(self._parts.counts.finished, record)
            if self.tracer is not None:
                record.story.trace = self.tracer.begin(record, headers.get)
        self._parts.door.check_framing(headers)

    def admit(self, access: Access) -> None:
        """RequestError unless whoever asks may use a route with this access."""
        scope, headers, door = current.scope(), current.headers(), self._parts.door
        if access is Access.KEY:
            key = scope["qproxy.key"] = door.client(headers, scope)
            current.record().key = None if key is None else key.label
        elif access is Access.ADMIN:
            door.admit_admin(headers, scope)

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


def _ran(tool: ToolRun) -> str:
    """A call of a tool, as an item of a structured field (RFC 8941)."""
    return f"{tool.name};ok=?{tool.ok:d};ms={tool.seconds * 1000:.0f}"


def _header_text(text: str) -> str:
    """Text that may stand in a header field: printable ASCII, at most 1,000 characters."""
    return "".join(char if " " <= char <= "~" else "?" for char in text[:1000])
