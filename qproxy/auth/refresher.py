"""The task that refreshes an account's tokens: it watches the store and the clock, in rounds.

Requests never refresh. They request a round and wait for its end, so there is one refresh at a time, and a
client that disconnects cannot interrupt one: an interrupted refresh has used up the refresh token and lost
the next one.

Before a refresh token is sent, the store is locked, the tokens are read again (another process may have been
faster), and the store has made room for the answer. If it cannot, the refresh waits until the current token
is about to expire, and the new tokens then stay in memory until the store accepts them. The identity server's
rejection is believed only after the tokens were read once more. `token_state` holds the state; `oauth_source`
makes requests wait.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field

import trio

from qproxy.auth.credential_store import (
    CredentialStore,
    PendingWrite,
    RefreshForbidden,
    RefreshTokenUsed,
    StorageError,
)
from qproxy.auth.device_flow import DeviceFlow
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.status import LoginStatus
from qproxy.auth.token_state import TokenState
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.oauth import GrantError, TokenResponse

RELOAD_INTERVAL = 5.0
"""Maximum seconds between two checks of the store and the wall clock: both may change without notice, and a
machine that was suspended has not counted the time."""
MIN_PAUSE = 0.05
"""Minimum seconds between two rounds that no request waits for."""
log = logging.getLogger("qproxy.auth")


@dataclass(eq=False, slots=True)
class RefreshRequest:
    """A wait for a round that starts later; with a generation, for tokens of another one."""

    generation: int | None = None
    done: trio.Event = field(default_factory=trio.Event)


class TokenRefresher:
    """Keeps one account's tokens fresh."""

    def __init__(
        self,
        token_state: TokenState,
        store: CredentialStore,
        identity: IdentityClient,
        *,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.store = store
        self._token_state = token_state
        self._identity = identity
        self._wall_clock = wall_clock
        self._jitter = jitter
        self._stored_version: Hashable | None = None
        self._requests: list[RefreshRequest] = []
        self._wake = trio.Event()
        self.loaded = trio.Event()
        """Set once the stored tokens have been read, or could not be."""
        self._logged_state: LoginStatus | None = None
        store.watch(self._look)

    def __repr__(self) -> str:
        return f"<TokenRefresher {self._token_state.name}, {len(self._requests)} waiting>"

    def seconds_left(self) -> float:
        """Return the seconds until the token expires."""
        return self._token_state.seconds_left(self._wall_clock(), trio.current_time())

    def request_refresh(self, request: RefreshRequest) -> None:
        """Start a round now, or after the current one."""
        self._requests.append(request)
        self._wake.set()

    def _look(self) -> None:
        """Start a round: another process has changed the tokens."""
        self._wake.set()

    async def run(self) -> None:
        """Keep the tokens fresh until cancelled; to be run once, supervised."""
        while True:
            self._wake, requests, self._requests = trio.Event(), self._requests, []
            try:
                await self._run_round(requests)
            finally:
                for request in requests:
                    request.done.set()
            self._log_state()
            with trio.move_on_after(self._next_delay()):
                await self._wake.wait()

    def _next_delay(self) -> float:
        """Return the seconds until the next round, which starts when a refresh is due.

        A server whose tokens expire at once does not cause more refreshes.
        """
        token_state, now = self._token_state, trio.current_time()
        rested = token_state.granted_at + RELOAD_INTERVAL - now
        return min(
            RELOAD_INTERVAL, max(MIN_PAUSE, rested, token_state.seconds_until_due(self.seconds_left(), now))
        )

    def start_login(self, interval: float) -> DeviceFlow:
        """Return a login, not started, whose tokens go into the store."""
        return DeviceFlow(self._identity, self.store.save, interval=interval, wall_clock=self._wall_clock)

    def _log_state(self) -> None:
        """Log the state if it has changed."""
        state = self._token_state.state(self.seconds_left())
        if state != self._logged_state:
            level = logging.INFO if state == "ready" else logging.WARNING
            log.log(
                level, "account %s: %s (%s)", self._token_state.name, self._token_state.message(state), state
            )
            self._logged_state = state

    async def _run_round(self, requests: Sequence[RefreshRequest]) -> None:
        """Run one round: adopt stored tokens, store pending ones, refresh if due."""
        held_before = self._token_state.generation
        forced = held_before if any(request.generation == held_before for request in requests) else None
        try:
            await self._reload_stored()
            if self._token_state.unsaved_tokens:
                await self._save_pending()
            elif not self._refresh_due(forced):
                self._token_state.storage_error = None
        except StorageError as error:
            self._token_state.storage_error = str(error)
        self.loaded.set()
        if trio.current_time() >= self._token_state.not_before and self._refresh_due(forced):
            await self._refresh(forced)
            if forced is not None and self._token_state.generation != forced:
                self._token_state.record_forced_refresh(trio.current_time())

    def _refresh_due(self, forced: int | None) -> bool:
        return self._token_state.refresh_due(self.seconds_left(), forced)

    def _adopt(self, tokens: TokenSet) -> None:
        self._token_state.adopt(tokens, self._wall_clock(), trio.current_time(), self._jitter())

    async def _reload_stored(self) -> None:
        """Adopt the stored tokens if they have changed."""
        stamp = await self.store.version()
        if stamp == self._stored_version and stamp is not None:
            return
        found = await self.store.load()
        self._stored_version, token_state = stamp, self._token_state
        if found is not None and not (
            token_state.unsaved_tokens and found.refresh_token in token_state.used_refresh_tokens
        ):
            self._adopt(found)
            token_state.unsaved_tokens = False
        elif stamp is None and not token_state.unsaved_tokens:
            token_state.tokens = None  # logged out

    async def _save_pending(self) -> None:
        """Store tokens that are in memory only."""
        async with self.store.exclusive():
            await self._reload_stored()
            tokens = self._token_state.tokens
            if self._token_state.unsaved_tokens and tokens is not None:
                with trio.CancelScope(shield=True):
                    pending = await self.store.prepare_write("")
                    try:
                        await pending.commit(tokens)
                    finally:
                        await pending.discard()
                self._token_state.record_saved()

    async def _refresh(self, forced: int | None) -> None:
        urgent = forced is not None or not self._token_state.is_usable(self.seconds_left())
        self._token_state.refreshing = True
        try:
            async with AsyncExitStack() as stack:
                if not await self._prepare(stack, urgent) or not self._refresh_due(forced):
                    return
                pending = await self._prepare_write(stack, urgent)
                if pending is not None or urgent:
                    with trio.CancelScope(shield=True):  # bounded by the timeouts of HTTP and of the store
                        await self._exchange(stack, pending)
        except RefreshForbidden as error:
            with suppress(StorageError):
                await self._reload_stored()  # the other process may have refreshed
            if self._refresh_due(forced) or not self._token_state.is_renewable():
                self._record_failure(str(error))
        finally:
            self._token_state.refreshing = False

    async def _prepare(self, stack: AsyncExitStack, urgent: bool) -> bool:
        """Lock the store and read the tokens again; return whether to continue."""
        try:
            await stack.enter_async_context(self.store.exclusive())
            await self._reload_stored()
        except RefreshForbidden:
            raise
        except StorageError as error:
            self._storage_failed(error, urgent)
            return urgent
        return True

    async def _prepare_write(self, stack: AsyncExitStack, urgent: bool) -> PendingWrite | None:
        """Make room for the answer. Raises RefreshForbidden."""
        assert self._token_state.tokens is not None
        refresh_token = self._token_state.tokens.refresh_token
        try:
            pending = await self.store.prepare_write(refresh_token, urgent=urgent)
        except RefreshTokenUsed:
            self._token_state.rejected_refresh_token = refresh_token
            raise
        except RefreshForbidden:
            raise
        except StorageError as error:
            self._storage_failed(error, urgent)
            return None

        async def discard() -> None:
            with trio.CancelScope(shield=True), suppress(StorageError):
                await pending.discard()

        stack.push_async_callback(discard)
        self._token_state.storage_error = None
        return pending

    def _storage_failed(self, error: StorageError, urgent: bool) -> None:
        """Postpone a refresh that is not urgent."""
        self._token_state.storage_error = str(error)
        if not urgent:
            self._token_state.postpone(trio.current_time(), self._jitter())

    async def _exchange(self, stack: AsyncExitStack, pending: PendingWrite | None) -> None:
        """Send the refresh token, and the stored one if this one turns out to be used up. Raises
        RefreshForbidden."""
        assert self._token_state.tokens is not None
        sent = self._token_state.tokens.refresh_token
        answer = await self._identity.refresh(sent)
        if isinstance(answer, GrantError) and await self._store_has_newer(sent):
            if self._token_state.is_usable(self.seconds_left()):
                return
            sent = self._token_state.tokens.refresh_token
            if pending is not None:
                pending = await self._prepare_write(stack, urgent=True)
            answer = await self._identity.refresh(sent)
        if isinstance(answer, TokenResponse):
            await self._store_tokens(answer, sent, pending)
            return
        if isinstance(answer, GrantError):
            self._token_state.rejected_refresh_token = sent
            if pending is not None:
                with suppress(StorageError):
                    await pending.reject()
        self._record_failure(answer.message)

    async def _store_has_newer(self, sent: str) -> bool:
        """Adopt the stored tokens if they have another refresh token than the one sent; return whether they
        do."""
        try:
            found = await self.store.load()
        except StorageError as error:
            self._token_state.storage_error = str(error)
            return False
        if found is None or found.refresh_token in (sent, "", *self._token_state.used_refresh_tokens):
            return False
        self._adopt(found)
        return True

    async def _store_tokens(self, answer: TokenResponse, sent: str, pending: PendingWrite | None) -> None:
        """Adopt the new tokens, even if they cannot be stored, and store them."""
        assert self._token_state.tokens is not None
        wall_clock = self._wall_clock()
        self._adopt(self._token_state.tokens.with_refresh(answer, wall_clock))
        self._token_state.record_tokens(sent, wall_clock, trio.current_time())
        log.info(
            "account %s: token refreshed, expires in %.0f s", self._token_state.name, self.seconds_left()
        )
        if pending is not None:
            try:
                await pending.commit(self._token_state.tokens)
            except StorageError as error:
                self._token_state.storage_error = str(error)
            else:
                self._token_state.record_saved()

    def _record_failure(self, text: str) -> None:
        self._token_state.record_failure(text, trio.current_time(), self._jitter())
