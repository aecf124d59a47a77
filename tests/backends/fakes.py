"""In-memory fakes of every Protocol of shared state; several processes may hold the same one.

They are not the local members without their files: each is written independently, as simply as its Protocol
allows, so that the contract tests compare two independent members, and a server that runs on them opens no
file.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from qproxy.access import api_keys
from qproxy.access.api_keys import ApiKey, Quota, StaticApiKeys
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import (
    AccountGrant,
    AccountState,
    AccountStateDelta,
    acquire_rate,
    acquire_slot,
    claim_probe,
    merge,
)
from qproxy.auth.background import RefreshTasks
from qproxy.auth.device_flow import LoginProgress
from qproxy.auth.oauth_source import OAuthSource
from qproxy.backends.factory import Backends
from qproxy.backends.stores import open_batches, open_files, open_uploads
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.ledger.prices import Pricing
from qproxy.ledger.rows import PRICED, to_row
from qproxy.ledger.units import UNITS
from qproxy.ledger.usage import GroupBy, History, LatencySlot, TimeSlot, UsageRow, WindowUsage
from qproxy.limits.token_bucket import Amounts, RateLimitGrant, TokenBucket, refill_seconds
from qproxy.limits.windows import WINDOWS
from qproxy.relay.model_lists import SharedModelList
from qproxy.server.response_store import ResponseNotFound, StoredResponse, StoreStatistics
from qproxy.telemetry.audit import AuditEntry
from qproxy.telemetry.records import RequestRecord
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.endpoints.api import RateLimitStatus
from qproxy.wire.errors import RequestError
from tests.backends.fake_responses import FakeConversations, FakeResponseRuns, WallClock

Clock = Callable[[], float]


class FakeApiKeys:
    """API keys in a list."""

    writable = True

    def __init__(self, wall_clock: Clock = time.time) -> None:
        self._keys: list[ApiKey] = []
        self._wall_clock = wall_clock

    def list_keys(self) -> tuple[ApiKey, ...]:
        return tuple(self._keys)

    def required(self) -> bool:
        return bool(self._keys)

    def authenticate(self, secret: str) -> ApiKey:
        return StaticApiKeys(self._keys).find(secret, self._wall_clock())

    async def create(self, **fields: Any) -> tuple[ApiKey, str]:
        await trio.lowlevel.checkpoint()
        key, secret = api_keys.generate(**fields)
        self._keys = api_keys.with_key(self._keys, key)
        return key, secret

    async def revoke(self, id_or_name: str) -> ApiKey:
        await trio.lowlevel.checkpoint()
        self._keys, revoked = api_keys.with_revoked(self._keys, id_or_name)
        return revoked


class FakeRateLimits:
    """Levels as the amount used, and the time, of each subject and unit."""

    def __init__(self, clock: Clock = trio.current_time) -> None:
        self._clock = clock
        self._buckets: dict[tuple[bytes, str], TokenBucket] = {}

    def _bucket(self, subject: bytes, unit: str, limit: float) -> TokenBucket:
        return self._buckets.setdefault((subject, unit), TokenBucket(limit, self._clock()))

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        await trio.lowlevel.checkpoint()
        now = self._clock()
        buckets = {unit: self._bucket(subject, unit, limit) for unit, limit in limits.items()}
        granted = all(not bucket.wait(amounts.get(unit, 0), now) for unit, bucket in buckets.items())
        if granted:
            self.settle(
                subject, limits, {unit: min(amounts.get(unit, 0), limit) for unit, limit in limits.items()}
            )
        return RateLimitGrant(granted, {unit: bucket.available(now) for unit, bucket in buckets.items()})

    def settle(self, subject: bytes, limits: Amounts, amounts: Amounts) -> None:
        for unit, limit in limits.items():
            self._bucket(subject, unit, limit).acquire(amounts.get(unit, 0), self._clock())

    async def aclose(self) -> None:
        pass


@dataclass
class FakeReservation:
    """The reservation of one request."""

    limiter: FakeUsageLimiter
    key: ApiKey
    amounts: dict[str, float]
    settled: bool = False

    async def extend(self, amounts: Amounts) -> None:
        await trio.lowlevel.checkpoint()
        self.amounts["tokens"] += amounts.get("tokens", 0)
        self.limiter.rates.settle(self.key.id.encode(), self.key.rate_limits, amounts)
        running = tuple(replace(budget, requests=None) for budget in self.key.budgets)
        await self.limiter.check(self.key, {}, running)

    def settle(self, used: Amounts, *, attempted: bool, answered: bool) -> None:
        if self.settled:
            return
        self.settled = True
        back = {"tokens": used["tokens"] - self.amounts["tokens"], "requests": 0 if attempted else -1}
        self.limiter.rates.settle(self.key.id.encode(), self.key.rate_limits, back)
        self.limiter.in_flight[self.key.label].remove(self)
        if answered:
            self.limiter.used.setdefault(self.key.label, []).append({"requests": 1, **used})


class FakeUsageLimiter:
    """Rate limits, and budgets that start with the process: all windows are the same."""

    def __init__(self, clock: Clock = trio.current_time) -> None:
        self.rates = FakeRateLimits(clock)
        self.used: dict[str, list[dict[str, float]]] = {}
        self.in_flight: dict[str, list[FakeReservation]] = {}

    async def reserve(self, key: ApiKey, amounts: Amounts) -> FakeReservation:
        await self.check(key, amounts, key.budgets)
        tokens = min(amounts["tokens"], key.tpm or amounts["tokens"])
        reservation = FakeReservation(self, key, {**amounts, "tokens": tokens})
        self.in_flight.setdefault(key.label, []).append(reservation)
        return reservation

    def rate_limits(self, key: ApiKey) -> Sequence[RateLimitStatus]:
        return [RateLimitStatus(unit, limit, int(limit), 0.0) for unit, limit in key.rate_limits.items()]

    async def check(self, key: ApiKey, amounts: Amounts, budgets: Sequence[Quota]) -> None:
        for budget in budgets:
            for unit, limit in budget.limits.items():
                used = sum(row.get(unit, 0) for row in self.used.get(key.label, ()))
                held = sum(each.amounts.get(unit, 0) for each in self.in_flight.get(key.label, ()))
                if used + held >= limit:
                    raise RequestError("no budget", status=429, code="insufficient_quota")
        grant = await self.rates.reserve(key.id.encode(), key.rate_limits, amounts)
        for unit, limit in key.rate_limits.items():
            wait = refill_seconds(limit, grant.available[unit], amounts.get(unit, 0))
            if not grant.granted and wait:
                raise RequestError("too fast", status=429, code="rate_limit_exceeded", retry_after=wait)


class FakeGrants:
    """Grants in a dictionary."""

    def __init__(self, wall_clock: Clock = time.time) -> None:
        self._wall_clock = wall_clock
        self._grants: dict[tuple[str, bytes], tuple[float, str]] = {}

    async def add(self, kind: str, digest: bytes, ends: float, *, epoch: str = "") -> None:
        await trio.lowlevel.checkpoint()
        self._grants[kind, digest] = ends, epoch

    async def has(self, kind: str, digest: bytes) -> bool:
        await trio.lowlevel.checkpoint()
        return self._grants.get((kind, digest), (0.0, ""))[0] > self._wall_clock()

    async def revoke(self, kind: str, digest: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self._grants.pop((kind, digest), None)

    async def retain(self, kind: str, epoch: str) -> None:
        await trio.lowlevel.checkpoint()
        self._grants = {
            name: grant for name, grant in self._grants.items() if name[0] != kind or grant[1] == epoch
        }

    async def aclose(self) -> None:
        pass


class FakeAccountState:
    """States in a dictionary; `process` is the writer."""

    counts_in_flight = True

    def __init__(self, states: dict[str, AccountState], process: str, wall_clock: Clock = time.time) -> None:
        self._states = states
        self._process = process
        self._wall_clock = wall_clock
        self._slots: dict[str, int] = {}

    async def acquire(
        self, identity: str, limits: Amounts, amounts: Amounts, max_in_flight: int | None
    ) -> AccountGrant:
        await trio.lowlevel.checkpoint()
        state, slots = self._states.get(identity, AccountState()), self._slots.get(identity, 0)
        state, has_slot = acquire_slot(state, slots, max_in_flight, self._process, self._wall_clock())
        if not has_slot:
            return AccountGrant(False, {}, at_capacity=True)
        state, grant = acquire_rate(state, limits, amounts, self._wall_clock())
        self._slots[identity] = slots + grant.granted
        in_flight = {**state.in_flight, self._process: (self._slots[identity], self._wall_clock())}
        self._states[identity] = replace(state, in_flight=in_flight)
        return replace(grant, has_slot=grant.granted)

    def release(self, identity: str) -> None:
        self._slots[identity] -= 1
        state = self._states[identity]
        in_flight = {**state.in_flight, self._process: (self._slots[identity], self._wall_clock())}
        self._states[identity] = replace(state, in_flight=in_flight)

    async def claim_probe(self, identity: str, cooldowns: Mapping[str, Cooldown]) -> bool:
        await trio.lowlevel.checkpoint()
        state = self._states.get(identity, AccountState())
        self._states[identity], claimed = claim_probe(state, cooldowns, self._wall_clock())
        return claimed

    async def wait_change(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def exchange(self, delta: Mapping[str, AccountStateDelta]) -> Mapping[str, AccountState]:
        await trio.lowlevel.checkpoint()
        for identity, item in delta.items():
            state = self._states.get(identity, AccountState())
            if not item.is_empty or self._process in state.in_flight:
                self._states[identity] = merge(state, item, self._process, self._wall_clock())
        return {identity: self._states[identity] for identity in delta if identity in self._states}

    async def load(self, identities: Iterable[str]) -> Mapping[str, AccountState]:
        await trio.lowlevel.checkpoint()
        return {identity: self._states[identity] for identity in identities if identity in self._states}

    async def aclose(self) -> None:
        pass


class FakeModelLists:
    """Lists in a dictionary, by Trio's clock."""

    def __init__(self) -> None:
        self._lists: dict[str, tuple[SharedModelList | None, float]] = {}

    async def get_or_claim(self, identity: str, seconds: float) -> tuple[SharedModelList, float] | None:
        while True:
            await trio.lowlevel.checkpoint()
            now = trio.current_time()
            found, ends = self._lists.get(identity, (None, now))
            if ends <= now:
                self._lists[identity] = None, now + seconds
                return None
            if found is not None:
                return found, ends - now
            await trio.sleep(0.25)

    async def save(self, identity: str, found: SharedModelList, seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        self._lists[identity] = found, trio.current_time() + seconds


class FakeCredentials:
    """The tokens of one account."""

    location = "memory"
    timeout = 0.0

    def __init__(self) -> None:
        self._tokens: TokenSet | None = None
        self._version = 0
        self._lock = trio.Lock()

    def watch(self, changed: Callable[[], None]) -> None:
        pass

    async def version(self) -> int | None:
        await trio.lowlevel.checkpoint()
        return None if self._tokens is None else self._version

    async def load(self) -> TokenSet | None:
        await trio.lowlevel.checkpoint()
        return self._tokens

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        async with self._lock:
            yield

    async def prepare_write(self, refresh_token: str, *, urgent: bool = False) -> FakePendingWrite:
        await trio.lowlevel.checkpoint()
        return FakePendingWrite(self)

    async def save(self, tokens: TokenSet) -> None:
        async with self._lock:
            self.replace(tokens)

    async def remove(self) -> bool:
        async with self._lock:
            removed, self._tokens = self._tokens is not None, None
            return removed

    def replace(self, tokens: TokenSet) -> None:
        self._tokens, self._version = tokens, self._version + 1


@dataclass
class FakePendingWrite:
    """The pending tokens of an account."""

    store: FakeCredentials

    async def commit(self, tokens: TokenSet) -> None:
        await trio.lowlevel.checkpoint()
        self.store.replace(tokens)

    async def reject(self) -> None:
        pass

    async def discard(self) -> None:
        await trio.lowlevel.checkpoint()


class FakeLoginSessions:
    """Logins whose results are kept without a limit."""

    def __init__(self, tasks: RefreshTasks) -> None:
        self._tasks = tasks
        self._logins: dict[str, tuple[Any, trio.CancelScope]] = {}

    async def start(self, source: OAuthSource) -> tuple[LoginProgress, bool]:
        known = self._logins.get(source.name)
        new = known is None or known[0].progress.finished
        if new:
            flow, scope = self._logins[source.name] = source.start_login(), trio.CancelScope()
            self._tasks.start_soon(self._run, flow, scope, source)
        flow, _ = self._logins[source.name]
        await flow.started.wait()
        return flow.progress, new

    async def progress(self, name: str) -> LoginProgress | None:
        await trio.lowlevel.checkpoint()
        return self._logins[name][0].progress if name in self._logins else None

    async def cancel(self, name: str) -> LoginProgress | None:
        if name not in self._logins:
            return None
        flow, scope = self._logins[name]
        scope.cancel()
        await flow.finished.wait()
        return await self.progress(name)

    async def _run(self, flow: Any, scope: trio.CancelScope, source: OAuthSource) -> None:
        with scope:
            await flow.run()
        source.reload()


class FakeResponses:
    """Responses in a dictionary, without expiry."""

    def __init__(self) -> None:
        self._responses: dict[tuple[str, str], StoredResponse] = {}

    async def save(self, stored: StoredResponse) -> None:
        await trio.lowlevel.checkpoint()
        self._responses[stored.owner, stored.id] = stored

    async def get(self, owner: str, id: str) -> StoredResponse:
        await trio.lowlevel.checkpoint()
        if (owner, id) not in self._responses:
            raise ResponseNotFound(id)
        return self._responses[owner, id]

    async def conversation(self, owner: str, id: str) -> list[StoredResponse]:
        found = [await self.get(owner, id)]
        while found[0].previous_id:
            found.insert(0, await self.get(owner, found[0].previous_id))
        return found

    async def delete(self, owner: str, id: str) -> None:
        await self.get(owner, id)
        del self._responses[owner, id]

    async def delete_owner(self, owner: str) -> int:
        gone = [key for key in self._responses if key[0] == owner]
        await trio.lowlevel.checkpoint()
        for key in gone:
            del self._responses[key]
        return len(gone)

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(len(self._responses), 0, 0)

    async def aclose(self) -> None:
        pass


class FakeToolRounds:
    """Rounds in a dictionary, without expiry; like a remote store, it cannot tell that it is empty."""

    is_empty = False

    def __init__(self) -> None:
        self._rounds: dict[tuple[str, tuple[str, ...]], Sequence[Any]] = {}

    async def save(self, key: str, ids: tuple[str, ...], messages: Sequence[Any]) -> None:
        await trio.lowlevel.checkpoint()
        self._rounds[key, ids] = messages

    async def load(self, key: str, ids: Sequence[tuple[str, ...]]) -> Mapping[tuple[str, ...], Sequence[Any]]:
        await trio.lowlevel.checkpoint()
        return {each: self._rounds[key, each] for each in ids if (key, each) in self._rounds}


class FakeReasoning:
    """Ciphertexts in a dictionary, without expiry; like a remote store, it cannot tell that it is empty."""

    is_empty = False

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, str], str] = {}

    async def save(self, key: tuple[str, str, str], ciphertext: str) -> None:
        await trio.lowlevel.checkpoint()
        self._entries[key] = ciphertext

    async def load(self, keys: Sequence[tuple[str, str, str]]) -> Mapping[tuple[str, str, str], str]:
        await trio.lowlevel.checkpoint()
        return {key: self._entries[key] for key in keys if key in self._entries}


class FakeAuditLog:
    """Entries in a list."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def record(self, entry: AuditEntry) -> None:
        await trio.lowlevel.checkpoint()
        self.entries.append(entry)


class FakeLedger:
    """Rows in a list, summed in Python."""

    def __init__(self, wall_clock: Clock = time.time) -> None:
        self._wall_clock = wall_clock
        self._pricing = Pricing()
        self.rows: list[dict[str, Any]] = []

    def use_pricing(self, pricing: Pricing) -> None:
        self._pricing = pricing

    def record(self, record: RequestRecord) -> None:
        if record.relay.model and not any(row["id"] == record.id for row in self.rows):
            self.rows.append(to_row(record, self._wall_clock(), self._pricing))

    async def delete_key(self, key: str) -> int:
        await trio.lowlevel.checkpoint()
        before, self.rows = self.rows, [row for row in self.rows if row["key"] != key]
        return len(before) - len(self.rows)

    async def run(self) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        pass

    async def usage_by(
        self, by: GroupBy, windows: Sequence[str], now: float
    ) -> Mapping[str, Sequence[UsageRow]]:
        await trio.lowlevel.checkpoint()
        return {window: self._usage(by, window, now) for window in windows}

    def _usage(self, by: GroupBy, window: str, now: float) -> list[UsageRow]:
        column = "served_model" if by == "model" else by
        since = WINDOWS[window].start(now) if window in WINDOWS else 0.0
        names = dict.fromkeys(row[column] for row in self._since(since))
        sums = [_sum(name, window, [r for r in self._since(since) if r[column] == name]) for name in names]
        return sorted(sums, key=lambda row: (-row.tokens, -row.requests, row.name))

    def _since(self, since: float) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["ended"] >= since and row["account"]]

    async def key_usage(self, key: str, windows: Collection[str], now: float) -> Mapping[str, WindowUsage]:
        await trio.lowlevel.checkpoint()
        usage = {}
        for name in windows:
            window = WINDOWS[name]
            rows = [row for row in self._since(window.start(now)) if row["key"] == key]
            total = _sum(key, name, rows)
            oldest = min((row["ended"] for row in rows), default=now) if window.rolling else now
            used = total.amounts if rows else {}
            usage[name] = WindowUsage(window.start(now), used, window.end(oldest))
        return usage

    async def history(self, since: float, until: float, count: int) -> History:
        await trio.lowlevel.checkpoint()
        width = (until - since) / count
        slots = []
        for number in range(count):
            start = since + number * width
            rows = [row for row in self.rows if start <= row["ended"] < start + width]
            left = sum(row["outcome"] == "client_disconnected" for row in rows)
            failed = sum(row["outcome"] not in ("ok", "client_disconnected") for row in rows)
            total = _sum("", "", rows)
            slots.append(
                TimeSlot(
                    start, len(rows), failed, left, total.prompt_tokens, total.completion_tokens, total.cost
                )
            )
        latencies = [LatencySlot(slot.start) for slot in slots]
        return History(slots, latencies, LatencySlot(since))

    async def recent_requests(
        self,
        limit: int,
        *,
        before: tuple[float, str] | None = None,
        only: Mapping[str, str] | None = None,
    ) -> Sequence[Mapping[str, Any]]:
        await trio.lowlevel.checkpoint()
        rows = sorted(self.rows, key=lambda row: (row["ended"], row["id"]), reverse=True)
        rows = [row for row in rows if before is None or (row["ended"], row["id"]) < before]
        filters = (only or {}).items()
        return [row for row in rows if all(row[name] == value for name, value in filters)][:limit]

    async def request(self, id: str) -> Mapping[str, Any] | None:
        await trio.lowlevel.checkpoint()
        return next((row for row in self.rows if row["id"] == id), None)


def _sum(name: str, window: str, rows: Sequence[dict[str, Any]]) -> UsageRow:
    return UsageRow(
        name,
        window,
        len(rows),
        sum(row["outcome"] != "ok" for row in rows),
        sum(row["prompt_tokens"] for row in rows),
        sum(row["completion_tokens"] for row in rows),
        sum(row["cost"] or 0.0 for row in rows),
        sum(row["cost"] is None and any(row[name] for name in PRICED) for row in rows),
        **{unit: sum(row[unit] for row in rows) for unit in UNITS},
        saved=sum((row["full_cost"] or 0.0) - (row["cost"] or 0.0) for row in rows),
    )


@dataclass
class Fakes:
    """All fakes, and the state that tests inspect."""

    api_keys: FakeApiKeys = field(default_factory=FakeApiKeys)
    account_states: dict[str, AccountState] = field(default_factory=dict)
    responses: FakeResponses = field(default_factory=FakeResponses)
    conversations: FakeConversations = field(default_factory=FakeConversations)
    wall_clock: WallClock = field(default_factory=WallClock)
    """Of leases."""
    tool_rounds: FakeToolRounds = field(default_factory=FakeToolRounds)
    reasoning: FakeReasoning = field(default_factory=FakeReasoning)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    credentials: dict[str, FakeCredentials] = field(default_factory=dict)
    audit: FakeAuditLog = field(default_factory=FakeAuditLog)

    def __post_init__(self) -> None:
        self.response_runs = FakeResponseRuns(self.wall_clock)

    def backends(self) -> Backends:
        """Return the backends that a server is built on."""
        return Backends(
            api_keys=self.api_keys,
            usage_limiter=FakeUsageLimiter(),
            wrong_secrets=FakeRateLimits(),
            grants=FakeGrants(),
            account_state=FakeAccountState(self.account_states, "fake"),
            credentials=self._open_credentials,
            login_sessions=FakeLoginSessions,
            responses=self.responses,
            conversations=self.conversations,
            completions=None,
            response_runs=self.response_runs,
            files=open_files(Config()),
            batches=open_batches(Config()),
            uploads=open_uploads(Config()),
            tool_rounds=self.tool_rounds,
            reasoning=self.reasoning,
            ledger=self.ledger,
            audit=self.audit,
        )

    def _open_credentials(self, account: AccountConfig) -> FakeCredentials:
        return self.credentials.setdefault(account.name, FakeCredentials())
