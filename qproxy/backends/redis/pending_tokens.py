"""The next generation of an account's tokens, from the last step before a refresh token is sent to its copy.

`digest` is set from that step until something is known to have come of it: new tokens, a rejection, or
nothing.
"""

from __future__ import annotations

from typing import Protocol

from qproxy.auth.credential_store import StorageError
from qproxy.auth.sealed_tokens import PendingCopy, SealedTokens
from qproxy.wire.credential_format import TokenSet


class GenerationStore(Protocol):
    """The store that a generation goes to (`credentials`)."""

    unsaved: bool
    """Whether the newest tokens are in memory only."""

    def seal(self, tokens: TokenSet | None, generation: int) -> SealedTokens:
        """Return the tokens as a generation; None for a logout."""
        ...

    async def publish(self, tokens: SealedTokens) -> bool:
        """Make these tokens the newest ones; return whether the server has them."""
        ...

    async def record_outcome(self, operation: str, lease: str, digest: str) -> None:
        """Record what came of a refresh token that was sent (`forget`: nothing, `reject`)."""
        ...


class PendingTokens:
    """The next generation of an account's tokens."""

    def __init__(
        self,
        store: GenerationStore,
        replaced: int,
        room: PendingCopy | None,
        lease: str,
    ) -> None:
        self.lease = lease
        self.digest = ""
        """Of the refresh token that may have been sent, while nothing is known to have come of it."""
        self._store = store
        self._replaced = replaced
        self._room = room

    async def commit(self, tokens: TokenSet | None) -> None:
        """Replace the stored tokens; None is a logout."""
        self.digest = ""
        generation = self._store.seal(tokens, self._replaced + 1)
        published = await self._store.publish(generation)
        error = StorageError("no copy can be written.")
        if self._room is not None:
            try:
                await self._room.write(generation)
                return
            except StorageError as failure:
                error = failure
        if not published:
            self._store.unsaved = True
            raise StorageError(f"shared_state cannot be used, and on this machine: {error}")

    async def reject(self) -> None:
        digest, self.digest = self.digest, ""
        await self._store.record_outcome("reject", self.lease, digest)

    async def discard(self) -> None:
        digest, self.digest = self.digest, ""
        if digest:
            await self._store.record_outcome("forget", self.lease, digest)
        room, self._room = self._room, None
        if room is not None:
            await room.discard()
