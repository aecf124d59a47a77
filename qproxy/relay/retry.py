"""The attempts of one request: an account, and after an error the same or another one, while that can help.

`next_action` decides, as a pure function of the error and of the attempts so far, and `RetryLoop` acts on it.
An attempt is implemented in `chat_attempt`, `embeddings` and `realtime`, the choice of an account in
`accounts`, the meaning of an error in `wire.errors`.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import trio

from qproxy.accounts import Account, AccountPool, Capability, can_recheck, has_alternative, named_outage
from qproxy.auth import Credential
from qproxy.telemetry import RelayRecord
from qproxy.wire.errors import LimitKind, QproxyError, RetryHint, UpstreamError

T = TypeVar("T")

MAX_ATTEMPTS = 3
"""The first attempt and two quick ones: the client's own retries come on top."""
RETRY_BUDGET_SECONDS = 20.0
"""Seconds after which no further attempt starts: the client has waited long enough for its error."""
MAX_BACKOFF = 2.0
MAX_RECHECKS = 2
"""Accounts in a cooldown that one request tries after a rejection, when no other account is left."""
REJECTION_STATUSES = frozenset((RetryHint.OTHER_ACCOUNT, RetryHint.AFTER, RetryHint.REFRESH_TOKEN))
"""Statuses of an account's rejection, as opposed to a server's failure."""


class Action(enum.Enum):
    """The action after an error before the first content."""

    GIVE_UP = "give up"
    SAME_ACCOUNT = "again"
    """Retry the same account after a backoff."""
    OTHER_ACCOUNT = "elsewhere"
    """Retry another account at once."""
    REFRESH_TOKEN = "refresh"
    """Retry the same account with a refreshed token."""


def next_action(
    error: QproxyError, *, attempts: int, others: bool, refreshed: bool, seconds: float = 0.0
) -> Action:
    """Return what to do after an error.

    `attempts` counts those made in `seconds`, `others` is whether an account is left that is not excluded,
    `refreshed` whether this request has refreshed the account's token already. The client's own mistakes are
    never retried. A rejection is retried with all accounts, because it is immediate and costs the upstream
    nothing; any other failure is attempted at most `MAX_ATTEMPTS` times.
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
    soon = (error.retry_after or 0.0) <= MAX_BACKOFF  # a longer wait is the client's
    return Action.SAME_ACCOUNT if error.retry in (RetryHint.SOON, RetryHint.ONCE) and soon else Action.GIVE_UP


def backoff_delay(attempts: int, error: QproxyError) -> float:
    """Return the seconds before the next quick attempt: 0.2, then 0.4, or what the server asked for."""
    return max(0.2 * 2.0 ** (attempts - 1), error.retry_after or 0.0)


class Failure(NamedTuple):
    """An attempt's error, for the choice of the one that the client gets."""

    error: UpstreamError
    names_model: bool = False
    """Whether the account names the model, so that its "no such model" is about the model."""

    @property
    def lacks_model(self) -> bool:
        """Return whether an account for any model reports that it does not have this one."""
        return self.error.limit is LimitKind.MODEL and not self.names_model


def most_actionable_error(failures: Sequence[Failure]) -> UpstreamError:
    """Return the error for the client: the last one, but of several accounts' rejections preferably one that
    it can wait for, and one about an account rather than another account's "no such model"."""
    errors = [failure.error for failure in failures if not failure.lacks_model]
    errors = errors or [failure.error for failure in failures]
    last = errors[-1]
    refusals = [error for error in errors if error.retry in REJECTION_STATUSES]
    if last not in refusals:
        return last
    return max(
        reversed(refusals), key=lambda error: (error.should_retry is True, error.status not in (403, 404))
    )


@dataclass(slots=True)
class _AccountState:
    """The state of one account within a request."""

    failed: bool = False
    excluded: bool = False
    """Whether the account is not chosen again."""
    refreshed: bool = False
    """Whether its token was refreshed for this request."""


class Attempt(ABC, Generic[T]):
    """A request to an account, started until it succeeds or the loop gives up."""

    tokens = 0
    """Tokens to reserve with an account whose tokens per minute are limited."""

    @abstractmethod
    async def start(self, account: Account, credential: Credential, stack: AsyncExitStack) -> T:
        """Send the request and return what it started; what is opened is entered on `stack`."""

    def amend(self, error: UpstreamError) -> bool:
        """Change the request after an error, and return whether that is worth an attempt of its own."""
        return False

    def tokens_used(self) -> int | None:
        """Return how many of the reserved tokens were used, None where that is not known."""
        return None


class RetryLoop:
    """The attempts of one request."""

    def __init__(
        self,
        accounts: AccountPool,
        model: str,
        record: RelayRecord,
        *,
        task: Capability = "chat",
        affinity: str = "",
        preferred: str = "",
    ) -> None:
        self._accounts = accounts
        self._model = model
        self._record = record
        self._task: Capability = task
        self._affinity = affinity
        self._preferred = preferred
        self._started_at = trio.current_time()
        self._count = 0
        self._rechecks = 0
        self._failures: list[Failure] = []
        self._states: dict[Account, _AccountState] = {}

    def __repr__(self) -> str:
        return f"<RetryLoop attempt {self._count} at {self._model}>"

    async def run(self, attempt: Attempt[T], stack: AsyncExitStack) -> T:
        """Return what `attempt.start` returns; what it opened, and the account's lease, is closed by `stack`.

        Raises QproxyError when no account could start it.
        """
        while True:
            self._count += 1
            self._record.attempts += 1
            opened = AsyncExitStack()
            stack.push_async_exit(opened)
            try:
                account = await opened.enter_async_context(self._lease(attempt))
            except UpstreamError as error:
                if self._failures and error.retry is not RetryHint.AFTER:  # no account is left to try
                    raise self._final_error() from None
                raise
            credential, started_at = None, trio.current_time()
            try:
                credential = await account.source.credential()
                self._record.attempt_started(account.name, self._model, credential.base_url)
                result = await attempt.start(account, credential, opened)
            except UpstreamError as error:
                failure = error
                self._record_failure(account, error)
                await opened.aclose()
            else:
                account.record_success(self._model, started_at)
                account.source.report_accepted(credential)
                return result
            self._record.upstream_request_id = failure.request_id or self._record.upstream_request_id
            if not attempt.amend(failure):
                await self._apply_action(failure, account, credential)

    def _lease(self, attempt: Attempt[T]) -> AbstractAsyncContextManager[Account]:
        return self._accounts.lease(
            self._model,
            task=self._task,
            affinity=self._affinity,
            preferred=self._preferred,
            without=self._excluded() if self._states else (),
            tokens=attempt.tokens,
            used=attempt.tokens_used,
        )

    def _has_alternative(self, failure: UpstreamError, account: Account, now: float) -> bool:
        """Return whether another account may be tried, during its cooldown if there is no other and few
        were."""
        without = [*self._excluded(), account]
        pool, model = self._accounts.accounts, self._model
        if has_alternative(pool, model, task=self._task, now=now, without=without):
            return True
        if failure.retry not in REJECTION_STATUSES or self._rechecks >= MAX_RECHECKS:
            return False
        lacks_model = all(earlier.lacks_model for earlier in self._failures)
        found = can_recheck(pool, model, task=self._task, now=now, without=without, lacks_model=lacks_model)
        self._rechecks += found
        return found

    def _final_error(self) -> UpstreamError:
        """Return the error for the client; an outage of the accounts that name the model outranks the "no
        such model" of others."""
        outage = None
        if all(failure.lacks_model for failure in self._failures):
            pool, now = self._accounts.accounts, trio.current_time()
            outage = named_outage(pool, self._model, now=now, task=self._task)
        return outage or most_actionable_error(self._failures)

    def _excluded(self) -> list[Account]:
        return [account for account, state in self._states.items() if state.excluded]

    def _record_failure(self, account: Account, error: UpstreamError) -> None:
        state = self._states.setdefault(account, _AccountState())
        self._record.attempt_failed(account.name, error)
        account.record_failure(error, trio.current_time(), self._model, again=state.failed)
        state.failed = True

    async def _apply_action(
        self, failure: UpstreamError, account: Account, credential: Credential | None
    ) -> None:
        """Return when another attempt may start. Raises the error for the client when none may."""
        self._failures.append(Failure(failure, account.names(self._model)))
        now, state = trio.current_time(), self._states[account]
        others = self._has_alternative(failure, account, now)
        action = next_action(
            failure,
            attempts=self._count,
            others=others,
            refreshed=state.refreshed,
            seconds=now - self._started_at,
        )
        if failure.retry is RetryHint.REFRESH_TOKEN and credential is not None:
            newer = await account.source.report_rejected(credential, failure.message)
            if action is Action.REFRESH_TOKEN:
                state.refreshed = True
                if newer:
                    account.token_refreshed()
                    return
                action = Action.OTHER_ACCOUNT if others else Action.GIVE_UP
        if action is Action.GIVE_UP:
            raise self._final_error()
        if action is Action.OTHER_ACCOUNT:
            state.excluded = True
        else:
            pause = backoff_delay(self._count, failure)
            await trio.sleep(pause)
            self._record.upstream_seconds += pause
