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

from qproxy.auth.blocking import LockBusy, Run, held, off_loop
from qproxy.auth.credential_file import CredentialFile, Draft, Stamp, StorageError
from qproxy.auth.device_flow import DeviceFlow
from qproxy.auth.identity_client import Identity
from qproxy.auth.lock import Lock
from qproxy.auth.status import State
from qproxy.auth.token_state import Holding
from qproxy.wire.credential_format import Tokens
from qproxy.wire.oauth import Ended, Granted

LOOK_EVERY = 5.0
"""Seconds between two looks at the file and the wall clock at most: both may change without a word, and a machine that
was suspended has not counted the time."""
SHORTEST_PAUSE = 0.05
"""Seconds between two rounds that nobody asked for, at least."""
log = logging.getLogger("qproxy.auth")


@dataclass(eq=False, slots=True)
class Ask:
    """Somebody waits for a round that begins after now; with a generation, for another one than that."""

    generation: int | None = None
    done: trio.Event = field(default_factory=trio.Event)


class Keeper:
    """Keeps one account's tokens fresh."""

    def __init__(
        self,
        holding: Holding,
        file: CredentialFile,
        lock: Lock,
        identity: Identity,
        *,
        run: Run = off_loop,
        wall: Callable[[], float] = time.time,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self.file = file
        self._holding = holding
        self._lock = lock
        self._identity = identity
        self._run = run
        self._wall = wall
        self._spread = spread
        self._stamp: Stamp | None = None
        self._asks: list[Ask] = []
        self._wake = trio.Event()
        self._told: State | None = None

    def __repr__(self) -> str:
        return f"<Keeper of {self._holding.name}, {len(self._asks)} waiting>"

    def left(self) -> float:
        """Seconds until the token ends."""
        return self._holding.left(self._wall(), trio.current_time())

    def ask(self, ask: Ask) -> None:
        """Have a round begin now, or when the one under way is over."""
        self._asks.append(ask)
        self._wake.set()

    async def keep(self) -> None:
        """Watch over the account until cancelled; to be run once, supervised."""
        while True:
            self._wake, asks, self._asks = trio.Event(), self._asks, []
            try:
                await self._tend(asks)
            finally:
                for ask in asks:
                    ask.done.set()
            self._tell()
            with trio.move_on_after(self._pause()):
                await self._wake.wait()

    def _pause(self) -> float:
        """Seconds until the next round: the refresh is slept to, not come upon.

        A server whose tokens last no time is not asked the faster for it.
        """
        holding, now = self._holding, trio.current_time()
        rested = holding.granted_at + LOOK_EVERY - now
        return min(LOOK_EVERY, max(SHORTEST_PAUSE, rested, holding.until_due(self.left(), now)))

    def flow(self, interval: float) -> DeviceFlow:
        """A sign-in whose tokens go into the file."""
        return DeviceFlow(self._identity, self._sign_in, interval=interval, wall=self._wall)

    async def _sign_in(self, tokens: Tokens) -> None:
        await self._run(self.file.make_directory)
        async with held(self._lock, self._run):
            await self._run(self.file.save, tokens)

    async def sign_out(self) -> bool:
        """Remove the file; whether there was one."""
        if await self._run(self.file.stamp) is None:
            return False
        async with held(self._lock, self._run):
            return bool(await self._run(self.file.remove))

    def _tell(self) -> None:
        """Log the state when it is another one than last time."""
        state = self._holding.state(self.left())
        if state != self._told:
            level = logging.INFO if state == "ready" else logging.WARNING
            log.log(level, "account %s: %s (%s)", self._holding.name, self._holding.words(state), state)
            self._told = state

    async def _tend(self, asks: Sequence[Ask]) -> None:
        """One round: take up what others have written, save what could not be saved, refresh if it is time."""
        held_before = self._holding.generation
        forced = held_before if any(ask.generation == held_before for ask in asks) else None
        try:
            await self._look()
            if self._holding.unsaved:
                await self._save_late()
            elif not self._wanted(forced):
                self._holding.disk = None
        except StorageError as error:
            self._holding.disk = str(error)
        if trio.current_time() >= self._holding.not_before and self._wanted(forced):
            await self._refresh(forced)
            if forced is not None and self._holding.generation != forced:
                self._holding.note_forced(trio.current_time())

    def _wanted(self, forced: int | None) -> bool:
        return self._holding.wanted(self.left(), forced)

    def _take_up(self, tokens: Tokens) -> None:
        self._holding.take_up(tokens, self._wall(), trio.current_time(), self._spread())

    async def _look(self) -> None:
        """Take up the file's tokens if it is another file than last time."""
        stamp = await self._run(self.file.stamp)
        if stamp == self._stamp and stamp is not None:
            return
        found: Tokens | None = await self._run(self.file.read)
        self._stamp, holding = stamp, self._holding
        if found is not None and not (holding.unsaved and found.refresh_token in holding.spent):
            self._take_up(found)
            holding.unsaved = False
        elif stamp is None and not holding.unsaved:
            holding.tokens = None  # signed out

    async def _save_late(self) -> None:
        """Save tokens that have lived in memory only."""
        async with held(self._lock, self._run):
            await self._look()
            if self._holding.unsaved:
                with trio.CancelScope(shield=True):
                    await self._run(self.file.save, self._holding.tokens)
                self._holding.saved()

    async def _refresh(self, forced: int | None) -> None:
        urgent = forced is not None or not self._holding.usable(self.left())
        self._holding.refreshing = True
        try:
            async with AsyncExitStack() as stack:
                if not await self._prepared(stack, urgent) or not self._wanted(forced):
                    return
                draft = await self._draft(stack, urgent)
                if draft is not None or urgent:
                    with trio.CancelScope(shield=True):  # bounded by the timeouts of HTTP and of the disk
                        await self._spend(draft)
        finally:
            self._holding.refreshing = False

    async def _prepared(self, stack: AsyncExitStack, urgent: bool) -> bool:
        """Hold the lock, and know what the file says under it; whether to go on."""
        try:
            await stack.enter_async_context(held(self._lock, self._run))
            await self._look()
        except LockBusy as error:
            self._failed(str(error))
            return False
        except StorageError as error:
            self._no_disk(error, urgent)
            return urgent
        return True

    async def _draft(self, stack: AsyncExitStack, urgent: bool) -> Draft | None:
        """Room on the disk for the answer."""
        try:
            draft: Draft = await self._run(self.file.draft)
        except StorageError as error:
            self._no_disk(error, urgent)
            return None

        async def discard() -> None:
            with trio.CancelScope(shield=True), suppress(StorageError):
                await self._run(draft.discard)

        stack.push_async_callback(discard)
        self._holding.disk = None
        return draft

    def _no_disk(self, error: StorageError, urgent: bool) -> None:
        """What is not urgent waits for the disk."""
        self._holding.disk = str(error)
        if not urgent:
            self._holding.put_off(trio.current_time(), self._spread())

    async def _spend(self, draft: Draft | None) -> None:
        """Use the refresh token, and the file's where ours turns out to be used up."""
        assert self._holding.tokens is not None
        sent = self._holding.tokens.refresh_token
        answer = await self._identity.refresh(sent)
        if isinstance(answer, Ended) and await self._another_than(sent):
            if self._holding.usable(self.left()):
                return
            sent = self._holding.tokens.refresh_token
            answer = await self._identity.refresh(sent)
        if isinstance(answer, Granted):
            await self._granted(answer, sent, draft)
            return
        if isinstance(answer, Ended):
            self._holding.dead = sent
        self._failed(answer.words)

    async def _another_than(self, sent: str) -> bool:
        """Whether the file by now holds another refresh token than the one sent; it is then ours too."""
        try:
            found: Tokens | None = await self._run(self.file.read)
        except StorageError as error:
            self._holding.disk = str(error)
            return False
        if found is None or found.refresh_token in (sent, "", *self._holding.spent):
            return False
        self._take_up(found)
        return True

    async def _granted(self, answer: Granted, sent: str, draft: Draft | None) -> None:
        """Hold the new tokens, whatever the disk says, and put them into the file."""
        assert self._holding.tokens is not None
        wall = self._wall()
        self._take_up(self._holding.tokens.renewed(answer, wall))
        self._holding.granted(sent, wall, trio.current_time())
        log.info("account %s: a new token, for %.0f s", self._holding.name, self.left())
        if draft is not None:
            try:
                await self._run(draft.publish, self._holding.tokens)
            except StorageError as error:
                self._holding.disk = str(error)
            else:
                self._holding.saved()

    def _failed(self, words: str) -> None:
        self._holding.failed(words, trio.current_time(), self._spread())
