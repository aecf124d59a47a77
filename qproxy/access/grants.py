"""Grants: secrets that were accepted, and until when. Dashboard sessions, and keys from an address; digests
only.

A grant is the digest of something of a kind. It is valid until it expires or is revoked, in every process
that shares the store and after every restart. Reading the store reveals no secret.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.wire.errors import QproxyError, RetryHint


class GrantStoreError(QproxyError):
    """The store of grants cannot be used."""

    status = 503
    code: str | None = "store_unavailable"
    retry = RetryHint.SOON


class GrantStore(Protocol):
    """The store of grants. Every method may raise GrantStoreError."""

    async def add(self, kind: str, digest: bytes, ends: float, *, epoch: str = "") -> None:
        """Grant until `ends` (Unix time). `epoch` names what the grant depends on, for `retain`."""
        ...

    async def has(self, kind: str, digest: bytes) -> bool:
        """Return whether it is granted now."""
        ...

    async def revoke(self, kind: str, digest: bytes) -> None:
        """Revoke a grant; no error if there is none."""
        ...

    async def retain(self, kind: str, epoch: str) -> None:
        """Revoke all grants of the kind that depend on another epoch."""
        ...

    async def aclose(self) -> None: ...
