"""Session cookies: a signed identifier with an expiry. Pure.

A session is a random name and an expiry, signed with a key derived from `admin_key`. So all workers accept
it, and another admin key invalidates all sessions. The derivation is slow, so that a stolen cookie is of no
use for guessing the admin key. The signature alone grants no access: the session of a login is also stored by
its `digest`, until it is logged out.

A browser without a login has a session too, signed with a public key: it provides the token for its forms,
which no other page can know.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from functools import lru_cache

SESSION_SECONDS = 12 * 3600
NAME_BYTES = 16
MAX_COOKIE_BYTES = 200


@dataclass(frozen=True, slots=True)
class DashboardSession:
    """The session of one browser."""

    name: str = field(repr=False)
    expires: int
    """Expiry, Unix time."""
    created: bool
    token: str = field(repr=False)
    """Token that its forms must contain, against CSRF."""


@lru_cache(maxsize=4)
def signing_key(admin_key: str | None) -> bytes:
    """Return the signing key for sessions of an admin key, or for sessions without a login."""
    if admin_key is None:
        return hashlib.sha256(b"qproxy dashboard, not signed in").digest()
    return hashlib.scrypt(
        admin_key.encode(), salt=b"qproxy dashboard, signed in", n=2**14, r=8, p=1, dklen=32
    )


def new_session(admin_key: str | None, now: float) -> DashboardSession:
    """Create a session; with an admin key, one with a login."""
    return _session(admin_key, secrets.token_urlsafe(NAME_BYTES), int(now) + SESSION_SECONDS)


def to_cookie(session: DashboardSession, admin_key: str | None) -> str:
    """Return the cookie of a session."""
    return f"{session.name}.{session.expires}.{_sign(admin_key, 'session', session.name, session.expires)}"


def from_cookie(text: str, admin_key: str | None, now: float) -> DashboardSession | None:
    """Return the session of a cookie, None unless its signature is valid and it has not expired."""
    name, _, rest = text[:MAX_COOKIE_BYTES].partition(".")
    ends, _, signature = rest.partition(".")
    if not (ends.isascii() and ends.isdecimal() and signature.isascii()):
        return None
    if not hmac.compare_digest(signature, _sign(admin_key, "session", name, int(ends))):
        return None
    return _session(admin_key, name, int(ends)) if now < int(ends) else None


def session_digest(session: DashboardSession, admin_key: str | None) -> bytes:
    """Return the digest under which a session is stored; the cookie cannot be derived from it."""
    return bytes.fromhex(_sign(admin_key, "record", session.name, session.expires))


def admin_key_epoch(admin_key: str | None) -> str:
    """Return an identifier of the admin key, for revoking sessions of others."""
    return _sign(admin_key, "epoch", "", 0)


def _session(admin_key: str | None, name: str, ends: int) -> DashboardSession:
    return DashboardSession(name, ends, admin_key is not None, _sign(admin_key, "form", name, ends))


def _sign(admin_key: str | None, what: str, name: str, ends: int) -> str:
    return hmac.new(signing_key(admin_key), f"{what} {name} {ends}".encode(), "sha256").hexdigest()
