"""OAuth 2.0's device flow as Qwen implements it: the three requests, and the meaning of their responses.

Bytes in, one of a few records out. Waiting, clocks, randomness (the verifier's bytes are passed in), files
(`wire.credential_format` has their format) and any decision to give up are in `auth.device_flow` and
`auth.oauth_source`.

A response is judged by what it proves. A rejection counts only if it is JSON. A web page (Qwen's firewall
sends some, even with status 200), a 5xx and a timeout prove nothing and are `TransientError`. The server's
own text may echo a secret, so only `error` and `error_description` of a body are kept, with the sent secrets
removed.

RFC 8628 (device flow), RFC 7636 (PKCE), RFC 6749 5.2 and 6 (errors, refresh); Qwen's deviations are noted in
place.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from re import fullmatch
from typing import Any, TypeAlias
from urllib.parse import quote, urlsplit

from qproxy.wire import json_codec
from qproxy.wire.host_pattern import is_allowed
from qproxy.wire.http_request import Headers, HTTPRequest

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
MAX_INTERVAL = 60.0
SLOW_DOWN_SECONDS = 5.0
"""Seconds that slow_down adds to the interval (RFC 8628 3.5)."""
MIN_FLOW_SECONDS, MAX_FLOW_SECONDS = 30.0, 3600.0
MAX_MESSAGE = 200
GRANT_ERRORS = {
    "access_denied": "The login was denied on the device page.",
    "expired_token": "The code expired before the login was approved.",
    "invalid_grant": "The server no longer knows this login.",
}


@dataclass(frozen=True, slots=True)
class IdentityProvider:
    """An identity server and qproxy's client id there (a public client, so there is no secret)."""

    device_url: str
    token_url: str
    client_id: str
    scope: str


@dataclass(frozen=True, slots=True)
class PKCE:
    """PKCE's pair: the challenge starts a flow, the verifier ends it."""

    verifier: str = field(repr=False)
    challenge: str


@dataclass(frozen=True, slots=True)
class DeviceAuthorization:
    """A started flow: what to show to the user, and what to poll with."""

    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    """The page with the code filled in, if the server names one."""
    expires_in: float
    interval: float | None
    """Seconds between two polls; Qwen sends none."""


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token, from a poll or a refresh."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    """None: keep the previous one."""
    token_type: str
    expires_in: float | None
    resource_url: str | None
    """None: keep the previous one."""


@dataclass(frozen=True, slots=True)
class AuthorizationPending:
    """The user has not decided yet."""


@dataclass(frozen=True, slots=True)
class SlowDown:
    """The server wants longer intervals between polls."""


@dataclass(frozen=True, slots=True)
class GrantError:
    """A final error; a retry cannot help."""

    kind: str
    """access_denied, expired_token, invalid_grant, refused (a refresh), or upstream_error."""
    message: str


@dataclass(frozen=True, slots=True)
class TransientError:
    """A response that proves nothing: a network error, a 5xx, a web page instead of JSON."""

    message: str


AuthorizationResult: TypeAlias = DeviceAuthorization | GrantError | TransientError
PollResult: TypeAlias = TokenResponse | AuthorizationPending | SlowDown | GrantError | TransientError
RefreshResult: TypeAlias = TokenResponse | GrantError | TransientError


def new_pkce(random: bytes) -> PKCE:
    """Return a PKCE pair (S256) from 32 random bytes."""
    verifier = _base64url(random)
    return PKCE(verifier, _base64url(hashlib.sha256(verifier.encode("ascii")).digest()))


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


# Requests


def form(fields: Mapping[str, str]) -> bytes:
    """Return a form body, with a space as %20 like Qwen's own client."""
    return "&".join(
        f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in fields.items()
    ).encode()


def _post(url: str, fields: Mapping[str, str], extra: Headers = ()) -> HTTPRequest:
    headers = (
        (b"content-type", b"application/x-www-form-urlencoded"),
        (b"accept", b"application/json"),
        # A rotating token must not be sent again by a pool that lost its connection.
        (b"connection", b"close"),
    )
    return HTTPRequest("POST", url, (*headers, *extra), form(fields))


def device_authorization_request(provider: IdentityProvider, challenge: str, request_id: str) -> HTTPRequest:
    """Return the request for a device code."""
    fields = {
        "client_id": provider.client_id,
        "scope": provider.scope,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return _post(provider.device_url, fields, ((b"x-request-id", request_id.encode("ascii")),))


def device_token_request(provider: IdentityProvider, device_code: str, verifier: str) -> HTTPRequest:
    """Return the request that polls for the token."""
    fields = {
        "grant_type": DEVICE_GRANT,
        "client_id": provider.client_id,
        "device_code": device_code,
        "code_verifier": verifier,
    }
    return _post(provider.token_url, fields)


def refresh_request(provider: IdentityProvider, refresh_token: str) -> HTTPRequest:
    """Return the request that refreshes a token."""
    fields = {
        "grant_type": "refresh_token",
        "refresh_token": refresh_token,
        "client_id": provider.client_id,
    }
    return _post(provider.token_url, fields)


# Responses


def parse_authorization(status: int, body: bytes) -> AuthorizationResult:
    """Return the meaning of the response to `device_authorization_request`."""
    answer = _object(body)
    if answer is None or status >= 500 or status == 429:
        return TransientError(_without_verifier(status, answer))
    code = _text(answer, "device_code")
    page = _text(answer, "verification_uri_complete") or _text(answer, "verification_uri")
    if not 200 <= status < 300 or code is None:
        return GrantError(
            "upstream_error", f"The identity server sent no device code ({_error_message(status, answer)})."
        )
    if page is None or urlsplit(page).scheme not in ("http", "https"):
        return GrantError("upstream_error", "The identity server sent no login page.")
    lasts = _seconds(answer, "expires_in") or 300.0
    return DeviceAuthorization(
        code,
        _text(answer, "user_code") or "",
        page,
        min(max(lasts, MIN_FLOW_SECONDS), MAX_FLOW_SECONDS),
        _seconds(answer, "interval"),
    )


def parse_poll(status: int, body: bytes, *, secrets: Iterable[str] = ()) -> PollResult:
    """Return the meaning of the response to `device_token_request`; `secrets` are removed from messages."""
    answer = _object(body)
    if answer is None or status >= 500:
        return TransientError(_without_verifier(status, answer))
    error, granted = _text(answer, "error"), _token_response(answer)
    if error == "authorization_pending" or (answer.get("status") == "pending" and granted is None):
        return AuthorizationPending()
    if error == "slow_down" or status == 429:  # RFC 8628 defines 400, Qwen sends 429
        return SlowDown()
    if 200 <= status < 300 and granted is not None and error is None:
        return granted
    if error in GRANT_ERRORS:
        return GrantError(error, GRANT_ERRORS[error])
    if status == 401:
        return GrantError("invalid_grant", GRANT_ERRORS["invalid_grant"])
    if error is not None:
        return GrantError("upstream_error", _error_message(status, answer, secrets))
    return TransientError(_without_verifier(status, answer))


def parse_refresh(status: int, body: bytes, *, secrets: Iterable[str] = ()) -> RefreshResult:
    """Return the meaning of the response to `refresh_request`: `GrantError` only for 400 and 401 in JSON."""
    answer = _object(body)
    if answer is None or status >= 500:
        return TransientError(_without_verifier(status, answer))
    if status in (400, 401):
        return GrantError(
            "refused",
            f"The identity server rejected the refresh token ({_error_message(status, answer, secrets)}).",
        )
    granted = _token_response(answer)
    if 200 <= status < 300 and granted is not None and "error" not in answer:
        return granted
    return TransientError(f"The identity server sent no token ({_error_message(status, answer, secrets)}).")


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        value = json_codec.loads(body)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _token_response(answer: Mapping[str, Any]) -> TokenResponse | None:
    token = _text(answer, "access_token")
    if token is None:
        return None
    return TokenResponse(
        token,
        _text(answer, "refresh_token"),
        _text(answer, "token_type") or "Bearer",
        _seconds(answer, "expires_in"),
        _text(answer, "resource_url"),
    )


def _text(answer: Mapping[str, Any], name: str) -> str | None:
    value = answer.get(name)
    return value if isinstance(value, str) and value else None


def _seconds(answer: Mapping[str, Any], name: str) -> float | None:
    """Return a positive number of seconds, also given as text; at most ten years."""
    try:
        value = float(answer[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return value if 0 < value < 3.2e8 else None


def _error_message(status: int, answer: Mapping[str, Any], secrets: Iterable[str] = ()) -> str:
    """Return the server's status and its own two fields, fit for a log."""
    words = ": ".join(text for name in ("error", "error_description") if (text := _text(answer, name)))
    return f"status {status}: {sanitize(words, secrets)}" if words else f"status {status}"


def sanitize(text: str, secrets: Iterable[str] = ()) -> str:
    """Return a foreign text for people: one line, not long, without any of the secrets."""
    for secret in secrets:
        text = text.replace(secret, "***") if secret else text
    line = "".join(char if char.isprintable() else " " for char in text)
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def _without_verifier(status: int, answer: Mapping[str, Any] | None) -> str:
    if answer is None:
        return f"The identity server did not return JSON (status {status})."
    return f"The identity server failed ({_error_message(status, {})})."


# Where a token may be sent


def slow_down(interval: float) -> float:
    """Return the interval after slow_down."""
    return min(interval + SLOW_DOWN_SECONDS, max(interval, MAX_INTERVAL))


def base_url(resource_url: str, allowed: Iterable[str]) -> str:
    """Return the API's base URL for a token's `resource_url`; raise ValueError if the token may not be sent
    there.

    `allowed` holds patterns of hosts (`host_pattern`).
    """
    url = resource_url.strip().rstrip("/")
    if "://" not in url:
        url = f"https://{url}"
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.query or parts.fragment or parts.username or not fullmatch(r"[a-z0-9.:-]+", host):
        raise ValueError(f"{sanitize(resource_url)!r} is not the URL of an API")
    if not is_allowed(parts, allowed):
        raise ValueError(
            f"{parts.scheme}://{sanitize(parts.netloc)} is not a host that may receive the token"
        )
    return url if url.lower().endswith("/v1") else f"{url}/v1"
