"""Keep a process's accounts and a board in step.

Once a second: what happened here since the last time is posted, what others posted is taken up.  An account counts
for itself; the differences are taken here.  A board that fails is said once in the log, and the process goes on with
what it knows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from qproxy.accounts.account import Account
from qproxy.accounts.cooldowns import Rest
from qproxy.accounts.shared_state import Board, BoardError, Limits, Login, News, Standing, left
from qproxy.auth.oauth_source import OAuthSource

EVERY = 1.0
log = logging.getLogger("qproxy.accounts")


@dataclass(slots=True)
class _Posted:
    """What the board has been told of an account, and has told."""

    requests: int = 0
    failures: int = 0
    returned: float = 0.0
    quota: str | None = None
    last_error_at: float | None = None
    login: Login | None = None
    here: dict[str, Rest] = field(default_factory=dict)
    """The rests of the account, by Trio's clock."""
    there: Mapping[str, Rest] = field(default_factory=dict)
    """The same on the board, by the wall clock."""


class Sharing:
    """Of one process."""

    def __init__(self, board: Board, *, wall: Callable[[], float] = time.time) -> None:
        self._board = board
        self._wall = wall
        self._posted: dict[str, _Posted] = {}
        self._works = True
        self._beginning = trio.Lock()
        self.begun = False
        """Whether what was known before this process is known to it."""

    def __repr__(self) -> str:
        return f"<Sharing by {self._board}>"

    async def begin(self, accounts: Sequence[Account]) -> None:
        """The first exchange, once for all who wait for it."""
        async with self._beginning:
            if not self.begun:
                await self.exchange(accounts)

    async def aclose(self) -> None:
        await self._board.aclose()

    async def exchange(self, accounts: Sequence[Account]) -> None:
        """Post and take up, once."""
        shared = {account.identity: account for account in accounts if account.identity}
        news = {identity: self._news(account) for identity, account in shared.items()}
        before = {identity: self._snapshot(account) for identity, account in shared.items()}
        try:
            standings = await self._board.exchange(news)
        except BoardError as error:
            self._failed(error)
            return
        finally:
            self.begun = True
        self._works = True
        for identity, account in shared.items():
            self._take_up(account, before[identity], standings.get(identity, Standing()))

    async def claimed(self, account: Account, tokens: int) -> bool:
        """Whether an account's pace, agreed on with everybody, allows one request more."""
        try:
            claim = await self._board.claim(account.identity, _limits(account), tokens)
        except BoardError as error:
            self._failed(error)
            return True
        account.pace.put(claim.requests, claim.tokens, trio.current_time())
        return claim.granted

    def _failed(self, error: BoardError) -> None:
        if self._works:
            log.warning("accounts are paced and remembered by this process alone: %s", error)
        self._works = False

    def _news(self, account: Account) -> News:
        posted = self._posted.setdefault(account.identity, _Posted())
        ahead = self._wall() - trio.current_time()
        began = {
            key: rest.shifted(ahead) for key, rest in account.rests.items() if posted.here.get(key) != rest
        }
        ended = dict.fromkeys(key for key in posted.here if key not in account.rests)
        login = _login(account)
        fresh_error = account.last_error_at != posted.last_error_at
        return News(
            account.name,
            rests={**began, **ended},
            requests=account.requests - posted.requests,
            failures=account.failures - posted.failures,
            in_flight=account.in_flight,
            last_error=account.last_error if fresh_error else None,
            last_error_at=account.last_error_at if fresh_error else None,
            quota=None if account.quota == posted.quota else (account.quota,),
            login=None if login == posted.login else login,
            returned=account.pace.returned - posted.returned,
            limits=_limits(account),
        )

    def _snapshot(self, account: Account) -> _Posted:
        return _Posted(
            account.requests,
            account.failures,
            account.pace.returned,
            account.quota,
            account.last_error_at,
            _login(account),
            dict(account.rests),
        )

    def _take_up(self, account: Account, now_posted: _Posted, standing: Standing) -> None:
        """What others have said, except where something has happened here."""
        now, wall = trio.current_time(), self._wall()
        before = self._posted[account.identity]
        here = now_posted.here
        for key in {*here, *standing.rests}:
            mine, theirs = here.get(key), standing.rests.get(key)
            since_posted, just_posted = account.rests.get(key) != mine, before.here.get(key) != mine
            if since_posted or just_posted or theirs == before.there.get(key):
                continue
            if theirs is None:
                here.pop(key, None)
                account.rests.pop(key, None)
            else:
                here[key] = account.rests[key] = theirs.shifted(now - wall)
        if account.quota == now_posted.quota:
            now_posted.quota = account.quota = standing.quota
        since = account.pace.returned - now_posted.returned
        amounts = {
            what: left(standing, what, limit, wall).left(wall) for what, limit in _limits(account).pairs()
        }
        tokens = amounts["tokens"] + since if "tokens" in amounts else None
        account.pace.put(amounts.get("requests"), tokens, now)
        now_posted.there = standing.rests
        self._posted[account.identity] = now_posted


def _login(account: Account) -> Login | None:
    if not isinstance(account.source, OAuthSource):
        return None
    status = account.source.status()
    return Login(status.state, status.words, status.usable, status.expires_at)


def _limits(account: Account) -> Limits:
    requests, tokens = account.pace.requests, account.pace.tokens
    return Limits(requests.capacity if requests else None, tokens.capacity if tokens else None)
