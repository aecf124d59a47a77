"""The file that holds one account's tokens: read with suspicion, written so that no crash can spoil it.

Here: plain, blocking calls of the operating system, which the callers put in a thread.  Not here: the format
(`wire.tokens`), who may write (`auth.locks`), and when (`auth.oauth`).

The idea: a `Draft` is opened, filled and flushed to the disk *before* a refresh token is spent, so a full or read-only
disk is found while the old tokens are still good.  Publishing it is a rename: at every moment the path names either the
old file or the new one, whole.  A draft is readable for its owner only from its first byte, and what a killed process
left behind is swept away by the next.

A symbolic link is neither read nor written through: the tokens stay where the operator's settings say.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeAlias

from qproxy.system.directories import make_private_directory
from qproxy.wire import credential_format
from qproxy.wire.credential_format import TokenSet

FILE_NAME = "oauth_creds.json"
MAX_BYTES = 1024 * 1024
RESERVED_BYTES = 16 * 1024
"""Bytes that a draft makes sure of; a file of tokens has about two thousand."""
FileVersion: TypeAlias = tuple[int, int, int]


class StorageError(Exception):
    """The file cannot be used; the message says why and holds nothing of it."""


class Cipher(Protocol):
    """Closes and opens what a file holds; StorageError when it cannot."""

    def encrypt(self, data: bytes) -> bytes: ...

    def decrypt(self, data: bytes) -> bytes: ...


class CredentialFile:
    """One account's file."""

    def __init__(self, path: Path, *, shared: bool = False, cipher: Cipher | None = None) -> None:
        self.path = path
        self._shared = shared
        self._cipher = cipher
        self._prefix = f".{path.name}.qproxy-"

    def __repr__(self) -> str:
        return f"<CredentialFile {self.path}>"

    def version(self) -> FileVersion | None:
        """What changes whenever the file does; None while there is none."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._storage_error("cannot be seen", error) from None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def load(self) -> TokenSet | None:
        """The tokens; None when there is no file, or when it holds none."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._storage_error("cannot be read", error) from None
        try:
            data = self._parse(fd)
        except OSError as error:
            raise self._storage_error("cannot be read", error) from None
        finally:
            os.close(fd)
        return credential_format.load(self._cipher.decrypt(data) if self._cipher is not None else data)

    def _parse(self, fd: int) -> bytes:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError(f"{self.path} is not a regular file.")
        pieces = []
        while piece := os.read(fd, MAX_BYTES):
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_BYTES:
                raise StorageError(f"{self.path} is too large for a file of tokens.")
        return b"".join(pieces)

    def make_directory(self) -> None:
        """The directory, for its owner only; one that is shared with other programs stays as it is."""
        folder = self.path.parent
        try:
            make_private_directory(folder)
            if not self._shared and folder.stat().st_mode & 0o077:
                folder.chmod(0o700)
        except OSError as error:
            raise self._storage_error("cannot be saved", error) from None

    def prepare_write(self) -> PendingWrite:
        """Room on the disk for the next tokens.  To be called by the holder of the lock."""
        self.make_directory()
        try:
            self._remove_stale_files()
            return PendingWrite(self, self.path.with_name(self._prefix + secrets.token_hex(8)))
        except OSError as error:
            raise self._storage_error("cannot be saved", error) from None

    def save(self, tokens: TokenSet) -> None:
        """Put tokens into the file."""
        draft = self.prepare_write()
        try:
            draft.commit(tokens)
        finally:
            draft.discard()

    def remove(self) -> bool:
        """Remove the file; whether there was one."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._storage_error("cannot be removed", error) from None
        return True

    def encrypted(self, tokens: TokenSet) -> bytes:
        data = credential_format.dump(tokens)
        return self._cipher.encrypt(data) if self._cipher is not None else data

    def _remove_stale_files(self) -> None:
        """Remove the drafts of processes that were killed: the lock is ours, so nobody else is writing one."""
        for name in os.listdir(self.path.parent):
            if name.startswith(self._prefix):
                with suppress(OSError):
                    os.unlink(self.path.with_name(name))

    def _storage_error(self, what: str, error: OSError) -> StorageError:
        link = self.path.is_symlink()
        reason = (
            "it is a symbolic link, which is not followed" if link else error.strerror or type(error).__name__
        )
        return StorageError(f"{self.path} {what}: {reason}.")


class PendingWrite:
    """A file to be, with room for what it will hold."""

    def __init__(self, file: CredentialFile, path: Path) -> None:
        self._file = file
        self._path: Path | None = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            _write(self._fd, b" " * RESERVED_BYTES)
            os.fsync(self._fd)
        except BaseException:
            self.discard()
            raise

    def commit(self, tokens: TokenSet) -> None:
        """Fill the draft and let it take the file's place."""
        assert self._path is not None
        try:
            data = self._file.encrypted(tokens)
            os.lseek(self._fd, 0, os.SEEK_SET)
            _write(self._fd, data)
            os.ftruncate(self._fd, len(data))
            os.fsync(self._fd)
            os.rename(self._path, self._file.path)
            self._path = None
            _flush_directory(self._file.path.parent)
        except OSError as error:
            raise self._file._storage_error("cannot be saved", error) from None

    def discard(self) -> None:
        """Close the draft, and remove it unless it was published."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._path is not None:
            path, self._path = self._path, None
            with suppress(OSError):
                os.unlink(path)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _flush_directory(path: Path) -> None:
    """Make a rename last; a file system that cannot has still made it."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
