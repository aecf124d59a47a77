"""The tries of one request: an account, and after an error the same or another one, while that can help.

Here: how often, where and after what pause.  Not here: what a try does (`relay`, `embedding`), which account is
chosen (`accounts`), what an error means (`wire.errors`).  The idea: `decide` is pure, what to do after an error as
a function of the error and of what has been tried; `Tries` acts on it.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias, TypeVar

import trio

from qproxy.accounts import Account, AccountPool, Capability, has_alternative
from qproxy.auth import Credential
from qproxy.telemetry import RelayRecord
from qproxy.wire.errors import QproxyError, RetryHint, UpstreamError

T = TypeVar("T")
StartAttempt: TypeAlias = Callable[[Account, Credential, AsyncExitStack], Awaitable[T]]
"""One try with one account; what it opens is entered on the stack."""

MAX_ATTEMPTS = 3
"""The first and two quick ones: the client's own retries come on top."""
RETRY_BUDGET_SECONDS = 20.0
"""After that no further try begins: the client has waited long enough to be told."""
MAX_BACKOFF = 2.0
REJECTION_STATUSES = frozenset((RetryHint.OTHER_ACCOUNT, RetryHint.AFTER, RetryHint.REFRESH_TOKEN))
"""The account will not, rather than the server cannot."""


class Action(enum.Enum):
    """What to do after an error before the first meaningful event."""

    GIVE_UP = "give up"
    SAME_ACCOUNT = "again"
    """The same account, after a moment."""
    OTHER_ACCOUNT = "elsewhere"
    """Another account, at once."""
    REFRESH_TOKEN = "refresh"
    """The same account with a newer token."""


def next_action(
    error: QproxyError, *, attempts: int, others: bool, refreshed: bool, seconds: float = 0.0
) -> Action:
    """The one place that says whether to try again.

    `tries` counts those made in `seconds`, `others` says whether an untried account is left, `refreshed` whether
    this request has renewed the account's token already.  Never for the client's own mistakes.  A refusal goes round all
    accounts, for it comes at once and costs the upstream nothing; whatever else fails is tried `MAX_TRIES` times at most.
    """
    if seconds >= RETRY_BUDGET_SECONDS or (error.retry is RetryHint.ONCE and attempts > 1):
        return Action.GIVE_UP
    if error.retry is RetryHint.REFRESH_TOKEN and not refreshed:
        return Action.REFRESH_TOKEN
    if error.retry is RetryHint.NEVER or (
        attempts >= MAX_ATTEMPTS and not (others and error.retry in REJECTION_STATUSES)
    ):
        return Action.GIVE_UP
    if others:
        return Action.OTHER_ACCOUNT
    soon = (
        error.retry_after or 0.0
    ) <= MAX_BACKOFF  # what is told to wait longer, the client should wait for
    return Action.SAME_ACCOUNT if error.retry in (RetryHint.SOON, RetryHint.ONCE) and soon else Action.GIVE_UP


def backoff_delay(attempts: int, error: QproxyError) -> float:
    """Seconds before the next quick try: 0.2, then 0.4, or what the server asked for."""
    return max(0.2 * 2.0 ** (attempts - 1), error.retry_after or 0.0)


def most_actionable_error(failures: Sequence[UpstreamError]) -> UpstreamError:
    """What to tell the client: the last word, but of several accounts' refusals rather one that it may wait for, and
    rather one about an account than another account's "no such model"."""
    last = failures[-1]
    refusals = [failure for failure in failures if failure.retry in REJECTION_STATUSES]
    if last not in refusals:
        return last
    return max(
        reversed(refusals), key=lambda error: (error.should_retry is True, error.status not in (403, 404))
    )


def _no_amendment(error: UpstreamError) -> bool:
    return False


class RetryLoop:
    """Those of one request."""

    def __init__(
        self,
        accounts: AccountPool,
        model: str,
        record: RelayRecord,
        *,
        task: Capability = "chat",
        affinity: str = "",
    ) -> None:
        self._accounts = accounts
        self._model = model
        self._record = record
        self._task: Capability = task
        self._affinity = affinity
        self._started_at = trio.current_time()
        self._count = 0
        self._failures: list[UpstreamError] = []
        self._attempted: list[Account] = []
        self._failed_at: list[Account] = []
        self._refreshed: list[Account] = []

    def __repr__(self) -> str:
        return f"<Tries {self._count} at {self._model}>"

    async def run(
        self,
        begin: StartAttempt[T],
        stack: AsyncExitStack,
        *,
        mend: Callable[[UpstreamError], bool] = _no_amendment,
        tokens: int = 0,
        used: Callable[[], int | None] = lambda: None,
    ) -> T:
        """What `begin` gives; what it opened, and the lease, is closed by `stack`.

        An account that is paced by tokens has `tokens` reserved for it, and at the end `used` says how many it took.

        `mend(error)` may change the request and say that this is worth a try of its own.  Raises QproxyError when no
        account could begin.
        """
        while True:
            self._count += 1
            self._record.attempts += 1
            attempt = AsyncExitStack()
            stack.push_async_exit(attempt)
            account = await attempt.enter_async_context(
                self._accounts.lease(
                    self._model,
                    task=self._task,
                    affinity=self._affinity,
                    without=self._attempted,
                    tokens=tokens,
                    used=used,
                )
            )
            credential, request = None, trio.current_time()
            try:
                credential = await account.source.credential()
                self._record.attempt_started(account.name, self._model, credential.base_url)
                started = await begin(account, credential, attempt)
            except UpstreamError as error:
                failure = error
                self._record.attempt_failed(account.name, error)
                account.record_failure(
                    error, trio.current_time(), self._model, again=account in self._failed_at
                )
                self._failed_at.append(account)
                await attempt.aclose()
            else:
                account.record_success(self._model, request)
                account.source.accepted(credential)
                return started
            self._record.upstream_request_id = failure.request_id or self._record.upstream_request_id
            if not mend(failure):
                await self._apply_action(failure, account, credential)

    async def _apply_action(
        self, failure: UpstreamError, account: Account, credential: Credential | None
    ) -> None:
        """Return when another try may begin; raise what to tell the client when none may."""
        self._failures.append(failure)
        now = trio.current_time()
        others = has_alternative(
            self._accounts.accounts,
            self._model,
            task=self._task,
            now=now,
            without=[*self._attempted, account],
        )
        action = next_action(
            failure,
            attempts=self._count,
            others=others,
            refreshed=account in self._refreshed,
            seconds=now - self._started_at,
        )
        if failure.retry is RetryHint.REFRESH_TOKEN and credential is not None:
            newer = await account.source.report_rejected(credential, failure.message)
            if action is Action.REFRESH_TOKEN:
                self._refreshed.append(account)
                if newer:
                    account.token_refreshed()
                    return
                action = Action.OTHER_ACCOUNT if others else Action.GIVE_UP
        if action is Action.GIVE_UP:
            raise most_actionable_error(self._failures)
        if action is Action.OTHER_ACCOUNT:
            self._attempted.append(account)
        else:
            pause = backoff_delay(self._count, failure)
            await trio.sleep(pause)
            self._record.upstream_seconds += pause
