"""This machine's copy of an account's sealed tokens, which a server keeps for all machines.

It holds what the server may lose: a process that still has newer tokens than the server gives them back. The
copy is written for each generation, with the same care as a credential file.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qproxy.auth.credential_store import StorageError
from qproxy.auth.sealed_tokens import SealedTokens
from qproxy.backends.local.blocking import Run, locked, run_blocking
from qproxy.backends.local.credential_file import CredentialFile, PendingFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.wire import json_codec


class CredentialCopy:
    """The copy of one account."""

    def __init__(self, file: CredentialFile, *, run: Run = run_blocking) -> None:
        """`run` runs the blocking calls."""
        self._file = file
        self._run = run

    def __repr__(self) -> str:
        return f"<CredentialCopy {self._file.path}>"

    async def read(self) -> SealedTokens:
        data = await self._run(self._file.read)
        if data is None:
            return SealedTokens()
        try:
            content = json_codec.loads(data)
            return SealedTokens(int(content["generation"]), content["sealed"].encode("ascii"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StorageError(f"{self._file.path} is not a copy of tokens in shared_state.") from None

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        await self._run(self._file.make_directory)
        async with locked(FileLock(self._file.path), self._run):
            yield

    async def prepare(self) -> _PendingCopy:
        return _PendingCopy(await self._run(self._file.prepare_write), self._run)

    async def keep(self, tokens: SealedTokens) -> bool:
        await self._run(self._file.make_directory)
        lock = FileLock(self._file.path)
        try:
            if not await self._run(lock.acquire):
                return False
        except OSError as error:
            raise StorageError(f"{lock!r} cannot be acquired: {error.strerror}.") from None
        try:
            if (await self.read()).generation < tokens.generation:
                pending = await self.prepare()
                try:
                    await pending.write(tokens)
                finally:
                    await pending.discard()
            return True
        finally:
            await self._run(lock.release)


class _PendingCopy:
    """The next copy, with room for its content."""

    def __init__(self, file: PendingFile, run: Run) -> None:
        self._file = file
        self._run = run

    async def write(self, tokens: SealedTokens) -> None:
        content = {"generation": tokens.generation, "sealed": tokens.sealed.decode("ascii")}
        await self._run(self._file.write, json_codec.dumps(content))

    async def discard(self) -> None:
        await self._run(self._file.discard)
