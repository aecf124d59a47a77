"""The file that holds one account's tokens: read with suspicion, written so that no crash can damage it.

Plain blocking calls of the operating system, which `credentials` runs in a thread. The format is
`wire.credential_format`.

A `PendingFile` is opened, filled and flushed to the disk *before* a refresh token is sent, so a full or
read-only disk is found while the old tokens are still valid. Committing it is a rename: at every moment the
path names either the old file or the new one, whole. It is readable by its owner only from its first byte,
and what a killed process left behind is removed by the next one.

A symbolic link is neither read nor written through: the tokens stay where the operator's settings say.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from qproxy.auth.credential_store import Cipher, StorageError
from qproxy.system.directories import make_private_directory
from qproxy.wire import credential_format
from qproxy.wire.credential_format import TokenSet

MAX_BYTES = 1024 * 1024
RESERVED_BYTES = 16 * 1024
"""Size of the reserved room; a file of tokens has about two thousand bytes."""
FileVersion: TypeAlias = tuple[int, int, int]


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
        """Return what changes whenever the file does; None if there is no file."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._storage_error("cannot be accessed", error) from None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def load(self) -> TokenSet | None:
        """Return the tokens; None if there is no file, or none in it."""
        data = self.read()
        if data is None:
            return None
        return credential_format.load(self._cipher.decrypt(data) if self._cipher is not None else data)

    def read(self) -> bytes | None:
        """Return the content, None if there is no file."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._storage_error("cannot be read", error) from None
        try:
            return self._read(fd)
        except OSError as error:
            raise self._storage_error("cannot be read", error) from None
        finally:
            os.close(fd)

    def _read(self, fd: int) -> bytes:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError(f"{self.path} is not a regular file.")
        pieces = []
        while piece := os.read(fd, MAX_BYTES):
            pieces.append(piece)
            if sum(map(len, pieces)) > MAX_BYTES:
                raise StorageError(f"{self.path} is too large for a credential file.")
        return b"".join(pieces)

    def make_directory(self) -> None:
        """Create the directory, for its owner only; one shared with other programs stays as it is."""
        directory = self.path.parent
        try:
            make_private_directory(directory)
            if not self._shared and directory.stat().st_mode & 0o077:
                directory.chmod(0o700)
        except OSError as error:
            raise self._storage_error("cannot be saved", error) from None

    def prepare_write(self) -> PendingFile:
        """Reserve room on the disk for the next tokens; the caller holds the lock."""
        self.make_directory()
        try:
            self._remove_stale_files()
            return PendingFile(self, self.path.with_name(self._prefix + secrets.token_hex(8)))
        except OSError as error:
            raise self._storage_error("cannot be saved", error) from None

    def save(self, tokens: TokenSet) -> None:
        """Write the tokens."""
        pending = self.prepare_write()
        try:
            pending.commit(tokens)
        finally:
            pending.discard()

    def remove(self) -> bool:
        """Remove the file; return whether there was one."""
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
        """Remove the pending files of killed processes: this one holds the lock, so no other is writing."""
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


class PendingFile:
    """The next file, with room for its content."""

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
        """Write the tokens and replace the file."""
        self.write(self._file.encrypted(tokens))

    def write(self, data: bytes) -> None:
        """Write the content and replace the file."""
        assert self._path is not None
        try:
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
        """Close the pending file, and remove it unless it was committed."""
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
    """Make a rename durable; on a file system that cannot, it has still happened."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
