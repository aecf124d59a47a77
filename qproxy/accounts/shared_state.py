"""What the processes that speak as the same accounts tell each other, and what outlives them.

A `Board` is the one interface: `exchange` posts what happened here and reads what happened elsewhere, about once a
second; `claim` asks for a place in an account's pace and is the only thing that a request waits for, and only where
the account is paced.  The embedded member is a file (`board_file`); one for several machines would be another.

Times on a board are those of the wall clock.  `merged` and `claimed` are pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from qproxy.accounts.cooldowns import Cooldown
from qproxy.limits.token_bucket import MINUTE, TokenBucket

SLOT_SECONDS = 10.0
"""Seconds that are counted together for "the last minute"."""
HEARTBEAT = 15.0
"""A process that has said nothing for so long has no requests under way: it has ended."""


class StateStoreError(Exception):
    """The board cannot be read or written; the message says why."""


@dataclass(frozen=True, slots=True)
class LoginState:
    """How the tokens of an account that is signed in are; `auth.status` has the states and the words."""

    state: str
    message: str
    usable: bool
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class AccountState:
    """What everybody should know of one account."""

    name: str = ""
    cooldowns: Mapping[str, Cooldown] = field(default_factory=dict)
    requests: int = 0
    failures: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    quota: str | None = None
    login: LoginState | None = None
    used_in_slots: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is left of requests and of tokens, and when that was."""
    slots: Mapping[str, int] = field(default_factory=dict)
    """Requests by slot of time."""
    in_flight: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By process, and when it said so."""

    def last_minute(self, wall_clock: float) -> int:
        first = int((wall_clock - MINUTE) // SLOT_SECONDS) + 1
        return sum(count for slot, count in self.slots.items() if int(slot) >= first)

    def active_requests(self, wall_clock: float) -> int:
        return sum(count for count, at in self.in_flight.values() if wall_clock - at <= HEARTBEAT)


@dataclass(frozen=True, slots=True)
class AccountStateDelta:
    """What happened to one account in one process since it last said so."""

    name: str
    cooldowns: Mapping[str, Cooldown | None] = field(default_factory=dict)
    """Those that began, and (None) those that ended."""
    requests: int = 0
    failures: int = 0
    in_flight: int = 0
    last_error: str | None = None
    last_error_at: float | None = None
    quota: tuple[str | None] | None = None
    """In a tuple where it has changed."""
    login: LoginState | None = None
    """Where it has changed."""
    released_tokens: float = 0.0
    """Tokens that were taken and not used."""
    limits: AccountLimits | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nobody would miss it."""
        counts = self.requests or self.failures or self.in_flight or self.released_tokens
        return not (counts or self.cooldowns or self.quota or self.login)


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """An account's requests and tokens a minute."""

    rpm: int | None = None
    tpm: int | None = None

    def pairs(self) -> list[tuple[str, int]]:
        limits = (("requests", self.rpm), ("tokens", self.tpm))
        return [(what, limit) for what, limit in limits if limit is not None]


@dataclass(frozen=True, slots=True)
class RateLimitGrant:
    """How a claim ended, and what is left after it."""

    granted: bool
    requests: float | None
    tokens: float | None


class AccountStateStore(Protocol):
    """Where the processes meet.  Everything raises BoardError."""

    async def acquire(self, identity: str, limits: AccountLimits, tokens: int) -> RateLimitGrant:
        """One request and so many tokens of an account's pace, for all processes together."""
        ...

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        """Post the news, by identity; returns what is known of the same accounts then."""
        ...

    async def aclose(self) -> None: ...


def remaining(state: AccountState, what: str, capacity: int, wall_clock: float) -> TokenBucket:
    """One of an account's buckets as it stands."""
    bucket = TokenBucket(capacity, wall_clock)
    if what in state.used_in_slots:
        amount, at = state.used_in_slots[what]
        bucket.set_level(amount, min(at, wall_clock))  # a clock that was set back makes nobody wait for it
    return bucket


def try_acquire(
    state: AccountState, limits: AccountLimits, tokens: int, wall_clock: float
) -> tuple[AccountState, RateLimitGrant]:
    """The standing after a claim, and how it ended."""
    counts = {"requests": 1, "tokens": tokens}
    buckets = {what: remaining(state, what, capacity, wall_clock) for what, capacity in limits.pairs()}
    granted = not any(bucket.wait(counts[what], wall_clock) for what, bucket in buckets.items())
    for what, bucket in buckets.items() if granted else ():
        bucket.acquire(min(counts[what], bucket.capacity), wall_clock)
    rate_limiter = {what: (bucket.available(wall_clock), wall_clock) for what, bucket in buckets.items()}
    amounts = {what: amount for what, (amount, _) in rate_limiter.items()}
    claim = RateLimitGrant(granted, amounts.get("requests"), amounts.get("tokens"))
    return replace(state, pace={**state.used_in_slots, **rate_limiter}), claim


def merge(state: AccountState, delta: AccountStateDelta, process: str, wall_clock: float) -> AccountState:
    """The standing after one process's news."""
    cooldowns = {
        **state.cooldowns,
        **{key: cooldown for key, cooldown in delta.cooldowns.items() if cooldown is not None},
    }
    ended = [key for key, cooldown in delta.cooldowns.items() if cooldown is None]
    slot = str(int(wall_clock // SLOT_SECONDS))
    slots = {**state.slots, slot: state.slots.get(slot, 0) + delta.requests}
    in_flight = {**state.in_flight, process: (delta.in_flight, wall_clock)}
    rate_limiter = dict(state.used_in_slots)
    if delta.released_tokens and delta.limits is not None and delta.limits.tpm is not None:
        bucket = remaining(state, "tokens", delta.limits.tpm, wall_clock)
        bucket.acquire(-delta.released_tokens, wall_clock)
        rate_limiter["tokens"] = bucket.available(wall_clock), wall_clock
    return AccountState(
        name=delta.name,
        cooldowns={key: cooldown for key, cooldown in cooldowns.items() if key not in ended},
        requests=state.requests + delta.requests,
        failures=state.failures + delta.failures,
        last_error=delta.last_error or state.last_error,
        last_error_at=delta.last_error_at or state.last_error_at,
        quota=state.quota if delta.quota is None else delta.quota[0],
        login=delta.login or state.login,
        used_in_slots=rate_limiter,
        slots={
            key: count for key, count in slots.items() if count and int(key) > wall_clock // SLOT_SECONDS - 7
        },
        in_flight={
            key: (count, at)
            for key, (count, at) in in_flight.items()
            if count and wall_clock - at <= HEARTBEAT
        },
    )


def to_json(state: AccountState) -> dict[str, Any]:
    return asdict(state)


def from_json(data: Mapping[str, Any]) -> AccountState:
    """A standing that was written before, by this or another version; ValueError when it is none."""
    try:
        known = {key: value for key, value in data.items() if key in AccountState.__dataclass_fields__}
        cooldowns = {key: Cooldown(**cooldown) for key, cooldown in known.pop("rests", {}).items()}
        for name in ("pace", "in_flight"):
            pairs: Sequence[tuple[str, Any]] = list(known.get(name, {}).items())
            known[name] = {key: (first, second) for key, (first, second) in pairs}
        login = known.pop("login", None)
        return AccountState(
            cooldowns=cooldowns, login=None if login is None else LoginState(**login), **known
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not a standing: {error}") from None
