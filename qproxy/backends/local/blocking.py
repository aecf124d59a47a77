"""Blocking calls off the event loop, with a time limit; and waiting for a lock, as long as qwen-code does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

from qproxy.auth.credential_store import LockTimeout, StorageError
from qproxy.backends.local.credential_lock import FileLock

DISK_TIMEOUT = 10.0
LOCK_TIMEOUT = 29.0
FIRST_PAUSE, MAX_PAUSE = 0.1, 2.0
Run: TypeAlias = Callable[..., Awaitable[Any]]


async def run_blocking(call: Callable[..., Any], *arguments: Any) -> Any:
    """Run a call that may block in a thread. Raises StorageError after DISK_TIMEOUT."""
    with trio.move_on_after(DISK_TIMEOUT):
        return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=True)
    raise StorageError(f"The disk did not respond within {DISK_TIMEOUT:g} s.")


@asynccontextmanager
async def locked(lock: FileLock, run: Run) -> AsyncIterator[None]:
    """Hold the lock for the time of a block. Raises LockTimeout, or StorageError if it cannot exist."""
    await _acquire(lock, run)
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await run(lock.release)


async def _acquire(lock: FileLock, run: Run) -> None:
    pause, until = FIRST_PAUSE, trio.current_time() + LOCK_TIMEOUT
    while True:
        with trio.CancelScope(shield=True):  # a lock taken by an abandoned call would never be released
            try:
                if await run(lock.acquire):
                    return
            except OSError as error:
                raise StorageError(f"{lock!r} cannot be acquired: {error.strerror}.") from None
        if trio.current_time() + pause > until:
            raise LockTimeout(f"Another program has held {lock!r} for {LOCK_TIMEOUT:g} s.")
        await trio.sleep(pause)
        pause = min(pause * 1.5, MAX_PAUSE)
