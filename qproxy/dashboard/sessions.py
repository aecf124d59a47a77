"""What a browser's cookie says: who it is, until when, and that we said so.  Pure.

A session is a random name and an end, signed with a key that is derived from `admin_key`.  So several workers accept
each other's, and another admin_key ends them all.  The derivation is slow on purpose: a cookie that got into wrong
hands must not serve to guess the admin_key.  The signature alone lets nobody in: a session of somebody who has signed
in is also on record, by its `digest`, until it is logged out.

A browser that has not signed in has a session too, signed with a key that is no secret: it names the browser to itself
and gives its forms a token that no other page can know.
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
    """One browser's."""

    name: str = field(repr=False)
    expires: int
    """Unix time."""
    created: bool
    token: str = field(repr=False)
    """What its forms must say, against other sites' forms (CSRF)."""


@lru_cache(maxsize=4)
def signing_key(admin_key: str | None) -> bytes:
    """The key for the sessions of those who have shown this admin_key, or for everybody's."""
    if admin_key is None:
        return hashlib.sha256(b"qproxy dashboard, not signed in").digest()
    return hashlib.scrypt(
        admin_key.encode(), salt=b"qproxy dashboard, signed in", n=2**14, r=8, p=1, dklen=32
    )


def new_session(admin_key: str | None, now: float) -> DashboardSession:
    """A new session; with the admin_key, of somebody who has shown it."""
    return _session(admin_key, secrets.token_urlsafe(NAME_BYTES), int(now) + SESSION_SECONDS)


def to_cookie(session: DashboardSession, admin_key: str | None) -> str:
    """The session for the browser to keep."""
    return f"{session.name}.{session.expires}.{_sign(admin_key, 'session', session.name, session.expires)}"


def from_cookie(text: str, admin_key: str | None, now: float) -> DashboardSession | None:
    """The session that a cookie names; None unless it was signed with this key and goes on."""
    name, _, rest = text[:MAX_COOKIE_BYTES].partition(".")
    ends, _, signature = rest.partition(".")
    if not (ends.isascii() and ends.isdecimal() and signature.isascii()):
        return None
    if not hmac.compare_digest(signature, _sign(admin_key, "session", name, int(ends))):
        return None
    return _session(admin_key, name, int(ends)) if now < int(ends) else None


def session_digest(session: DashboardSession, admin_key: str | None) -> bytes:
    """What is on record of the session; the cookie cannot be made from it."""
    return bytes.fromhex(_sign(admin_key, "record", session.name, session.expires))


def admin_key_epoch(admin_key: str | None) -> str:
    """A name for the time during which this is the admin_key."""
    return _sign(admin_key, "epoch", "", 0)


def _session(admin_key: str | None, name: str, ends: int) -> DashboardSession:
    return DashboardSession(name, ends, admin_key is not None, _sign(admin_key, "form", name, ends))


def _sign(admin_key: str | None, what: str, name: str, ends: int) -> str:
    return hmac.new(signing_key(admin_key), f"{what} {name} {ends}".encode(), "sha256").hexdigest()
