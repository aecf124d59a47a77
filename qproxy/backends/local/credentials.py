"""The tokens of an account in a file, for all processes of a machine: the file and its locks, off the event
loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from qproxy.backends.local.blocking import DISK_TIMEOUT, LOCK_TIMEOUT, Run, locked, run_blocking
from qproxy.backends.local.credential_file import CredentialFile, FileVersion, PendingFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.wire.credential_format import TokenSet


class FileCredentials:
    """The store of one account."""

    timeout = LOCK_TIMEOUT + DISK_TIMEOUT

    def __init__(self, file: CredentialFile, lock: FileLock, *, run: Run = run_blocking) -> None:
        """`run` runs the blocking calls."""
        self.file = file
        self.location = str(file.path)
        self._lock = lock
        self._run = run

    def __repr__(self) -> str:
        return f"<FileCredentials {self.location}>"

    def watch(self, changed: Callable[[], None]) -> None:
        """Do nothing: a file is looked at every few seconds."""

    async def version(self) -> FileVersion | None:
        version: FileVersion | None = await self._run(self.file.version)
        return version

    async def load(self) -> TokenSet | None:
        tokens: TokenSet | None = await self._run(self.file.load)
        return tokens

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        async with locked(self._lock, self._run):
            yield

    async def prepare_write(self, refresh_token: str, *, urgent: bool = False) -> _PendingWrite:
        return _PendingWrite(await self._run(self.file.prepare_write), self._run)

    async def save(self, tokens: TokenSet) -> None:
        await self._run(self.file.make_directory)
        async with self.exclusive():
            await self._run(self.file.save, tokens)

    async def remove(self) -> bool:
        if await self.version() is None:
            return False
        async with self.exclusive():
            return bool(await self._run(self.file.remove))


class _PendingWrite:
    """The next file of an account."""

    def __init__(self, file: PendingFile, run: Run) -> None:
        self._file = file
        self._run = run

    async def commit(self, tokens: TokenSet) -> None:
        await self._run(self._file.commit, tokens)

    async def reject(self) -> None:
        """Do nothing: every process of the machine finds out by itself."""

    async def discard(self) -> None:
        await self._run(self._file.discard)
