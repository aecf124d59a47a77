"""The tokens of one account, in the format of qwen-code's `oauth_creds.json`.

This module has the record and its JSON; `auth.credential_file` locates and writes the file.

Fields that qproxy does not know are kept; a refresh replaces only what its response names (qwen-code loses
`resource_url` if a response has none).

A file without an access token holds no credentials. One without an expiry (old releases of qwen-code wrote
such) counts as expired, so it is refreshed; one without a refresh token works until it expires.

The lifetime of a token is stored too, as `expires_in`: it decides how long before expiry the token is
refreshed, which must not depend on when a process read the file. It is unknown if another program has written
the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.oauth import TokenResponse

LIFETIME = 3600.0
"""Seconds assumed if the server does not report how long a token lasts."""
_KNOWN = ("access_token", "refresh_token", "token_type", "expiry_date", "resource_url", "expires_in")


@dataclass(frozen=True, slots=True)
class TokenSet:
    """The tokens of an account."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    token_type: str = "Bearer"
    expiry_date: int = 0
    """Milliseconds since 1970."""
    resource_url: str | None = None
    others: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Unknown fields of the file."""
    lifetime: float | None = None
    """Seconds from issue to expiry."""

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the access token expires; `now` is Unix time."""
        return self.expiry_date / 1000 - now

    def with_refresh(self, granted: TokenResponse, now: float) -> TokenSet:
        """Return the tokens after a refresh; what the response does not name stays."""
        fresh = from_response(granted, now)
        return replace(
            fresh,
            refresh_token=fresh.refresh_token or self.refresh_token,
            resource_url=fresh.resource_url or self.resource_url,
            others=self.others,
        )


def from_response(granted: TokenResponse, now: float) -> TokenSet:
    """Return the tokens of a new login."""
    lasts = granted.expires_in if granted.expires_in is not None else LIFETIME
    end = int((now + lasts) * 1000)
    return TokenSet(
        granted.access_token,
        granted.refresh_token or "",
        granted.token_type,
        end,
        granted.resource_url,
        lifetime=lasts,
    )


def load(data: bytes) -> TokenSet | None:
    """Return the tokens in a file's bytes; None if it holds none."""
    try:
        value = json_codec.loads(data)
    except ValueError:
        return None
    if not isinstance(value, dict) or not _text(value, "access_token"):
        return None
    return TokenSet(
        _text(value, "access_token"),
        _text(value, "refresh_token"),
        _text(value, "token_type") or "Bearer",
        _milliseconds(value.get("expiry_date")),
        _text(value, "resource_url") or None,
        {name: item for name, item in value.items() if name not in _KNOWN},
        _seconds(value.get("expires_in")),
    )


def _text(value: Mapping[str, Any], name: str) -> str:
    item = value.get(name)
    return item if isinstance(item, str) else ""


def _milliseconds(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and abs(value) < 1e16 else 0


def _seconds(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number and 0 < value < 1e13 else None


def dump(tokens: TokenSet) -> bytes:
    """Return the file's bytes: one object, indented as qwen-code does."""
    fields: dict[str, Any] = {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "token_type": tokens.token_type,
        "resource_url": tokens.resource_url,
        "expiry_date": tokens.expiry_date,
        "expires_in": tokens.lifetime,
    }
    known = {name: value for name, value in fields.items() if value is not None}
    return json.dumps({**known, **tokens.others}, indent=2, ensure_ascii=True).encode()
