"""Access of web pages to the server: cross-origin requests (CORS), WebSockets, and headers against misuse in
a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qproxy.server.host_policy import ReadableHeaders
from qproxy.wire.errors import RequestError

EXPOSED_HEADERS = (
    "x-qproxy-upstream-request-id", "x-qproxy-overhead-ms", "x-qproxy-ignored-params", "x-qproxy-notes",
    "x-qproxy-tools", "x-qproxy-served-model", "x-qproxy-fallback",
)  # fmt: skip
"""The response headers, beside those of the API (`Api.exposed_headers`), that a page's script may read."""
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """Decides which origins may use the server."""

    origins: tuple[str, ...]
    """The setting `cors_origins`; `*` allows any."""

    def allowed_origin(self, origin: str | None) -> str | None:
        """Return the value of access-control-allow-origin for this origin, or None when it is not allowed."""
        if origin is None or not self.origins:
            return None
        return "*" if "*" in self.origins else origin if origin in self.origins else None

    def preflight_headers(self, headers: ReadableHeaders) -> dict[str, str]:
        """Return the headers of the response to a preflight request; none for an origin that is not
        allowed."""
        if self.allowed_origin(headers.get("origin")) is None:
            return {}
        fields = {
            "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
            "access-control-allow-headers": headers.get(
                "access-control-request-headers", "authorization, content-type"
            ),
            "access-control-max-age": "600",
        }
        if headers.get("access-control-request-private-network"):
            fields["access-control-allow-private-network"] = "true"
        return fields

    def response_headers(self, headers: ReadableHeaders, exposed: Sequence[str]) -> dict[str, str]:
        """Return the headers that let an allowed page read a response and its `exposed` headers."""
        origin = self.allowed_origin(headers.get("origin"))
        if origin is None:
            return {"vary": "origin"} if self.origins else {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": ", ".join((*exposed, *EXPOSED_HEADERS)),
            "vary": "origin",
        }

    def check_websocket(self, headers: ReadableHeaders) -> None:
        """Raise RequestError for a page that is not allowed: browsers send no preflight before a
        WebSocket."""
        origin = headers.get("origin")
        if origin and self.allowed_origin(origin) is None:
            raise RequestError(
                "This origin may not open a WebSocket. Add it to cors_origins.",
                status=403,
                type="permission_error",
                code="origin_not_allowed",
            )
