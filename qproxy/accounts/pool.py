"""Acting on `select_account`: who gets which account when, first come, first served.

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

from qproxy.accounts.account import Account, Capability
from qproxy.accounts.rate_limit import NO_DEMAND, QueuedDemand
from qproxy.accounts.selection import CapacityWait, Unavailable, select_account
from qproxy.accounts.sync import SYNC_INTERVAL, AccountStateSync
from qproxy.wire.errors import OverloadedError, QproxyError, RequestError
from qproxy.wire.models import ModelCatalog

SHUTDOWN_TIMEOUT = 2.0
"""For the last words to the board."""
MIN_WAIT = 0.001
"""Seconds: a clock must have moved before the same question is asked again."""


@dataclass(eq=False, slots=True)
class _LeaseRequest:
    """One request for an account."""

    model: str
    task: Capability
    affinity: str
    exclude: tuple[Account, ...]
    tokens: int
    deadline: float
    account: Account | None = None
    """What it was given."""
    error: QproxyError | None = None
    poll_after: CapacityWait = CapacityWait()
    queued_before: QueuedDemand = NO_DEMAND
    """Those before it that want the same."""
    changed: trio.Event | None = None
    """For the time that it waits."""

    @property
    def group(self) -> tuple[object, ...]:
        """Those of one kind can be served by the same accounts."""
        return (self.model, self.task, self.exclude)

    def notify(self) -> None:
        """Something has changed for it."""
        if self.changed is not None:
            self.changed.set()

    def next_check(self, now: float) -> float:
        """When its turn comes by time alone."""
        paced = self.poll_after.rate_limited
        wait = math.inf if paced is None else paced.rate_limiter.wait(self.tokens, now, self.queued_before)
        return max(min(now + wait, self.poll_after.recheck_after), now + MIN_WAIT)


class _AccountLease(AbstractAsyncContextManager[Account]):
    """An account in somebody's hands."""

    def __init__(
        self, accounts: AccountPool, lease_request: _LeaseRequest, used: Callable[[], int | None]
    ) -> None:
        self._accounts = accounts
        self._request = lease_request
        self._used = used

    async def __aenter__(self) -> Account:
        return await self._accounts.acquire(self._request)

    async def __aexit__(self, *exc_info: object) -> None:
        account, tokens, usage = self._request.account, self._request.tokens, self._used()
        assert account is not None
        self._accounts.release(account, 0 if usage is None else account.rate_limiter.reserved(tokens) - usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What a reload changes in a pool."""

    accounts: tuple[Account, ...]
    catalog: ModelCatalog
    """What is known of models, for the accounts that a reload keeps."""
    queue_timeout: float
    max_queue_size: int


class AccountPool:
    """All accounts of the server."""

    def __init__(
        self,
        accounts: Sequence[Account],
        *,
        queue_timeout: float,
        max_queue_size: int,
        sharing: AccountStateSync | None = None,
    ) -> None:
        self.accounts = tuple(accounts)
        self._queue_timeout = queue_timeout
        self._max_queue_size = max_queue_size
        self._queue: list[_LeaseRequest] = []
        self.sync = sharing
        """With whom; nobody, unless somebody says so."""

    def __repr__(self) -> str:
        names = ", ".join(f"{account.name}:{account.in_flight}" for account in self.accounts)
        return f"<Accounts {names}, {len(self._queue)} waiting>"

    @property
    def queue_size(self) -> int:
        return len(self._queue)

    @property
    def counts_tokens(self) -> bool:
        """Whether an account is paced by tokens, so that a request should say how many it will take."""
        return any(account.rate_limiter.tokens for account in self.accounts)

    def reconfigure(self, settings: PoolSettings) -> None:
        """Use other accounts and limits from now on; leases of accounts that are gone end normally."""
        self.accounts = settings.accounts
        for account in self.accounts:
            account.catalog = settings.catalog
        self._queue_timeout, self._max_queue_size = settings.queue_timeout, settings.max_queue_size
        self._serve_queue()

    async def start_sync(self) -> None:
        """Exchange what is known of the accounts with other processes and with the disk, once."""
        if self.sync is not None:
            await self.sync.exchange(self.accounts)
            self._serve_queue()

    async def run_sync(self) -> None:
        """Do so every second, and a last time when this is cancelled."""
        try:
            while True:
                await self.start_sync()
                await trio.sleep(SYNC_INTERVAL)
        finally:
            with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
                await self.start_sync()
                if self.sync is not None:
                    await self.sync.aclose()

    def lease(
        self,
        model: str,
        *,
        task: Capability = "chat",
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
        return _AccountLease(
            self, _LeaseRequest(model, task, affinity, tuple(without), tokens, deadline), used
        )

    async def acquire(self, lease_request: _LeaseRequest) -> Account:
        """What a lease begins with: an account that everybody who shares it agrees to."""
        first = False
        if self.sync is not None and not self.sync.synced:
            await self.sync.start(self.accounts)
        while True:
            account = await self._dequeue(lease_request, first=first)
            if self.sync is None or not account.identity or not account.rate_limiter.is_limited:
                return account
            try:
                granted = await self.sync.acquire(
                    account, account.rate_limiter.reserved(lease_request.tokens)
                )
            except BaseException:
                self.release(account, account.rate_limiter.reserved(lease_request.tokens))
                raise
            if granted:
                return account
            self._undo_acquire(account)
            lease_request.account, first = None, True

    async def _dequeue(self, lease_request: _LeaseRequest, *, first: bool) -> Account:
        self._queue.insert(0 if first else len(self._queue), lease_request)
        try:
            self._serve_queue()
            if lease_request in self._queue and len(self._queue) > self._max_queue_size:
                raise self._unavailable_error(lease_request)
            while lease_request.account is None and lease_request.error is None:
                await self._wait_for_turn(lease_request)
        except BaseException:
            if lease_request.account is not None:
                self._undo_acquire(lease_request.account, lease_request.tokens)
            raise
        finally:
            if lease_request in self._queue:
                self._queue.remove(lease_request)
        if lease_request.account is None:
            assert lease_request.error is not None
            raise lease_request.error
        return lease_request.account

    async def _wait_for_turn(self, lease_request: _LeaseRequest) -> None:
        """Wait until something has changed for this one; raise its refusal when that will be too late."""
        now = trio.current_time()
        until = lease_request.next_check(now)
        if now >= lease_request.deadline or (
            until > lease_request.deadline and not lease_request.poll_after.at_capacity
        ):
            raise self._unavailable_error(lease_request)
        lease_request.changed = trio.Event()
        with trio.move_on_at(min(until, lease_request.deadline)):
            await lease_request.changed.wait()
        if lease_request.account is None and lease_request.error is None:
            self._serve_queue()

    def _serve_queue(self) -> None:
        """Give accounts to those in line, from its head; whoever cannot be served yet stays."""
        now = trio.current_time()
        stuck: dict[tuple[object, ...], tuple[CapacityWait, QueuedDemand]] = {}
        for lease_request in list(self._queue):
            wait, ahead = stuck.get(lease_request.group, (None, NO_DEMAND))
            choice = wait or self._select(lease_request, now)
            if isinstance(choice, CapacityWait):
                before = lease_request.next_check(now)
                lease_request.poll_after, lease_request.queued_before = choice, ahead
                stuck[lease_request.group] = (
                    choice,
                    QueuedDemand(ahead.requests + 1, ahead.tokens + lease_request.tokens),
                )
                if lease_request.next_check(now) < before:
                    lease_request.notify()
                continue
            self._queue.remove(lease_request)
            if isinstance(choice, Unavailable):
                lease_request.error = choice.error
            else:
                lease_request.account = choice
                choice.before_request(lease_request.model, now)
                choice.rate_limiter.acquire(choice.rate_limiter.reserved(lease_request.tokens), now)
            lease_request.notify()

    def _select(self, lease_request: _LeaseRequest, now: float) -> Account | CapacityWait | Unavailable:
        return select_account(
            self.accounts,
            lease_request.model,
            now=now,
            task=lease_request.task,
            affinity=lease_request.affinity,
            without=lease_request.exclude,
            tokens=lease_request.tokens,
        )

    def release(self, account: Account, tokens: int) -> None:
        """What a lease ends with; so many `tokens` of those that it reserved are left."""
        account.in_flight -= 1
        if tokens:
            account.rate_limiter.release(tokens, trio.current_time())
        if self._queue:
            self._serve_queue()

    def _undo_acquire(self, account: Account, tokens: int | None = None) -> None:
        """As if it had never been given; `tokens` where its pace does not know yet."""
        account.requests -= 1
        if tokens is not None:
            account.rate_limiter.acquire(
                -account.rate_limiter.reserved(tokens), trio.current_time(), requests=-1
            )
        self.release(account, 0)

    def _unavailable_error(self, lease_request: _LeaseRequest) -> QproxyError:
        now = trio.current_time()
        paced = lease_request.poll_after.rate_limited
        if paced is None or lease_request.poll_after.at_capacity:
            message = "Every account that serves this model is at its limit of requests at once."
            return OverloadedError(message, retry_after=1)
        wait = lease_request.next_check(now) - now
        message = (
            f"Every account that serves this model is paced here: {paced.name} to {paced.rate_limiter.describe()}. "
            f"Try again in {wait:.1f} s."
        )
        return RequestError(
            message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait
        )
