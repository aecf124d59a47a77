"""The one task that renews an account's tokens: it watches the file and the clock, round by round.

Here: the order in which lock, file, disk and identity server are asked.  Not here: what is known (`auth.holding`) and
the waiting of requests (`auth.oauth`).

The idea: requests never refresh.  They ask for a round and wait for its end, so there is one refresh at a time, and a
client that leaves cannot tear one in the middle: a torn refresh has spent the refresh token and lost the next.

Before a refresh token is spent, the lock is held, the file is read again (another process may have been faster), and
the disk has shown that it can hold the answer.  If it cannot, the refresh waits until the token in use is about to end,
and the new tokens then live in memory until the disk takes them.  The identity server's refusal is believed only after
the file was read once more.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import trio

from qproxy.auth.blocking import LockTimeout, Run, locked, run_blocking
from qproxy.auth.credential_file import CredentialFile, FileVersion, PendingWrite, StorageError
from qproxy.auth.device_flow import DeviceFlow
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.lock import FileLock
from qproxy.auth.status import LoginStatus
from qproxy.auth.token_state import TokenState
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.oauth import GrantError, TokenResponse

RELOAD_INTERVAL = 5.0
"""Seconds between two looks at the file and the wall clock at most: both may change without a word, and a machine that
was suspended has not counted the time."""
SHORTEST_PAUSE = 0.05
"""Seconds between two rounds that nobody asked for, at least."""
log = logging.getLogger("qproxy.auth")


@dataclass(eq=False, slots=True)
class RefreshRequest:
    """Somebody waits for a round that begins after now; with a generation, for another one than that."""

    generation: int | None = None
    done: trio.Event = field(default_factory=trio.Event)


class TokenRefresher:
    """Keeps one account's tokens fresh."""

    def __init__(
        self,
        token_state: TokenState,
        file: CredentialFile,
        lock: FileLock,
        identity: IdentityClient,
        *,
        run: Run = run_blocking,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.file = file
        self._token_state = token_state
        self._lock = lock
        self._identity = identity
        self._run = run
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._file_version: FileVersion | None = None
        self._requests: list[RefreshRequest] = []
        self._wake = trio.Event()
        self._logged_state: LoginStatus | None = None

    def __repr__(self) -> str:
        return f"<Keeper of {self._token_state.name}, {len(self._requests)} waiting>"

    def seconds_left(self) -> float:
        """Seconds until the token ends."""
        return self._token_state.seconds_left(self._wall_clock(), trio.current_time())

    def request_refresh(self, ask: RefreshRequest) -> None:
        """Have a round begin now, or when the one under way is over."""
        self._requests.append(ask)
        self._wake.set()

    async def run(self) -> None:
        """Watch over the account until cancelled; to be run once, supervised."""
        while True:
            self._wake, asks, self._requests = trio.Event(), self._requests, []
            try:
                await self._run_round(asks)
            finally:
                for ask in asks:
                    ask.done.set()
            self._log_state()
            with trio.move_on_after(self._pause()):
                await self._wake.wait()

    def _pause(self) -> float:
        """Seconds until the next round: the refresh is slept to, not come upon.

        A server whose tokens last no time is not asked the faster for it.
        """
        token_state, now = self._token_state, trio.current_time()
        rested = token_state.granted_at + RELOAD_INTERVAL - now
        return min(
            RELOAD_INTERVAL, max(SHORTEST_PAUSE, rested, token_state.until_due(self.seconds_left(), now))
        )

    def start_login(self, interval: float) -> DeviceFlow:
        """A sign-in whose tokens go into the file."""
        return DeviceFlow(
            self._identity, self._complete_login, interval=interval, wall_clock=self._wall_clock
        )

    async def _complete_login(self, tokens: TokenSet) -> None:
        await self._run(self.file.make_directory)
        async with locked(self._lock, self._run):
            await self._run(self.file.save, tokens)

    async def logout(self) -> bool:
        """Remove the file; whether there was one."""
        if await self._run(self.file.version) is None:
            return False
        async with locked(self._lock, self._run):
            return bool(await self._run(self.file.remove))

    def _log_state(self) -> None:
        """Log the state when it is another one than last time."""
        state = self._token_state.state(self.seconds_left())
        if state != self._logged_state:
            level = logging.INFO if state == "ready" else logging.WARNING
            log.log(
                level, "account %s: %s (%s)", self._token_state.name, self._token_state.message(state), state
            )
            self._logged_state = state

    async def _run_round(self, asks: Sequence[RefreshRequest]) -> None:
        """One round: take up what others have written, save what could not be saved, refresh if it is time."""
        held_before = self._token_state.generation
        forced = held_before if any(ask.generation == held_before for ask in asks) else None
        try:
            await self._reload_file()
            if self._token_state.unsaved_tokens:
                await self._save_pending()
            elif not self._refresh_due(forced):
                self._token_state.storage_error = None
        except StorageError as error:
            self._token_state.storage_error = str(error)
        if trio.current_time() >= self._token_state.not_before and self._refresh_due(forced):
            await self._refresh(forced)
            if forced is not None and self._token_state.generation != forced:
                self._token_state.note_forced(trio.current_time())

    def _refresh_due(self, forced: int | None) -> bool:
        return self._token_state.refresh_due(self.seconds_left(), forced)

    def _adopt(self, tokens: TokenSet) -> None:
        self._token_state.adopt(tokens, self._wall_clock(), trio.current_time(), self._jitter())

    async def _reload_file(self) -> None:
        """Take up the file's tokens if it is another file than last time."""
        stamp = await self._run(self.file.version)
        if stamp == self._file_version and stamp is not None:
            return
        found: TokenSet | None = await self._run(self.file.load)
        self._file_version, token_state = stamp, self._token_state
        if found is not None and not (
            token_state.unsaved_tokens and found.refresh_token in token_state.used_refresh_tokens
        ):
            self._adopt(found)
            token_state.unsaved_tokens = False
        elif stamp is None and not token_state.unsaved_tokens:
            token_state.tokens = None  # signed out

    async def _save_pending(self) -> None:
        """Save tokens that have lived in memory only."""
        async with locked(self._lock, self._run):
            await self._reload_file()
            if self._token_state.unsaved_tokens:
                with trio.CancelScope(shield=True):
                    await self._run(self.file.save, self._token_state.tokens)
                self._token_state.record_saved()

    async def _refresh(self, forced: int | None) -> None:
        urgent = forced is not None or not self._token_state.usable(self.seconds_left())
        self._token_state.refreshing = True
        try:
            async with AsyncExitStack() as stack:
                if not await self._prepare(stack, urgent) or not self._refresh_due(forced):
                    return
                draft = await self._prepare_write(stack, urgent)
                if draft is not None or urgent:
                    with trio.CancelScope(shield=True):  # bounded by the timeouts of HTTP and of the disk
                        await self._exchange(draft)
        finally:
            self._token_state.refreshing = False

    async def _prepare(self, stack: AsyncExitStack, urgent: bool) -> bool:
        """Hold the lock, and know what the file says under it; whether to go on."""
        try:
            await stack.enter_async_context(locked(self._lock, self._run))
            await self._reload_file()
        except LockTimeout as error:
            self._record_failure(str(error))
            return False
        except StorageError as error:
            self._storage_failed(error, urgent)
            return urgent
        return True

    async def _prepare_write(self, stack: AsyncExitStack, urgent: bool) -> PendingWrite | None:
        """Room on the disk for the answer."""
        try:
            draft: PendingWrite = await self._run(self.file.prepare_write)
        except StorageError as error:
            self._storage_failed(error, urgent)
            return None

        async def discard() -> None:
            with trio.CancelScope(shield=True), suppress(StorageError):
                await self._run(draft.discard)

        stack.push_async_callback(discard)
        self._token_state.storage_error = None
        return draft

    def _storage_failed(self, error: StorageError, urgent: bool) -> None:
        """What is not urgent waits for the disk."""
        self._token_state.storage_error = str(error)
        if not urgent:
            self._token_state.postpone(trio.current_time(), self._jitter())

    async def _exchange(self, draft: PendingWrite | None) -> None:
        """Use the refresh token, and the file's where ours turns out to be used up."""
        assert self._token_state.tokens is not None
        sent = self._token_state.tokens.refresh_token
        answer = await self._identity.refresh(sent)
        if isinstance(answer, GrantError) and await self._file_has_newer(sent):
            if self._token_state.usable(self.seconds_left()):
                return
            sent = self._token_state.tokens.refresh_token
            answer = await self._identity.refresh(sent)
        if isinstance(answer, TokenResponse):
            await self._store_tokens(answer, sent, draft)
            return
        if isinstance(answer, GrantError):
            self._token_state.rejected_refresh_token = sent
        self._record_failure(answer.message)

    async def _file_has_newer(self, sent: str) -> bool:
        """Whether the file by now holds another refresh token than the one sent; it is then ours too."""
        try:
            found: TokenSet | None = await self._run(self.file.load)
        except StorageError as error:
            self._token_state.storage_error = str(error)
            return False
        if found is None or found.refresh_token in (sent, "", *self._token_state.used_refresh_tokens):
            return False
        self._adopt(found)
        return True

    async def _store_tokens(self, answer: TokenResponse, sent: str, draft: PendingWrite | None) -> None:
        """Hold the new tokens, whatever the disk says, and put them into the file."""
        assert self._token_state.tokens is not None
        wall_clock = self._wall_clock()
        self._adopt(self._token_state.tokens.with_refresh(answer, wall_clock))
        self._token_state.record_tokens(sent, wall_clock, trio.current_time())
        log.info("account %s: a new token, for %.0f s", self._token_state.name, self.seconds_left())
        if draft is not None:
            try:
                await self._run(draft.commit, self._token_state.tokens)
            except StorageError as error:
                self._token_state.storage_error = str(error)
            else:
                self._token_state.record_saved()

    def _record_failure(self, text: str) -> None:
        self._token_state.record_failure(text, trio.current_time(), self._jitter())
