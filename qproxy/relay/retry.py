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

from qproxy.accounts import Account, Accounts, Task, another
from qproxy.auth import Credential
from qproxy.telemetry import Story
from qproxy.wire.errors import QproxyError, Retry, UpstreamError

T = TypeVar("T")
Begin: TypeAlias = Callable[[Account, Credential, AsyncExitStack], Awaitable[T]]
"""One try with one account; what it opens is entered on the stack."""

MAX_TRIES = 3
"""The first and two quick ones: the client's own retries come on top."""
RETRY_SECONDS = 20.0
"""After that no further try begins: the client has waited long enough to be told."""
LONGEST_PAUSE = 2.0
REFUSALS = frozenset((Retry.ELSEWHERE, Retry.LATER, Retry.REFRESH))
"""The account will not, rather than the server cannot."""


class Action(enum.Enum):
    """What to do after an error before the first meaningful event."""

    GIVE_UP = "give up"
    AGAIN = "again"
    """The same account, after a moment."""
    ELSEWHERE = "elsewhere"
    """Another account, at once."""
    REFRESH = "refresh"
    """The same account with a newer token."""


def decide(error: QproxyError, *, tries: int, others: bool, refreshed: bool, seconds: float = 0.0) -> Action:
    """The one place that says whether to try again.

    `tries` counts those made in `seconds`, `others` says whether an untried account is left, `refreshed` whether
    this request has renewed the account's token already.  Never for the client's own mistakes.  A refusal goes round all
    accounts, for it comes at once and costs the upstream nothing; whatever else fails is tried `MAX_TRIES` times at most.
    """
    if seconds >= RETRY_SECONDS or (error.retry is Retry.ONCE and tries > 1):
        return Action.GIVE_UP
    if error.retry is Retry.REFRESH and not refreshed:
        return Action.REFRESH
    if error.retry is Retry.NEVER or (tries >= MAX_TRIES and not (others and error.retry in REFUSALS)):
        return Action.GIVE_UP
    if others:
        return Action.ELSEWHERE
    soon = (
        error.retry_after or 0.0
    ) <= LONGEST_PAUSE  # what is told to wait longer, the client should wait for
    return Action.AGAIN if error.retry in (Retry.QUICKLY, Retry.ONCE) and soon else Action.GIVE_UP


def pause_before(tries: int, error: QproxyError) -> float:
    """Seconds before the next quick try: 0.2, then 0.4, or what the server asked for."""
    return max(0.2 * 2.0 ** (tries - 1), error.retry_after or 0.0)


def most_hopeful(failures: Sequence[UpstreamError]) -> UpstreamError:
    """What to tell the client: the last word, but of several accounts' refusals rather one that it may wait for, and
    rather one about an account than another account's "no such model"."""
    last = failures[-1]
    refusals = [failure for failure in failures if failure.retry in REFUSALS]
    if last not in refusals:
        return last
    return max(
        reversed(refusals), key=lambda error: (error.should_retry is True, error.status not in (403, 404))
    )


def _never(error: UpstreamError) -> bool:
    return False


class Tries:
    """Those of one request."""

    def __init__(
        self, accounts: Accounts, model: str, story: Story, *, task: Task = "chat", affinity: str = ""
    ) -> None:
        self._accounts = accounts
        self._model = model
        self._story = story
        self._task: Task = task
        self._affinity = affinity
        self._began = trio.current_time()
        self._count = 0
        self._failures: list[UpstreamError] = []
        self._tried: list[Account] = []
        self._failed_at: list[Account] = []
        self._refreshed: list[Account] = []

    def __repr__(self) -> str:
        return f"<Tries {self._count} at {self._model}>"

    async def until_begun(
        self,
        begin: Begin[T],
        stack: AsyncExitStack,
        *,
        mend: Callable[[UpstreamError], bool] = _never,
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
            self._story.tries += 1
            attempt = AsyncExitStack()
            stack.push_async_exit(attempt)
            account = await attempt.enter_async_context(
                self._accounts.lease(
                    self._model,
                    task=self._task,
                    affinity=self._affinity,
                    without=self._tried,
                    tokens=tokens,
                    used=used,
                )
            )
            credential, asked = None, trio.current_time()
            try:
                credential = await account.source.credential()
                self._story.began_try(account.name, self._model, credential.base_url)
                begun = await begin(account, credential, attempt)
            except UpstreamError as error:
                failure = error
                self._story.failed_try(account.name, error)
                account.failed(error, trio.current_time(), self._model, again=account in self._failed_at)
                self._failed_at.append(account)
                await attempt.aclose()
            else:
                account.succeeded(self._model, asked)
                account.source.accepted(credential)
                return begun
            self._story.upstream_request_id = failure.request_id or self._story.upstream_request_id
            if not mend(failure):
                await self._go_on(failure, account, credential)

    async def _go_on(self, failure: UpstreamError, account: Account, credential: Credential | None) -> None:
        """Return when another try may begin; raise what to tell the client when none may."""
        self._failures.append(failure)
        now = trio.current_time()
        others = another(
            self._accounts.accounts, self._model, task=self._task, now=now, without=[*self._tried, account]
        )
        action = decide(
            failure,
            tries=self._count,
            others=others,
            refreshed=account in self._refreshed,
            seconds=now - self._began,
        )
        if failure.retry is Retry.REFRESH and credential is not None:
            newer = await account.source.refused(credential, failure.message)
            if action is Action.REFRESH:
                self._refreshed.append(account)
                if newer:
                    account.renewed()
                    return
                action = Action.ELSEWHERE if others else Action.GIVE_UP
        if action is Action.GIVE_UP:
            raise most_hopeful(self._failures)
        if action is Action.ELSEWHERE:
            self._tried.append(account)
        else:
            pause = pause_before(self._count, failure)
            await trio.sleep(pause)
            self._story.upstream_seconds += pause
