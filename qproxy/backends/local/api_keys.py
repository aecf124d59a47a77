"""API keys in a file (`key_file`), besides those of the settings.

A running server applies a change to its next request. A file that cannot be read changes nothing: the keys
read before stay in use.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import trio

from qproxy.access.api_keys import ApiKey, ApiKeyStoreBusy, ApiKeyStoreError, StaticApiKeys
from qproxy.backends.local import key_file

T = TypeVar("T")
CHANGE_TIMEOUT = 5.0
"""Seconds for a change; another process may hold the lock."""
log = logging.getLogger("qproxy.backends")


class FileApiKeys:
    """The keys of the settings and of a file, which is read again whenever it was changed."""

    def __init__(
        self,
        path: Path,
        configured: Sequence[ApiKey] = (),
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises ApiKeyStoreError if the file cannot be read."""
        self.path = path
        self._configured = tuple(configured)
        self._wall_clock = wall_clock
        self._version = self._file_version()
        self._known = StaticApiKeys((*self._configured, *key_file.read(path)))

    def __repr__(self) -> str:
        return f"<FileApiKeys {self._known!r}>"

    @property
    def writable(self) -> bool:
        return True

    def list_keys(self) -> tuple[ApiKey, ...]:
        self._refresh()
        return self._known.list_keys()

    def required(self) -> bool:
        self._refresh()
        return self._known.required()

    def authenticate(self, secret: str) -> ApiKey:
        return self._known.find(secret, self._wall_clock())

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        return await _in_thread(lambda: key_file.create(self.path, **fields))

    async def revoke(self, id_or_name: str) -> ApiKey:
        return await _in_thread(lambda: key_file.revoke(self.path, id_or_name))

    def _file_version(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self.path)
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _refresh(self) -> None:
        """Read the file again if it was changed; looking costs a microsecond."""
        version = self._file_version()
        if version == self._version:
            return
        self._version = version
        try:
            if version is None:
                raise ApiKeyStoreError(f"{self.path}: the file does not exist any more.")
            self._known = StaticApiKeys((*self._configured, *key_file.read(self.path)))
        except ApiKeyStoreError as error:
            log.warning("cannot read keys, keeping the current ones: %s", error)


async def _in_thread(change: Callable[[], T]) -> T:
    """Change the file in a thread, which is abandoned if another process holds the lock for too long."""
    with trio.move_on_after(CHANGE_TIMEOUT):
        return await trio.to_thread.run_sync(change, abandon_on_cancel=True)
    raise ApiKeyStoreBusy(
        "the key file is locked by another process: check in a moment whether it was changed."
    )
