"""The pool of accounts: leases, and a first-in, first-out queue.

A request that cannot get an account at once waits in a queue bounded in length and time. Whatever ends a
reason to wait (a released lease, an elapsed time) serves the queue from its head in one synchronous step, so
that a later request cannot overtake and no waiter is woken in vain. Requests of one group (model, task) keep
their order and do not block other groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import trio

from qproxy.accounts.account import Account, Capability
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.prompt_homes import PromptHomes
from qproxy.accounts.rate_limit import NO_DEMAND, QueuedDemand
from qproxy.accounts.selection import CapacityWait, Unavailable, select_account
from qproxy.accounts.sync import AccountStateSync
from qproxy.wire.errors import OverloadedError, QproxyError, RequestError
from qproxy.wire.models import ModelCatalog

SHUTDOWN_TIMEOUT = 2.0
"""Seconds for the last exchange of account states."""
MIN_WAIT = 0.001
"""Minimum seconds between two checks: the clock must have advanced."""


@dataclass(eq=False, slots=True)
class _LeaseRequest:
    """A request for an account."""

    model: str
    task: Capability
    affinity: str
    preferred: str
    exclude: tuple[Account, ...]
    tokens: int
    deadline: float
    account: Account | None = None
    """The account it acquired."""
    probed: Mapping[str, Cooldown] = field(default_factory=dict)
    """Expired cooldowns of the account, by key, if the request is the probe after them."""
    has_slot: bool = False
    """Whether the shared state counts it as in flight."""
    error: QproxyError | None = None
    poll_after: CapacityWait = CapacityWait()
    queued_before: QueuedDemand = NO_DEMAND
    """Demand of the requests of the same group ahead in the queue."""
    changed: trio.Event | None = None
    """Set when its place in the queue has changed; None while it does not wait."""

    @property
    def group(self) -> tuple[object, ...]:
        """Return a key shared by requests that the same accounts can serve."""
        return (self.model, self.task, self.exclude)

    def notify(self) -> None:
        """Wake the waiter, if any."""
        if self.changed is not None:
            self.changed.set()

    def next_check(self, now: float) -> float:
        """Return the time at which an account may become available without an event."""
        limited = self.poll_after.rate_limited
        wait = (
            math.inf if limited is None else limited.rate_limiter.wait(self.tokens, now, self.queued_before)
        )
        return max(min(now + wait, self.poll_after.recheck_after), now + MIN_WAIT)


class _AccountLease(AbstractAsyncContextManager[Account]):
    """A lease of one account."""

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
        if self._request.has_slot and self._accounts.sync is not None:
            self._accounts.sync.release(account)
        self._accounts.release(account, 0 if usage is None else account.rate_limiter.reserved(tokens) - usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Settings of a pool that a reload changes."""

    accounts: tuple[Account, ...]
    catalog: ModelCatalog
    """What is known of models, for the accounts that a reload keeps."""
    queue_timeout: float
    max_queue_size: int


class AccountPool:
    """The accounts of a server, and the queue for them."""

    def __init__(
        self,
        accounts: Sequence[Account],
        *,
        queue_timeout: float,
        max_queue_size: int,
        sharing: AccountStateSync | None = None,
    ) -> None:
        self.prompt_homes = PromptHomes()
        self.accounts = tuple(accounts)
        self._queue_timeout = queue_timeout
        self._max_queue_size = max_queue_size
        self._queue: list[_LeaseRequest] = []
        self.sync = sharing
        """Exchanges account states with other processes; None without shared state."""

    def __repr__(self) -> str:
        names = ", ".join(f"{account.name}:{account.in_flight}" for account in self.accounts)
        return f"<AccountPool {names}, {len(self._queue)} waiting>"

    @property
    def queue_size(self) -> int:
        return len(self._queue)

    @property
    def counts_tokens(self) -> bool:
        """Return whether an account has a limit of tokens per minute, which needs estimates."""
        return any(account.rate_limiter.tokens for account in self.accounts)

    def reconfigure(self, settings: PoolSettings) -> None:
        """Replace accounts and limits; leases of removed accounts end normally."""
        self.accounts = settings.accounts
        for account in self.accounts:
            account.catalog = settings.catalog
        self._queue_timeout, self._max_queue_size = settings.queue_timeout, settings.max_queue_size
        self._serve_queue()

    async def start_sync(self) -> None:
        """Exchange account states with the store once."""
        if self.sync is not None:
            await self.sync.exchange(self.accounts)
            self._serve_queue()

    async def run_sync(self) -> None:
        """Exchange account states after each event, every second, and once more when cancelled."""
        assert self.sync is not None
        try:
            while True:
                await self.start_sync()
                await self.sync.wait_event()
        finally:
            with trio.move_on_after(SHUTDOWN_TIMEOUT, shield=True):
                await self.start_sync()
                await self.sync.aclose()

    def lease(
        self,
        model: str,
        *,
        task: Capability = "chat",
        affinity: str = "",
        preferred: str = "",
        without: Iterable[Account] = (),
        tokens: int = 0,
        used: Callable[[], int | None] = lambda: None,
    ) -> AbstractAsyncContextManager[Account]:
        """Return a lease of an account for the time of a block, if possible of the `preferred` one.

        With a limit of tokens per minute, `tokens` are reserved and exchanged at the end for the result of
        `used` (None if unknown). Raises OverloadedError, or a RequestError with status 429, after
        `queue_timeout`.
        """
        deadline = trio.current_time() + self._queue_timeout
        lease_request = _LeaseRequest(model, task, affinity, preferred, tuple(without), tokens, deadline)
        return _AccountLease(self, lease_request, used)

    async def acquire(self, lease_request: _LeaseRequest) -> Account:
        """Acquire an account for a lease, within the limits that all processes share."""
        first = False
        if self.sync is not None and not self.sync.synced:
            await self.sync.start(self.accounts)
        while True:
            account = await self._dequeue(lease_request, first=first)
            if self.sync is None or not account.identity:
                return account
            try:
                grant = await self.sync.acquire(
                    account, account.rate_limiter.reserved(lease_request.tokens), lease_request.probed
                )
            except BaseException:
                self._undo_acquire(account, lease_request.tokens)
                raise
            if grant.granted:
                lease_request.has_slot = grant.has_slot
                return account
            self._undo_acquire(account, None if grant.available else lease_request.tokens)
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
        """Wait until the request may be served; raise its error once its deadline cannot be met."""
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
        """Assign accounts to queued requests from the head; those that cannot be served yet stay."""
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
                lease_request.probed = choice.before_request(lease_request.model, now)
                choice.rate_limiter.acquire(choice.rate_limiter.reserved(lease_request.tokens), now)
            lease_request.notify()

    def _select(self, lease_request: _LeaseRequest, now: float) -> Account | CapacityWait | Unavailable:
        return select_account(
            self.accounts,
            lease_request.model,
            now=now,
            task=lease_request.task,
            affinity=lease_request.affinity,
            preferred=lease_request.preferred,
            without=lease_request.exclude,
            tokens=lease_request.tokens,
        )

    def release(self, account: Account, tokens: int) -> None:
        """Release an account, and return the unused `tokens` of its reservation."""
        account.in_flight -= 1
        if tokens:
            account.rate_limiter.release(tokens, trio.current_time())
        if self._queue:
            self._serve_queue()

    def _undo_acquire(self, account: Account, tokens: int | None = None) -> None:
        """Undo an acquisition; `tokens` are also returned to the rate limiter."""
        account.requests -= 1
        if tokens is not None:
            account.rate_limiter.acquire(
                -account.rate_limiter.reserved(tokens), trio.current_time(), requests=-1
            )
        self.release(account, 0)

    def _unavailable_error(self, lease_request: _LeaseRequest) -> QproxyError:
        now = trio.current_time()
        limited = lease_request.poll_after.rate_limited
        if limited is None or lease_request.poll_after.at_capacity:
            message = "All accounts for this model are at their concurrency limit (max_in_flight)."
            return OverloadedError(message, retry_after=1)
        wait = lease_request.next_check(now) - now
        message = (
            "All accounts for this model are rate limited "
            f"({limited.name}: {limited.rate_limiter.describe()}). Retry in {wait:.1f} s."
        )
        return RequestError(
            message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after=wait
        )
