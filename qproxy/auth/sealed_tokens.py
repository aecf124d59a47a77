"""The interface of a machine's copy of tokens that a server keeps, sealed, for all machines."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol


class SealedTokens(NamedTuple):
    """One generation of an account's tokens; a later one has a higher number."""

    generation: int = 0
    sealed: bytes = b""
    """Nothing is in it after a logout; it is empty for generation 0 only."""


class PendingCopy(Protocol):
    """Room for a generation. Every method may raise StorageError."""

    async def write(self, tokens: SealedTokens) -> None:
        """Replace the copy."""
        ...

    async def discard(self) -> None:
        """Release the room, whether it was used or not."""
        ...


class SealedCopy(Protocol):
    """The copy of one account. Every method may raise StorageError."""

    async def read(self) -> SealedTokens:
        """Return the copy, generation 0 without one."""
        ...

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keep other processes of the machine from writing for the time of a block. Raises LockTimeout."""
        ...

    async def prepare(self) -> PendingCopy:
        """Make room for a generation, inside `exclusive`."""
        ...

    async def keep(self, tokens: SealedTokens) -> bool:
        """Write what another process has published; return whether the copy has it, or a newer one.

        It has not if another process of this machine is writing.
        """
        ...
