"""Names in keys of the server, which show in its logs: digests of what they stand for."""

from __future__ import annotations

import hashlib


def account_name(identity: str) -> str:
    """Return the name of an account, which does not show its identity."""
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
