"""Acting on `choose`: who gets which account when, first come, first served.

A request that cannot be served at once stands in a line, bounded in length and in time.  Whatever ends a reason to wait
(a lease given back, a time that has come) serves the line from its head in one synchronous step, so that nobody who
comes later takes what somebody waits for, and nobody is woken in vain.  Those who want the same keep their order, and
those who want something else are not held up by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio

from qproxy.accounts.account import Account, Task
from qproxy.accounts.rate_limit import NOBODY, Ahead
from qproxy.accounts.selection import Nothing, Wait, choose
from qproxy.accounts.sync import EVERY, Sharing
from qproxy.wire.errors import Overloaded, QproxyError, RequestError

FAREWELL_SECONDS = 2.0
"""For the last words to the board."""
LEAST_WAIT = 0.001
"""Seconds: a clock must have moved before the same question is asked again."""


@dataclass(eq=False, slots=True)
class _Wish:
    """One request for an account."""

    model: str
    task: Task
    affinity: str
    without: tuple[Account, ...]
    tokens: int
    deadline: float
    account: Account | None = None
    """What it was given."""
    error: QproxyError | None = None
    wait: Wait = Wait()
    ahead: Ahead = NOBODY
    """Those before it that want the same."""
    changed: trio.Event | None = None
    """For the time that it waits."""

    @property
    def kind(self) -> tuple[object, ...]:
        """Those of one kind can be served by the same accounts."""
        return (self.model, self.task, self.without)

    def tell(self) -> None:
        """Something has changed for it."""
        if self.changed is not None:
            self.changed.set()

    def until(self, now: float) -> float:
        """When its turn comes by time alone."""
        paced = self.wait.paced
        wait = math.inf if paced is None else paced.pace.wait(self.tokens, now, self.ahead)
        return max(min(now + wait, self.wait.wakes), now + LEAST_WAIT)


class _Lease(AbstractAsyncContextManager[Account]):
    """An account in somebody's hands."""

    def __init__(self, accounts: Accounts, wish: _Wish, used: Callable[[], int | None]) -> None:
        self._accounts = accounts
        self._wish = wish
        self._used = used

    async def __aenter__(self) -> Account:
        return await self._accounts.granted(self._wish)

    async def __aexit__(self, *exc_info: object) -> None:
        account, tokens, spent = self._wish.account, self._wish.tokens, self._used()
        assert account is not None
        self._accounts.give_back(account, 0 if spent is None else account.pace.reserved(tokens) - spent)


class Accounts:
    """All accounts of the server."""

    def __init__(
        self,
        accounts: Sequence[Account],
        *,
        queue_timeout: float = 1.0,
        max_waiting: int = 100,
        sharing: Sharing | None = None,
    ) -> None:
        self.accounts = tuple(accounts)
        self._queue_timeout = queue_timeout
        self._max_waiting = max_waiting
        self._line: list[_Wish] = []
        self.sharing = sharing
        """With whom; nobody, unless somebody says so."""

    def __repr__(self) -> str:
        names = ", ".join(f"{account.name}:{account.in_flight}" for account in self.accounts)
        return f"<Accounts {names}, {len(self._line)} waiting>"

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def counts_tokens(self) -> bool:
        """Whether an account is paced by tokens, so that a request should say how many it will take."""
        return any(account.pace.tokens for account in self.accounts)

    def renew(self, other: Accounts) -> None:
        """Be what `other` is from now on; leases under way end where they began."""
        self.accounts = other.accounts
        self._queue_timeout, self._max_waiting = other._queue_timeout, other._max_waiting
        self._serve()

    async def share(self) -> None:
        """Exchange what is known of the accounts with other processes and with the disk, once."""
        if self.sharing is not None:
            await self.sharing.exchange(self.accounts)
            self._serve()

    async def keep_sharing(self) -> None:
        """Do so every second, and a last time when this is cancelled."""
        try:
            while True:
                await self.share()
                await trio.sleep(EVERY)
        finally:
            with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                await self.share()
                if self.sharing is not None:
                    await self.sharing.aclose()

    def lease(
        self,
        model: str,
        *,
        task: Task = "chat",
        affinity: str = "",
        without: Iterable[Account] = (),
        tokens: int = 0,
        used: Callable[[], int | None] = lambda: None,
    ) -> AbstractAsyncContextManager[Account]:
        """An account counted as in use inside the block.

        Of an account that is paced by tokens `tokens` are reserved, and exchanged at the end for those that `used` tells
        (None: not known).  Overloaded, or a 429 with the time to wait, when none is to be had within `queue_timeout`.
        """
        deadline = trio.current_time() + self._queue_timeout
        return _Lease(self, _Wish(model, task, affinity, tuple(without), tokens, deadline), used)

    async def granted(self, wish: _Wish) -> Account:
        """What a lease begins with: an account that everybody who shares it agrees to."""
        first = False
        if self.sharing is not None and not self.sharing.begun:
            await self.sharing.begin(self.accounts)
        while True:
            account = await self._from_line(wish, first=first)
            if self.sharing is None or not account.identity or not account.pace.limited:
                return account
            try:
                granted = await self.sharing.claimed(account, account.pace.reserved(wish.tokens))
            except BaseException:
                self.give_back(account, account.pace.reserved(wish.tokens))
                raise
            if granted:
                return account
            self._take_back(account)
            wish.account, first = None, True

    async def _from_line(self, wish: _Wish, *, first: bool) -> Account:
        self._line.insert(0 if first else len(self._line), wish)
        try:
            self._serve()
            if wish in self._line and len(self._line) > self._max_waiting:
                raise self._refusal(wish)
            while wish.account is None and wish.error is None:
                await self._turn(wish)
        except BaseException:
            if wish.account is not None:
                self._take_back(wish.account, wish.tokens)
            raise
        finally:
            if wish in self._line:
                self._line.remove(wish)
        if wish.account is None:
            assert wish.error is not None
            raise wish.error
        return wish.account

    async def _turn(self, wish: _Wish) -> None:
        """Wait until something has changed for this one; raise its refusal when that will be too late."""
        now = trio.current_time()
        until = wish.until(now)
        if now >= wish.deadline or (until > wish.deadline and not wish.wait.full):
            raise self._refusal(wish)
        wish.changed = trio.Event()
        with trio.move_on_at(min(until, wish.deadline)):
            await wish.changed.wait()
        if wish.account is None and wish.error is None:
            self._serve()

    def _serve(self) -> None:
        """Give accounts to those in line, from its head; whoever cannot be served yet stays."""
        now = trio.current_time()
        stuck: dict[tuple[object, ...], tuple[Wait, Ahead]] = {}
        for wish in list(self._line):
            wait, ahead = stuck.get(wish.kind, (None, NOBODY))
            choice = wait or self._chosen(wish, now)
            if isinstance(choice, Wait):
                before = wish.until(now)
                wish.wait, wish.ahead = choice, ahead
                stuck[wish.kind] = choice, Ahead(ahead.requests + 1, ahead.tokens + wish.tokens)
                if wish.until(now) < before:
                    wish.tell()
                continue
            self._line.remove(wish)
            if isinstance(choice, Nothing):
                wish.error = choice.error
            else:
                wish.account = choice
                choice.asked(wish.model, now)
                choice.pace.take(choice.pace.reserved(wish.tokens), now)
            wish.tell()

    def _chosen(self, wish: _Wish, now: float) -> Account | Wait | Nothing:
        return choose(
            self.accounts,
            wish.model,
            now=now,
            task=wish.task,
            affinity=wish.affinity,
            without=wish.without,
            tokens=wish.tokens,
        )

    def give_back(self, account: Account, tokens: int) -> None:
        """What a lease ends with; so many `tokens` of those that it reserved are left."""
        account.in_flight -= 1
        if tokens:
            account.pace.give_back(tokens, trio.current_time())
        if self._line:
            self._serve()

    def _take_back(self, account: Account, tokens: int | None = None) -> None:
        """As if it had never been given; `tokens` where its pace does not know yet."""
        account.requests -= 1
        if tokens is not None:
            account.pace.take(-account.pace.reserved(tokens), trio.current_time(), requests=-1)
        self.give_back(account, 0)

    def _refusal(self, wish: _Wish) -> QproxyError:
        now = trio.current_time()
        paced = wish.wait.paced
        if paced is None or wish.wait.full:
            message = "Every account that serves this model is at its limit of requests at once."
            return Overloaded(message, retry_after=1)
        wait = wish.until(now) - now
        message = (
            f"Every account that serves this model is paced here: {paced.name} to {paced.pace.words()}. "
            f"Try again in {wait:.1f} s."
        )
        return RequestError(
            message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait
        )
