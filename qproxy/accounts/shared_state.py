"""The state of accounts that processes share and that survives them.

`AccountStateStore` is the interface: `exchange` publishes what happened in this process and returns what
happened elsewhere, about once a second; `acquire` takes from an account's rate limit and is the only call
that a request waits for, and only where the account is limited. `backends.local` has a member that keeps the
states in a file.

Times in a store are those of the wall clock. `merge` and `acquire_rate` are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from qproxy.accounts.condition import MAX_RESULTS, AccountHistory, LoginState
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.learned_rules import newest
from qproxy.limits.token_bucket import MINUTE, Amounts, RateLimitGrant, TokenBucket, try_acquire

SLOT_SECONDS = 10.0
"""Resolution of the requests of the last minute."""
HEARTBEAT = 15.0
"""Seconds without an exchange after which a process counts as ended, with no requests in flight."""


class StateStoreError(Exception):
    """The store cannot be read or written; the message has the reason."""


@dataclass(frozen=True, slots=True)
class AccountState:
    """The shared state of one account."""

    name: str = ""
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    requests: int = 0
    failures: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    quota: str | None = None
    login: LoginState | None = None
    bucket_levels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """The level of each limited unit, and its time."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Requests by time slot."""
    in_flight: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Requests by process, and when it reported them."""
    last_message: str | None = None
    last_success_at: float | None = None
    last_fault_at: float | None = None
    failed_model: str | None = None
    results: str = ""
    successes: Mapping[str, float] = field(default_factory=dict)
    """When requests were sent whose success ended a cooldown, by its key: of the last `HEARTBEAT` seconds."""
    woken_at: float | None = None
    learned_rules: Mapping[str, float] = field(default_factory=dict)
    """When each request rule was learned, by rule and model (`learned_rules`)."""

    @property
    def history(self) -> AccountHistory:
        """Return what is known from the results of requests."""
        cause = f"{self.last_error}: {self.last_message}" if self.last_message else self.last_error
        return AccountHistory(self.last_success_at, self.last_fault_at, cause, self.results)

    def ended_at(self, key: str) -> float:
        """Return the time up to which cooldowns with this key are known to be over."""
        woken_at = -math.inf if self.woken_at is None else self.woken_at
        return max(self.successes.get(key, -math.inf), woken_at)

    def last_minute(self, wall_clock: float) -> int:
        first = int((wall_clock - MINUTE) // SLOT_SECONDS) + 1
        return sum(count for slot, count in self.slots.items() if int(slot) >= first)

    def active_requests(self, wall_clock: float) -> int:
        return sum(count for count, at in self.in_flight.values() if wall_clock - at <= HEARTBEAT)


@dataclass(frozen=True, slots=True)
class AccountStateDelta:
    """The changes to one account in one process since its last exchange."""

    name: str
    cooldowns: Mapping[str, Cooldown | None] = field(default_factory=dict)
    """Those that started and, as None, those that were dropped; those that a success ended are not here."""
    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    last_message: str | None = None
    last_success_at: float | None = None
    last_fault_at: float | None = None
    failed_model: str | None = None
    results: str = ""
    """Those since the last exchange."""
    successes: Mapping[str, float] = field(default_factory=dict)
    woken_at: float | None = None
    quota: tuple[str | None] | None = None
    """In a tuple if it has changed."""
    login: LoginState | None = None
    """If it has changed."""
    released: Amounts = field(default_factory=dict)
    """Amounts that were taken and not used."""
    limits: Amounts = field(default_factory=dict)
    """The account's limits per minute."""
    learned_rules: Mapping[str, float | None] = field(default_factory=dict)
    """Those that were learned and, as None, those that were forgotten."""

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has changed."""
        counts = self.requests or self.failures or self.in_flight or any(self.released.values())
        happened = self.results or self.successes or self.woken_at or self.learned_rules
        return not (counts or happened or self.cooldowns or self.quota or self.login)


class AccountStateStore(Protocol):
    """The store of account states, by the identity of an account. Every method may raise StateStoreError."""

    async def acquire(self, identity: str, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        """Take the amounts from an account's limits per minute, for all processes together, or nothing."""
        ...

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        """Publish what happened, and return the states of the same accounts."""
        ...

    async def load(self) -> Mapping[str, AccountState]:
        """Return the states of all accounts."""
        ...

    async def aclose(self) -> None: ...


def remaining(state: AccountState, unit: str, capacity: float, wall_clock: float) -> TokenBucket:
    """Return one of an account's buckets with its current level."""
    bucket = TokenBucket(capacity, wall_clock)
    if unit in state.bucket_levels:
        amount, at = state.bucket_levels[unit]
        bucket.set_level(
            amount, min(at, wall_clock)
        )  # a clock that was set back makes no request wait for it
    return bucket


def acquire_rate(
    state: AccountState, limits: Amounts, amounts: Amounts, wall_clock: float
) -> tuple[AccountState, RateLimitGrant]:
    """Take amounts from an account's limits; return its state after that, and the result."""
    buckets = {unit: remaining(state, unit, limit, wall_clock) for unit, limit in limits.items()}
    grant = try_acquire(buckets, amounts, wall_clock)
    levels = {unit: (amount, wall_clock) for unit, amount in grant.available.items()}
    return replace(state, bucket_levels={**state.bucket_levels, **levels}), grant


def merge(state: AccountState, delta: AccountStateDelta, process: str, wall_clock: float) -> AccountState:
    """Return the state after what happened in one process.

    A success ends the cooldowns that started before its request was sent, also those that other processes
    publish afterwards: a probe's success is never undone by a process that does not know of it yet.
    """
    ends = AccountState(
        successes={
            key: at
            for key, at in _latest_of(state.successes, delta.successes).items()
            if abs(wall_clock - at) <= HEARTBEAT or key in delta.successes
        },
        woken_at=_not_ahead(latest(state.woken_at, delta.woken_at), wall_clock),
    )
    cooldowns = {
        key: cooldown
        for key, cooldown in {**state.cooldowns, **delta.cooldowns}.items()
        if cooldown is not None and cooldown.since > ends.ended_at(key)
    }
    slot = str(int(wall_clock // SLOT_SECONDS))
    slots = {**state.slots, slot: state.slots.get(slot, 0) + delta.requests}
    in_flight = {**state.in_flight, process: (delta.in_flight, wall_clock)}
    levels = dict(state.bucket_levels)
    for unit, amount in delta.released.items():
        if amount and unit in delta.limits:
            bucket = remaining(state, unit, delta.limits[unit], wall_clock)
            bucket.acquire(-amount, wall_clock)
            levels[unit] = bucket.available(wall_clock), wall_clock
    return AccountState(
        name=delta.name,
        cooldowns=cooldowns,
        requests=state.requests + delta.requests,
        failures=state.failures + delta.failures,
        last_error=delta.last_error or state.last_error,
        last_error_at=delta.last_error_at or state.last_error_at,
        last_message=delta.last_message if delta.last_error else state.last_message,
        last_success_at=latest(state.last_success_at, delta.last_success_at),
        last_fault_at=latest(state.last_fault_at, delta.last_fault_at),
        failed_model=delta.failed_model or state.failed_model,
        results=(state.results + delta.results)[-MAX_RESULTS:],
        successes=ends.successes,
        woken_at=ends.woken_at,
        quota=state.quota if delta.quota is None else delta.quota[0],
        login=delta.login or state.login,
        bucket_levels=levels,
        slots={
            key: count for key, count in slots.items() if count and int(key) > wall_clock // SLOT_SECONDS - 7
        },
        in_flight={
            key: (count, at)
            for key, (count, at) in in_flight.items()
            if count and wall_clock - at <= HEARTBEAT
        },
        learned_rules=_merge_learned(state.learned_rules, delta.learned_rules, wall_clock),
    )


def latest(one: float | None, other: float | None) -> float | None:
    """Return the later of two times, either of which may be unknown."""
    return max((at for at in (one, other) if at is not None), default=None)


def _not_ahead(at: float | None, wall_clock: float) -> float | None:
    """Return a stored time, None if the clock was set back since."""
    return None if at is None or at > wall_clock + HEARTBEAT else at


def _latest_of(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {key: max(one.get(key, -math.inf), other.get(key, -math.inf)) for key in (*one, *other)}


def _merge_learned(
    learned: Mapping[str, float], changes: Mapping[str, float | None], wall_clock: float
) -> Mapping[str, float]:
    if not changes:
        return learned
    kept = {key: at for key, at in learned.items() if key not in changes}
    return newest({**kept, **{key: at for key, at in changes.items() if at is not None}}, wall_clock)


RENAMED_KEYS: Mapping[str, str] = {"rests": "cooldowns", "pace": "bucket_levels"}
RENAMED_COOLDOWN_KEYS: Mapping[str, str] = {"why": "reason", "reset": "reset_at", "strikes": "failed_probes"}
RENAMED_LOGIN_KEYS: Mapping[str, str] = {"words": "message"}
"""Names in states that older versions wrote."""


def to_json(state: AccountState) -> dict[str, Any]:
    """Return the state for a store."""
    return asdict(state)


def from_json(data: Mapping[str, Any]) -> AccountState:
    """Read a state that this or another version has stored. Raises ValueError."""
    try:
        current = _with_current_keys(data, RENAMED_KEYS)
        known = {key: value for key, value in current.items() if key in AccountState.__dataclass_fields__}
        cooldowns = {
            model: Cooldown(**_with_current_keys(cooldown, RENAMED_COOLDOWN_KEYS))
            for model, cooldown in known.pop("cooldowns", {}).items()
        }
        for name in ("bucket_levels", "in_flight"):
            pairs: Sequence[tuple[str, Any]] = list(known.get(name, {}).items())
            known[name] = {key: (first, second) for key, (first, second) in pairs}
        known["learned_rules"] = {key: float(at) for key, at in known.get("learned_rules", {}).items()}
        login = known.pop("login", None)
        if login is not None:
            login = LoginState(**_with_current_keys(login, RENAMED_LOGIN_KEYS))
        return AccountState(cooldowns=cooldowns, login=login, **known)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not an account state: {error}") from None


def _with_current_keys(data: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    return {renames.get(key, key): value for key, value in data.items()}
