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
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import (
    AccountLimits,
    AccountState,
    AccountStateDelta,
    AccountStateStore,
    LoginState,
    StateStoreError,
    remaining,
)
from qproxy.auth.oauth_source import OAuthSource

SYNC_INTERVAL = 1.0
log = logging.getLogger("qproxy.accounts")


@dataclass(slots=True)
class _LastSync:
    """What the board has been told of an account, and has told."""

    requests: int = 0
    failures: int = 0
    released_tokens: float = 0.0
    quota: str | None = None
    last_error_at: float | None = None
    login: LoginState | None = None
    local_in_flight: dict[str, Cooldown] = field(default_factory=dict)
    """The rests of the account, by Trio's clock."""
    remote_in_flight: Mapping[str, Cooldown] = field(default_factory=dict)
    """The same on the board, by the wall clock."""


class AccountStateSync:
    """Of one process."""

    def __init__(self, store: AccountStateStore, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall_clock = wall_clock
        self._last_synced: dict[str, _LastSync] = {}
        self._healthy = True
        self._starting = trio.Lock()
        self.synced = False
        """Whether what was known before this process is known to it."""

    def __repr__(self) -> str:
        return f"<Sharing by {self._store}>"

    async def start(self, accounts: Sequence[Account]) -> None:
        """The first exchange, once for all who wait for it."""
        async with self._starting:
            if not self.synced:
                await self.exchange(accounts)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def exchange(self, accounts: Sequence[Account]) -> None:
        """Post and take up, once."""
        shared = {account.identity: account for account in accounts if account.identity}
        delta = {identity: self._delta(account) for identity, account in shared.items()}
        before = {identity: self._snapshot(account) for identity, account in shared.items()}
        try:
            standings = await self._store.exchange(delta)
        except StateStoreError as error:
            self._log_failure(error)
            return
        finally:
            self.synced = True
        self._healthy = True
        for identity, account in shared.items():
            self._apply(account, before[identity], standings.get(identity, AccountState()))

    async def acquire(self, account: Account, tokens: int) -> bool:
        """Whether an account's pace, agreed on with everybody, allows one request more."""
        try:
            claim = await self._store.acquire(account.identity, _account_limits(account), tokens)
        except StateStoreError as error:
            self._log_failure(error)
            return True
        account.rate_limiter.set_level(claim.requests, claim.tokens, trio.current_time())
        return claim.granted

    def _log_failure(self, error: StateStoreError) -> None:
        if self._healthy:
            log.warning("accounts are paced and remembered by this process alone: %s", error)
        self._healthy = False

    def _delta(self, account: Account) -> AccountStateDelta:
        posted = self._last_synced.setdefault(account.identity, _LastSync())
        ahead = self._wall_clock() - trio.current_time()
        began = {
            key: cooldown.with_clock_offset(ahead)
            for key, cooldown in account.cooldowns.items()
            if posted.local_in_flight.get(key) != cooldown
        }
        ended = dict.fromkeys(key for key in posted.local_in_flight if key not in account.cooldowns)
        login = _login_state(account)
        fresh_error = account.last_error_at != posted.last_error_at
        return AccountStateDelta(
            account.name,
            cooldowns={**began, **ended},
            requests=account.requests - posted.requests,
            failures=account.failures - posted.failures,
            in_flight=account.in_flight,
            last_error=account.last_error if fresh_error else None,
            last_error_at=account.last_error_at if fresh_error else None,
            quota=None if account.quota == posted.quota else (account.quota,),
            login=None if login == posted.login else login,
            released_tokens=account.rate_limiter.released_tokens - posted.released_tokens,
            limits=_account_limits(account),
        )

    def _snapshot(self, account: Account) -> _LastSync:
        return _LastSync(
            account.requests,
            account.failures,
            account.rate_limiter.released_tokens,
            account.quota,
            account.last_error_at,
            _login_state(account),
            dict(account.cooldowns),
        )

    def _apply(self, account: Account, now_posted: _LastSync, state: AccountState) -> None:
        """What others have said, except where something has happened here."""
        now, wall_clock = trio.current_time(), self._wall_clock()
        before = self._last_synced[account.identity]
        here = now_posted.local_in_flight
        for key in {*here, *state.cooldowns}:
            mine, theirs = here.get(key), state.cooldowns.get(key)
            since_posted, just_posted = (
                account.cooldowns.get(key) != mine,
                before.local_in_flight.get(key) != mine,
            )
            if since_posted or just_posted or theirs == before.remote_in_flight.get(key):
                continue
            if theirs is None:
                here.pop(key, None)
                account.cooldowns.pop(key, None)
            else:
                here[key] = account.cooldowns[key] = theirs.with_clock_offset(now - wall_clock)
        if account.quota == now_posted.quota:
            now_posted.quota = account.quota = state.quota
        since = account.rate_limiter.released_tokens - now_posted.released_tokens
        amounts = {
            what: remaining(state, what, limit, wall_clock).available(wall_clock)
            for what, limit in _account_limits(account).pairs()
        }
        tokens = amounts["tokens"] + since if "tokens" in amounts else None
        account.rate_limiter.set_level(amounts.get("requests"), tokens, now)
        now_posted.remote_in_flight = state.cooldowns
        self._last_synced[account.identity] = now_posted


def _login_state(account: Account) -> LoginState | None:
    if not isinstance(account.source, OAuthSource):
        return None
    status = account.source.status()
    return LoginState(status.state, status.message, status.usable, status.expires_at)


def _account_limits(account: Account) -> AccountLimits:
    requests, tokens = account.rate_limiter.requests, account.rate_limiter.tokens
    return AccountLimits(requests.capacity if requests else None, tokens.capacity if tokens else None)
