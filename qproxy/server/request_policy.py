"""What the server asks of a request before any endpoint sees it: who is it, where does it come from, how much is it.

Every route is declared `OPEN`, `KEY` or `ADMIN` (`Access`); one that is not declared is `KEY`.

Where no key is demanded, only connections to this machine's own addresses are served (`insecure_no_auth` serves all):
this holds whatever started the server.  On loopback no key is needed, and so two things stand between a web page and your accounts.  A page whose name was
made to point at this machine (DNS rebinding) shows in the Host field, which must then name this machine.  A page that
posts blindly cannot say `application/json` without asking first (CORS), so with an Origin field that must be said.
"""

from __future__ import annotations

import enum
import hmac
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.access.api_keys import ApiKey, ApiKeyStore
from qproxy.system.exposure import host_name, is_loopback, origin_authority, without_keys
from qproxy.wire import json_codec, raw_json
from qproxy.wire.errors import AuthenticationError, RequestError, WrongKey
from qproxy.wire.model_aliases import Aliases

ReadableHeaders: TypeAlias = Any
"""The header fields of a request: `get(name, default)` in whatever case."""
JSON_TYPE = "application/json"
KEY_SUBPROTOCOL = "openai-insecure-api-key."
EXPOSED_HEADERS = ", ".join(
    (
        "x-request-id", "x-qproxy-upstream-request-id", "x-qproxy-overhead-ms", "x-qproxy-ignored-params",
        "x-qproxy-notes", "x-qproxy-tools", "openai-processing-ms", "retry-after", "retry-after-ms", "x-should-retry",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
    )
)  # fmt: skip
"""The response fields of ours that a page's script may read."""
FORWARDED_HEADERS = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Fields by which a proxy says that somebody else asks."""
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


log = logging.getLogger("qproxy.server")


class Access(enum.Enum):
    """Who may use a route."""

    OPEN = "open"
    """Anyone: health, and what the server is."""
    KEY = "key"
    """Whoever shows a key, where keys are demanded."""
    ADMIN = "admin"
    """Whoever runs the server: shows `admin_key`, or, where there is none, asks on the same machine."""
    SESSION = "session"
    """The same person in a browser; the page itself asks (`dashboard.guard`), for it has a form to answer with."""


@dataclass(frozen=True, slots=True)
class RequestPolicy:
    """The rules of entry."""

    api_keys: ApiKeyStore = field(default_factory=ApiKeyStore)
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    """Further names that a request to loopback may be for; * is any."""
    max_body_bytes: int = 64 * 1024 * 1024
    max_json_depth: int = 128
    max_messages: int = 10_000
    body_timeout: float = 60.0
    request_timeout: float = math.inf
    keep_alive_interval: float = math.inf
    """Seconds of silence in a stream after which a comment is sent."""
    default_model: str | None = None
    aliases: Aliases = Aliases()
    admin_key: str | None = field(default=None, repr=False)
    insecure_no_auth: bool = False
    """Serve addresses that other machines reach without keys."""
    _warned: set[str] = field(default_factory=set, repr=False, compare=False)
    """The addresses of which the log has said that they are refused."""

    def authenticate(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> ApiKey | None:
        """Whose request it is; None where nobody is asked.  RequestError when it may not come in."""
        if not self.api_keys.required():
            self._check_address(headers.get("host", ""), scope)
            return None
        key = api_key_from(headers)
        if not key:
            raise AuthenticationError(
                "You didn't provide an API key. Send it in an Authorization header: 'Authorization: Bearer KEY'."
            )
        return self.api_keys.authenticate(key)

    def require_admin(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> None:
        """RequestError unless whoever runs the server asks."""
        if self.admin_key is not None:
            self.check_admin_key(api_key_from(headers))
            return
        self.require_local(headers, scope)

    def check_admin_key(self, shown: str) -> None:
        """NotAuthenticated, a WrongKey where one is shown, unless it is the admin_key."""
        if not shown:
            raise AuthenticationError("This route wants the server's admin_key.")
        expected = self.admin_key
        if expected is None or not hmac.compare_digest(_bytes(shown), _bytes(expected)):
            raise WrongKey("This is not the server's admin_key.")

    def require_local(self, headers: ReadableHeaders, scope: Mapping[str, Any]) -> None:
        """RequestError unless it comes straight from the server's own machine; a proxy there is not the machine."""
        server, peer = scope.get("server") or ("", 0), scope.get("client") or ("", 0)
        origin, name = headers.get("origin", ""), host_name(headers.get("host", ""))
        here = is_loopback(str(server[0])) and is_loopback(str(peer[0])) and (not name or is_loopback(name))
        passed_on = any(headers.get(field) for field in FORWARDED_HEADERS)
        if not here or passed_on or (origin and not is_loopback(host_name(origin_authority(origin)))):
            raise RequestError(
                "Without an admin_key this route is for programs on the server's own machine.",
                status=403,
                type="permission_error",
                code="admin_key_required",
            )

    def _check_address(self, host: str, scope: Mapping[str, Any]) -> None:
        """RequestError unless the connection came to this machine's own address, by one of its names.

        A connection without an address (a Unix socket, a call in this process) is this machine's too.
        """
        server = scope.get("server")
        if server is None:
            return
        if not is_loopback(str(server[0])):
            if not self.insecure_no_auth:
                raise self._exposed(str(server[0]))
            return
        name = host_name(host)  # against DNS rebinding
        if not name or is_loopback(name) or name in self.allowed_hosts or "*" in self.allowed_hosts:
            return
        raise RequestError(
            f"This server listens on loopback without keys and does not serve the host {name[:200]!r}. If a proxy "
            "of yours passes that name on, add it to the setting allowed_hosts.",
            status=403,
            type="permission_error",
            code="host_not_allowed",
        )

    def _exposed(self, address: str) -> RequestError:
        message = without_keys(address)
        if address not in self._warned:
            self._warned.add(address)
            log.warning("refused a request: %s", message)
        return RequestError(message, status=403, type="permission_error", code="keys_required")

    def check_encoding(self, headers: ReadableHeaders) -> None:
        """RequestError for a request that wants to be read in a way that this server does not have."""
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            raise RequestError(
                f"The request body is encoded as '{encoding[:100]}': send it as it is.",
                status=415,
                code="unsupported_content_encoding",
            )
        if headers.get("upgrade", "").strip().lower() == "websocket":
            raise websocket_not_supported()

    def check_websocket_origin(self, headers: ReadableHeaders) -> None:
        """RequestError for a page that opens a WebSocket without a key: no browser asks us first, as it does for HTTP."""
        origin = headers.get("origin")
        if origin and not self.api_keys.required() and self.allowed_origin(origin) is None:
            raise RequestError(
                "Pages may open a WebSocket here when their origin is in the setting cors_origins.",
                status=403,
                type="permission_error",
                code="origin_not_allowed",
            )

    def check_content_type(self, mimetype: str, *, from_page: bool) -> None:
        """RequestError unless the body says that it is JSON; a program (not a page) may say nothing."""
        if not mimetype and not from_page:
            return
        if mimetype != JSON_TYPE and not mimetype.endswith("+json"):
            raise RequestError(
                f"Unsupported content type '{mimetype[:100]}': send application/json.",
                status=415,
                code="unsupported_media_type",
            )

    def parse_json(self, data: bytes) -> Any:
        """A body as JSON; a RequestError says what is wrong with it."""
        message = f"The request body nests more than {self.max_json_depth} levels deep."
        try:
            body = raw_json.parse_body(data)
        except json_codec.NestingTooDeep:
            raise RequestError(message, code="invalid_value") from None
        except ValueError as error:
            raise RequestError(f"The request body is not valid JSON: {error}.") from None
        if json_codec.exceeds_depth(body, self.max_json_depth):
            raise RequestError(message, code="invalid_value")
        return body

    def allows(self, key: ApiKey | None, model: str) -> bool:
        """Whether the key may ask for the model, by this name or by the one that it stands for."""
        return key is None or key.allows(model) or key.allows(self.aliases.resolve(model))

    def authorize_model(self, key: ApiKey | None, model: str) -> None:
        """RequestError unless the key may ask for the model."""
        if not self.allows(key, model):
            assert key is not None
            raise RequestError(
                f"The API key {key.name or key.id!r} may not use the model {model[:200]!r}.",
                status=403,
                type="permission_error",
                param="model",
                code="model_access_denied",
            )

    def allowed_origin(self, origin: str | None) -> str | None:
        """What access-control-allow-origin says to this origin; None for nothing."""
        if origin is None or not self.cors_origins:
            return None
        return "*" if "*" in self.cors_origins else origin if origin in self.cors_origins else None

    def preflight_headers(self, headers: ReadableHeaders) -> dict[str, str]:
        """The fields that answer a browser's question before a request."""
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

    def cors_headers(self, headers: ReadableHeaders) -> dict[str, str]:
        """The fields that let an allowed page read any answer of ours."""
        origin = self.allowed_origin(headers.get("origin"))
        if origin is None:
            return {"vary": "origin"} if self.cors_origins else {}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": EXPOSED_HEADERS,
            "vary": "origin",
        }


def websocket_not_supported() -> RequestError:
    """For a WebSocket where there is none."""
    message = "This path does not speak WebSocket: ask over plain HTTP."
    return RequestError(message, status=426, code="websocket_not_supported")


def _bytes(key: str) -> bytes:
    """A key to be compared; a setting may have any string."""
    return key.encode("utf-8", "surrogatepass")


def api_key_from(headers: ReadableHeaders) -> str:
    """The key that a request shows, in OpenAI's field or one of the others in use; "" for none."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "") or headers.get("api-key", "") or _key_from_subprotocol(headers)
    return str(key).strip()


def _key_from_subprotocol(headers: ReadableHeaders) -> str:
    """A page's script can give a WebSocket no header field but the names of sub-protocols: OpenAI's holds the key."""
    offered = (name.strip() for name in headers.get("sec-websocket-protocol", "").split(","))
    return next(
        (name.removeprefix(KEY_SUBPROTOCOL) for name in offered if name.startswith(KEY_SUBPROTOCOL)), ""
    )
