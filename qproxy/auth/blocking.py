"""Blocking calls, off the event loop and bounded; and waiting for a lock, with the patience of qwen-code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

from qproxy.auth.credential_file import StorageError
from qproxy.auth.lock import FileLock

DISK_TIMEOUT = 10.0
LOCK_TIMEOUT = 29.0
FIRST_PAUSE, MAX_PAUSE = 0.1, 2.0
Run: TypeAlias = Callable[..., Awaitable[Any]]


class LockTimeout(StorageError):
    """Somebody else holds the lock, and has for long."""


async def run_blocking(call: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call that may block, from a thread."""
    with trio.move_on_after(DISK_TIMEOUT):
        return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)
    raise StorageError(f"The disk did not answer within {DISK_TIMEOUT:g} s.")


@asynccontextmanager
async def locked(lock: FileLock, run: Run) -> AsyncIterator[None]:
    """The lock, for the time of a block.  StorageError when there can be none, LockBusy when it does not come free."""
    await _acquire(lock, run)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await run(lock.release)


async def _acquire(lock: FileLock, run: Run) -> None:
    pause, until = FIRST_PAUSE, trio.current_time() + LOCK_TIMEOUT
    while True:
        with trio.CancelScope(shield=True):  # a lock taken by a call that was given up would be nobody's
            try:
                if await run(lock.acquire):
                    return
            except OSError as error:
                raise StorageError(f"{lock!r} cannot be taken: {error.strerror}.") from None
        if trio.current_time() + pause > until:
            raise LockTimeout(f"Another program has held {lock!r} for {LOCK_TIMEOUT:g} s.")
        await trio.sleep(pause)
        pause = min(pause * 1.5, MAX_PAUSE)
