"""Keeps the accounts of this process and the shared store in step.

After each event, here or elsewhere, and once a second, what happened here is published and what happened
elsewhere is applied. An account counts for itself; the differences are computed here. A store that fails is
logged once, and the process continues with what it knows.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from qproxy.accounts.account import Account
from qproxy.accounts.condition import MAX_RESULTS, LoginState
from qproxy.accounts.cooldowns import Cooldown, bounded
from qproxy.accounts.shared_state import (
    AccountGrant,
    AccountState,
    AccountStateDelta,
    AccountStateStore,
    SharedCircuit,
    StateStoreError,
    latest,
    remaining,
)
from qproxy.limits.token_bucket import REQUESTS, TOKENS, Amounts

SYNC_INTERVAL = 1.0
MIN_INTERVAL = 0.1
"""Seconds between two exchanges, however many events there are."""
CAPACITY_RETRY = 0.25
"""Seconds after which a slot that another process may have released is tried again."""
log = logging.getLogger("qproxy.accounts")


@dataclass(slots=True)
class _LastSync:
    """The states of an account that were published and received last."""

    requests: int = 0
    failures: int = 0
    released: Amounts = field(default_factory=dict)
    quota: str | None = None
    last_error_at: float | None = None
    last_success_at: float | None = None
    last_fault_at: float | None = None
    result_count: int = 0
    successes: Mapping[str, float] = field(default_factory=dict)
    """By Trio's clock, those that are not published yet."""
    woken_at: float | None = None
    login: LoginState | None = None
    local_cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    """The account's cooldowns, by Trio's clock."""
    remote_cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    """Those of the store, by the wall clock."""
    learned_rules: Mapping[str, float] = field(default_factory=dict)
    """The account's learned rules, as the store had them."""
    circuit: tuple[int, float] = (0, 0.0)
    """The failures and the end of an open circuit, by Trio's clock."""
    shared_circuit: SharedCircuit | None = None
    """That of the store."""
    in_flight: int = 0


class AccountStateSync:
    """Exchanges the account states of one process with the store."""

    def __init__(self, store: AccountStateStore, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._wall_clock = wall_clock
        self._last_synced: dict[str, _LastSync] = {}
        self._healthy = True
        self._starting = trio.Lock()
        self._event = trio.Event()
        self.synced = False
        """Whether the stored states were applied once."""

    def __repr__(self) -> str:
        return f"<AccountStateSync with {self._store}>"

    async def start(self, accounts: Sequence[Account]) -> None:
        """Exchange for the first time; concurrent callers wait for the same exchange."""
        async with self._starting:
            if not self.synced:
                await self.exchange(accounts)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def exchange(self, accounts: Sequence[Account]) -> None:
        """Publish and apply, once."""
        self._event = trio.Event()
        shared = {account.identity: account for account in accounts if account.identity}
        for account in shared.values():
            account.on_event = self._event.set
        delta = {identity: self._delta(account) for identity, account in shared.items()}
        before = {identity: self._snapshot(account) for identity, account in shared.items()}
        try:
            states = await self._store.exchange(delta)
        except StateStoreError as error:
            self._log_failure(error)
            return
        finally:
            self.synced = True
        self._healthy = True
        for identity, account in shared.items():
            self._apply(account, before[identity], states.get(identity, AccountState()))

    async def wait_event(self) -> None:
        """Wait until something has happened here or elsewhere, for `SYNC_INTERVAL` at most."""
        await trio.sleep(MIN_INTERVAL)
        async with trio.open_nursery() as nursery:

            async def wait_local() -> None:
                await self._event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_local)
            await self._store.wait_change(SYNC_INTERVAL - MIN_INTERVAL)
            nursery.cancel_scope.cancel()

    async def acquire(self, account: Account, tokens: int, probed: Mapping[str, Cooldown]) -> AccountGrant:
        """Take one more request from what all processes share: from an account's limits, and as the probe
        after expired cooldowns."""
        limiter, max_in_flight = account.rate_limiter, account.max_in_flight
        try:
            if probed and not await self._claim_probe(account, probed):
                return AccountGrant(False, {})
            if not limiter.is_limited and (max_in_flight is None or not self._store.counts_in_flight):
                return AccountGrant(True, {})
            amounts = {REQUESTS: 1, TOKENS: tokens}
            grant = await self._store.acquire(account.identity, limiter.limits, amounts, max_in_flight)
        except StateStoreError as error:
            self._log_failure(error)
            return AccountGrant(True, {})
        now = trio.current_time()
        limiter.set_levels(grant.available, now)
        if grant.at_capacity:
            account.full_until = now + CAPACITY_RETRY
        return grant

    def release(self, account: Account) -> None:
        """Return a slot. Never waits."""
        account.full_until = 0.0
        self._store.release(account.identity)

    async def _claim_probe(self, account: Account, probed: Mapping[str, Cooldown]) -> bool:
        ahead = self._wall_clock() - trio.current_time()
        cooldowns = {key: cooldown.with_clock_offset(ahead) for key, cooldown in probed.items()}
        return await self._store.claim_probe(account.identity, cooldowns)

    def _log_failure(self, error: StateStoreError) -> None:
        if self._healthy:
            log.warning("account state is not shared with other workers: %s", error)
        self._healthy = False

    def _delta(self, account: Account) -> AccountStateDelta:
        posted = self._last_synced.setdefault(account.identity, _LastSync())
        ahead = self._wall_clock() - trio.current_time()
        began = {
            key: cooldown.with_clock_offset(ahead)
            for key, cooldown in account.cooldowns.items()
            if posted.local_cooldowns.get(key) != cooldown
        }
        gone = (key for key in posted.local_cooldowns if key not in account.cooldowns)
        dropped = dict.fromkeys(key for key in gone if key not in account.successes)
        login = account.login_state()
        fresh_error = account.last_error_at != posted.last_error_at
        circuit = _circuit(account)
        return AccountStateDelta(
            account.name,
            cooldowns={**began, **dropped},
            requests=account.requests - posted.requests,
            failures=account.failures - posted.failures,
            in_flight=account.in_flight,
            last_error=account.last_error if fresh_error else None,
            last_error_at=account.last_error_at if fresh_error else None,
            last_message=account.last_message if fresh_error else None,
            last_success_at=_change(account.last_success_at, posted.last_success_at),
            last_fault_at=_change(account.last_fault_at, posted.last_fault_at),
            failed_model=account.failed_model if account.last_fault_at != posted.last_fault_at else None,
            results=_last_results(account, posted.result_count),
            successes={
                key: self._wall_clock() if sent == math.inf else sent + ahead
                for key, sent in account.successes.items()
            },
            woken_at=_change(account.woken_at, posted.woken_at),
            quota=None if account.quota == posted.quota else (account.quota,),
            login=None if login == posted.login else login,
            released=_difference(account.rate_limiter.released, posted.released),
            limits=account.rate_limiter.limits,
            learned_rules=_changes(account.learned_rules.entries(), posted.learned_rules),
            circuit=None if circuit == posted.circuit else self._shared_circuit(circuit),
        )

    def _snapshot(self, account: Account) -> _LastSync:
        return _LastSync(
            account.requests,
            account.failures,
            dict(account.rate_limiter.released),
            account.quota,
            account.last_error_at,
            account.last_success_at,
            account.last_fault_at,
            account.result_count,
            dict(account.successes),
            account.woken_at,
            account.login_state(),
            dict(account.cooldowns),
            learned_rules=account.learned_rules.entries(),
            circuit=_circuit(account),
            in_flight=account.in_flight,
        )

    def _shared_circuit(self, circuit: tuple[int, float]) -> SharedCircuit:
        now, (failures, open_until) = self._wall_clock(), circuit
        return SharedCircuit(now, open_until + now - trio.current_time() if failures else 0.0, failures)

    def _apply(self, account: Account, now_posted: _LastSync, state: AccountState) -> None:
        """Apply what happened elsewhere, except where something has happened here."""
        now, wall_clock = trio.current_time(), self._wall_clock()
        before = self._last_synced[account.identity]
        here = now_posted.local_cooldowns
        self._apply_history(account, now_posted, state)
        account.in_flight_elsewhere = max(0, state.active_requests(wall_clock) - now_posted.in_flight)
        for key in {*here, *account.cooldowns, *state.cooldowns}:
            if (
                key in account.cooldowns
                and account.cooldowns[key].since <= state.ended_at(key) + now - wall_clock
            ):
                del account.cooldowns[key]  # before anything else: it has ended, even if it has changed here
                here.pop(key, None)
                continue
            mine, theirs = here.get(key), state.cooldowns.get(key)
            since_posted, just_posted = (
                account.cooldowns.get(key) != mine,
                before.local_cooldowns.get(key) != mine,
            )
            just_posted = (
                just_posted and mine is not None
            )  # where one ended here, a newer one may have started
            if since_posted or just_posted or theirs == before.remote_cooldowns.get(key):
                continue
            if theirs is None:
                here.pop(key, None)
                account.cooldowns.pop(key, None)
            else:
                here[key] = account.cooldowns[key] = bounded(theirs.with_clock_offset(now - wall_clock), now)
        if account.quota == now_posted.quota:
            now_posted.quota = account.quota = state.quota
        limiter = account.rate_limiter
        since = _difference(limiter.released, now_posted.released)
        levels = {
            unit: remaining(state, unit, limit, wall_clock).available(wall_clock) + since.get(unit, 0.0)
            for unit, limit in limiter.limits.items()
        }
        limiter.set_levels(levels, now)
        now_posted.remote_cooldowns = state.cooldowns
        since_rules = _changes(account.learned_rules.entries(), now_posted.learned_rules)
        rules = {**state.learned_rules, **since_rules}
        account.learned_rules.replace({key: at for key, at in rules.items() if at is not None})
        now_posted.learned_rules = state.learned_rules
        self._apply_circuit(account, now_posted, state.circuit)
        self._last_synced[account.identity] = now_posted

    def _apply_circuit(self, account: Account, now_posted: _LastSync, shared: SharedCircuit | None) -> None:
        """Follow the circuit of another process, unless this one's has changed."""
        before, circuit = self._last_synced[account.identity], _circuit(account)
        now_posted.shared_circuit = shared
        if shared is None or shared == before.shared_circuit or circuit != before.circuit:
            return
        until = shared.open_until + trio.current_time() - self._wall_clock()
        if shared.failures == 0 or until > trio.current_time():
            account.circuit_breaker.follow(shared.failures, until)
        now_posted.circuit = _circuit(account)

    def _apply_history(self, account: Account, now_posted: _LastSync, state: AccountState) -> None:
        """Apply the results that other processes had, and what an operator ended."""
        for key, sent in now_posted.successes.items():
            if account.successes.get(key) == sent:
                del account.successes[key]
        account.results = (state.results + _last_results(account, now_posted.result_count))[-MAX_RESULTS:]
        if state.last_error_at is not None and state.last_error_at > (account.last_error_at or -math.inf):
            account.last_error, account.last_message = state.last_error, state.last_message
            account.last_error_at = now_posted.last_error_at = state.last_error_at
        if latest(account.last_success_at, state.last_success_at) != account.last_success_at:
            account.last_success_at = now_posted.last_success_at = state.last_success_at
        if latest(account.last_fault_at, state.last_fault_at) != account.last_fault_at:
            account.last_fault_at = now_posted.last_fault_at = state.last_fault_at
            account.failed_model = state.failed_model
        if state.woken_at is not None and latest(account.woken_at, state.woken_at) != account.woken_at:
            now_posted.woken_at = state.woken_at
            account.wake(state.woken_at, self._wall_clock() - trio.current_time())


def _circuit(account: Account) -> tuple[int, float]:
    breaker = account.circuit_breaker
    return (breaker.failures, breaker.open_until) if breaker.open_until else (0, 0.0)


def _change(now: float | None, before: float | None) -> float | None:
    return None if now == before else now


def _last_results(account: Account, since: int) -> str:
    """Return the results after the first `since` ones, as far as they are kept."""
    count = min(account.result_count - since, len(account.results))
    return account.results[-count:] if count else ""


def _changes(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float | None]:
    """Return what was added or changed and, as None, what was removed."""
    if now == before:
        return {}
    return {key: now.get(key) for key in {*now, *before} if now.get(key) != before.get(key)}


def _difference(now: Amounts, before: Amounts) -> Amounts:
    return {unit: amount - before.get(unit, 0.0) for unit, amount in now.items()}
