"""What was accepted, until when: sessions of the dashboard, and keys from an address; digests only.

    grants_file   a file for all processes of a machine, or memory for one process

A grant is a digest of a kind that is good until its end or until it is revoked, in every process that shares the
store and after every restart.  Whoever reads the store learns no secret from it.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.wire.errors import QproxyError, RetryHint


class GrantsError(QproxyError):
    """The store of grants cannot be used now."""

    status = 503
    code: str | None = "store_unavailable"
    retry = RetryHint.SOON


class Grants(Protocol):
    """Where grants are.  Every method may raise GrantsError."""

    async def add(self, kind: str, digest: bytes, ends: float, *, epoch: str = "") -> None:
        """Grant until `ends` (Unix time).  `epoch` names what the grant was made under, for `retain`."""
        ...

    async def has(self, kind: str, digest: bytes) -> bool:
        """Whether it is granted now."""
        ...

    async def revoke(self, kind: str, digest: bytes) -> None:
        """End it; nothing where there is none."""
        ...

    async def retain(self, kind: str, epoch: str) -> None:
        """End all of the kind that were made under another epoch."""
        ...

    async def aclose(self) -> None: ...
