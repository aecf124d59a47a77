"""The interface of the store that keeps the tokens of one logged-in account.

Several processes may use the same account, and a refresh token can be used once. So a refresh happens inside
`exclusive`, reads the tokens again there, and asks `prepare_write` for room before it sends the refresh
token: a store that cannot hold the answer is found while the old tokens are still valid.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from qproxy.wire.credential_format import TokenSet


class StorageError(Exception):
    """The store cannot be used; the message has the reason and no token."""


class RefreshForbidden(StorageError):
    """This process must not send the refresh token now: another one may be doing so, or may have done so."""


class LockTimeout(RefreshForbidden):
    """Another process has had exclusive access for too long."""


class RefreshTokenUsed(RefreshForbidden):
    """The refresh token must never be sent again."""


class PendingWrite(Protocol):
    """Room for new tokens."""

    async def commit(self, tokens: TokenSet) -> None:
        """Replace the stored tokens."""
        ...

    async def reject(self) -> None:
        """Record that the identity server has rejected the refresh token."""
        ...

    async def discard(self) -> None:
        """Release the room, whether it was used or not; nothing else can come of the refresh token."""
        ...


class CredentialStore(Protocol):
    """The tokens of one account. Every method may raise StorageError."""

    location: str
    """Where they are, for people."""
    timeout: float
    """Seconds that waiting for other processes and writing may take together."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever another process has changed the tokens, if that is known at once."""
        ...

    async def version(self) -> Hashable | None:
        """Return what changes whenever the tokens do; None if there are none."""
        ...

    async def load(self) -> TokenSet | None:
        """Return the tokens, None if there are none."""
        ...

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keep other processes from writing for the time of a block. Raises LockTimeout."""
        ...

    async def prepare_write(self, refresh_token: str, *, urgent: bool = False) -> PendingWrite:
        """Make room for the tokens that this refresh token, if any, is about to be exchanged for, inside
        `exclusive`.

        `urgent`: the current token is about to expire. Raises RefreshForbidden if it must not be sent.
        """
        ...

    async def save(self, tokens: TokenSet) -> None:
        """Replace the tokens, exclusively."""
        ...

    async def remove(self) -> bool:
        """Remove the tokens, exclusively; return whether there were any."""
        ...


class Cipher(Protocol):
    """Encrypts what a store keeps. Raises StorageError."""

    def encrypt(self, data: bytes) -> bytes: ...

    def decrypt(self, data: bytes) -> bytes: ...
