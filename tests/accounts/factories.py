"""Accounts and upstream errors for the tests of this directory."""

from qproxy.accounts import Account
from qproxy.auth import StaticKey
from qproxy.wire.errors import LimitKind, UpstreamError


def account(name, **fields) -> Account:
    return Account(name, StaticKey("http://x"), **fields)


def refusal(limit: LimitKind, message="no", *, waits: float | None = None) -> UpstreamError:
    """Return an upstream error about an account."""
    error = UpstreamError(message, status=429, retry_after=waits)
    error.limit, error.retry_after_hint = limit, waits
    return error
