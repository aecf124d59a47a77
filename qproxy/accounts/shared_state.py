"""The state of accounts that processes share and that survives them.

`AccountStateStore` is the interface: `exchange` publishes what happened in this process and returns what
happened elsewhere, at once after an event and otherwise once a second. A request waits for `acquire` only
where its account is limited, and for `claim_probe` where it is the first one after a cooldown. Members are in
`backends`: a file for the processes of one machine, a server for those of several.

Times in a state are those of the wall clock of its reader. The functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from qproxy.accounts.condition import MAX_RESULTS, AccountHistory, LoginState
from qproxy.accounts.cooldowns import Cooldown, combine_cooldowns
from qproxy.accounts.learned_rules import newest
from qproxy.limits.token_bucket import MINUTE, Amounts, TokenBucket, try_acquire

SLOT_SECONDS = 10.0
"""Resolution of the requests of the last minute."""
HEARTBEAT = 15.0
"""Seconds without an exchange after which a process counts as ended, with no requests in flight."""


class StateStoreError(Exception):
    """The store cannot be read or written; the message has the reason."""


@dataclass(frozen=True, slots=True)
class SharedCircuit:
    """The last change of an account's circuit, a hint for processes that have not failed themselves."""

    changed_at: float
    open_until: float
    failures: int
    """Consecutive failures; 0 once it is closed."""


@dataclass(frozen=True, slots=True)
class AccountGrant:
    """The result of a request for an account's limits."""

    granted: bool
    available: Amounts
    """What remains of the limits per minute."""
    at_capacity: bool = False
    """Whether `max_in_flight` is the reason; a slot may become free in any process."""
    has_slot: bool = False
    """Whether a slot was taken, which has to be released."""


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
    circuit: SharedCircuit | None = None

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
    circuit: SharedCircuit | None = None
    """If it has changed."""

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has changed."""
        counts = self.requests or self.failures or self.in_flight or any(self.released.values())
        results = self.results or self.last_success_at or self.last_fault_at
        return not (counts or results or self.is_event)

    @property
    def is_event(self) -> bool:
        """Return whether other processes should know of it at once."""
        happened = self.cooldowns or self.successes or self.woken_at or self.circuit
        return bool(happened or self.quota or self.login or self.learned_rules)


class AccountStateStore(Protocol):
    """The store of account states, by the identity of an account. Every method may raise StateStoreError."""

    counts_in_flight: bool
    """Whether `acquire` and `release` count the requests in flight of all processes."""

    async def acquire(
        self, identity: str, limits: Amounts, amounts: Amounts, max_in_flight: int | None
    ) -> AccountGrant:
        """Take the amounts from an account's limits per minute, and a slot, for all processes together, or
        nothing.

        Raises a QproxyError with status 503 if a setting requires the store, and it cannot be used.
        """
        ...

    def release(self, identity: str) -> None:
        """Return a slot that `acquire` granted. Never waits."""
        ...

    async def claim_probe(self, identity: str, cooldowns: Mapping[str, Cooldown]) -> bool:
        """Return whether this process may send the request after these cooldowns, whose result decides for
        all processes."""
        ...

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        """Publish what happened, and return the states of the same accounts."""
        ...

    async def wait_change(self, seconds: float) -> None:
        """Wait until something has happened elsewhere, for `seconds` at most."""
        ...

    async def load(self, identities: Iterable[str]) -> Mapping[str, AccountState]:
        """Return the states of accounts that are known."""
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
) -> tuple[AccountState, AccountGrant]:
    """Take amounts from an account's limits; return its state after that, and the result."""
    buckets = {unit: remaining(state, unit, limit, wall_clock) for unit, limit in limits.items()}
    grant = try_acquire(buckets, amounts, wall_clock)
    levels = {unit: (amount, wall_clock) for unit, amount in grant.available.items()}
    state = replace(state, bucket_levels={**state.bucket_levels, **levels})
    return state, AccountGrant(grant.granted, grant.available)


def acquire_slot(
    state: AccountState, in_flight: int, max_in_flight: int | None, process: str, wall_clock: float
) -> tuple[AccountState, bool]:
    """Take one more slot than the `in_flight` of a process; return the state after that, and the result."""
    others = {key: item for key, item in state.in_flight.items() if key != process}
    used = replace(state, in_flight=others).active_requests(wall_clock) + in_flight
    if max_in_flight is not None and used >= max_in_flight:
        return state, False
    return replace(state, in_flight={**others, process: (in_flight + 1, wall_clock)}), True


def claim_probe(
    state: AccountState, cooldowns: Mapping[str, Cooldown], wall_clock: float
) -> tuple[AccountState, bool]:
    """Let one request be the probe after cooldowns; return the state after that, and the result."""
    stored = {key: state.cooldowns[key] for key in cooldowns if key in state.cooldowns}
    if any(cooldown.until > wall_clock for cooldown in stored.values()):
        return state, False
    claimed = {key: item for key, item in cooldowns.items() if item.since > state.ended_at(key)}
    return replace(state, cooldowns={**state.cooldowns, **claimed}), True


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
    changed = {
        key: item and combine_cooldowns(state.cooldowns.get(key), item, wall_clock)
        for key, item in delta.cooldowns.items()
    }
    cooldowns = {
        key: cooldown
        for key, cooldown in {**state.cooldowns, **changed}.items()
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
        circuit=latest_circuit(state.circuit, delta.circuit),
    )


def latest(one: float | None, other: float | None) -> float | None:
    """Return the later of two times, either of which may be unknown."""
    return max((at for at in (one, other) if at is not None), default=None)


def latest_circuit(one: SharedCircuit | None, other: SharedCircuit | None) -> SharedCircuit | None:
    """Return the later of two changes, either of which may be unknown; the other one of the same time."""
    known = [change for change in (other, one) if change is not None]
    return max(known, key=lambda change: change.changed_at, default=None)


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
        circuit = known.pop("circuit", None)
        if circuit is not None:
            circuit = SharedCircuit(**circuit)
        return AccountState(cooldowns=cooldowns, login=login, circuit=circuit, **known)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"not an account state: {error}") from None


def _with_current_keys(data: Mapping[str, Any], renames: Mapping[str, str]) -> dict[str, Any]:
    return {renames.get(key, key): value for key, value in data.items()}
