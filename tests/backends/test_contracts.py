"""The contract of every Protocol of shared state, for the fake and the local member; further members join the
tables.

Each test gets two views of one store, as two processes have them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio

from qproxy.access.api_keys import ApiKey, ApiKeyStore, ApiKeyStoreError, Quota
from qproxy.access.grants import GrantStore
from qproxy.access.rate_limits import RateLimitStore
from qproxy.access.usage_limiter import UsageLimiter
from qproxy.accounts.condition import LoginState
from qproxy.accounts.cooldowns import Cooldown
from qproxy.accounts.shared_state import (
    AccountState,
    AccountStateDelta,
    AccountStateStore,
    SharedCircuit,
)
from qproxy.auth.background import RefreshTasks
from qproxy.auth.credential_store import CredentialStore
from qproxy.auth.login_sessions import LoginSessions
from qproxy.backends.local.account_state import SqliteAccountState
from qproxy.backends.local.api_keys import FileApiKeys
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.backends.local.credentials import FileCredentials
from qproxy.backends.local.grants import SqliteGrants
from qproxy.backends.local.ledger import SqliteUsageLedger
from qproxy.backends.local.ledger_spool import LedgerSpool
from qproxy.backends.local.login_sessions import LocalLoginSessions
from qproxy.backends.local.rate_limits import FileRateLimits, MemoryRateLimits
from qproxy.backends.local.reasoning import MemoryReasoning
from qproxy.backends.local.responses import SqliteResponseStore
from qproxy.backends.local.tool_rounds import MemoryToolRounds
from qproxy.backends.local.usage_limiter import LocalUsageLimiter
from qproxy.backends.postgres.connection import PostgresAddress
from qproxy.backends.postgres.ledger import PostgresUsageLedger
from qproxy.backends.redis.memory import SealedMemory
from qproxy.backends.redis.reasoning import RedisReasoning
from qproxy.backends.redis.tool_rounds import RedisToolRounds
from qproxy.bootstrap.models import package_catalog
from qproxy.ledger import Pricing, UsageLedger
from qproxy.relay.reasoning_store import ReasoningStore
from qproxy.relay.tool_rounds import ToolRoundStore
from qproxy.server.response_store import ResponseNotFound, ResponseStore, StoredResponse
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.errors import AuthenticationError, InvalidKeyError, RequestError
from tests.auth.helpers import in_place, signed
from tests.backends import fakes
from tests.backends.redis import members as engine
from tests.backends.redis.link import Link
from tests.backends.redis.machines import open_credentials
from tests.backends.redis.process import LOGINS, open_api_keys, open_login_sessions, start_client
from tests.telemetry.factories import record

START = 1_764_500_000.0


@dataclass
class Clock:
    """A clock that a test sets, used as wall clock and as Trio's clock."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["fake", "local"])
def member(request) -> str:
    """Return the name of the tested member of a Protocol."""
    return str(request.param)


# API keys


@pytest.fixture(params=["fake", "local", "redis"])
async def key_stores(request, tmp_path, clock, nursery) -> tuple[ApiKeyStore, ApiKeyStore]:
    member = request.param
    if member == "redis":
        keys: list[Any] = []
        for _ in range(2):
            await open_api_keys(request.getfixturevalue("valkey"), nursery, clock, keys)
        return keys[0], keys[1]
    if member == "fake":
        fake = fakes.FakeApiKeys(clock)
        return fake, fake
    path = tmp_path / "keys.json"
    return FileApiKeys(path, wall_clock=clock), FileApiKeys(path, wall_clock=clock)


async def test_a_key_is_known_everywhere_until_it_is_revoked(key_stores):
    """A key created in one process is required and accepted in the other, and rejected once it is revoked
    there."""
    one, two = key_stores
    assert not one.required()
    key, secret = await one.create(name="bob", rpm=5, budgets=(Quota("day", 3),))
    assert two.required()
    assert two.writable
    assert two.authenticate(secret) == key
    assert two.list_keys() == (key,)
    with pytest.raises(InvalidKeyError):
        two.authenticate(secret + "x")
    assert (await two.revoke("bob")).id == key.id
    assert one.required()
    with pytest.raises(AuthenticationError, match="revoked"):
        one.authenticate(secret)


async def test_key_names_are_unique(key_stores):
    """A name in use cannot be given again, and only an active key can be revoked."""
    one, two = key_stores
    await one.create(name="bob")
    with pytest.raises(ApiKeyStoreError, match="already exists"):
        await two.create(name="bob")
    await two.revoke("bob")
    with pytest.raises(ApiKeyStoreError, match="no active key"):
        await one.revoke("bob")
    await one.create(name="bob")


async def test_a_key_expires_by_the_wall_clock(key_stores, clock):
    """A key is accepted before its expiry and not at it."""
    one, two = key_stores
    _, secret = await one.create(expires=int(START) + 10)
    two.required()
    two.authenticate(secret)
    clock.now += 10
    with pytest.raises(AuthenticationError, match="expired"):
        two.authenticate(secret)


# Rate limits


@pytest.fixture(params=["fake", "memory", "file", "redis"])
async def rate_limits(request, tmp_path, clock, nursery) -> tuple[RateLimitStore, RateLimitStore]:
    if request.param == "redis":
        server = request.getfixturevalue("valkey")
        stores: list[Any] = []
        for _ in range(2):
            await engine.open_rate_limits(server, nursery, clock, stores)
        return stores[0], stores[1]
    if request.param == "file":
        path = tmp_path / "rates"
        return (
            FileRateLimits(path, clock=clock, wall_clock=clock),
            FileRateLimits(path, clock=clock, wall_clock=clock),
        )
    store: RateLimitStore = (
        fakes.FakeRateLimits(clock) if request.param == "fake" else MemoryRateLimits(clock=clock)
    )
    return store, store


SUBJECT = bytes(range(32))
LIMITS = {"requests": 3, "tokens": 60, "usd": 0.5}


async def test_amounts_are_granted_together_or_none(rate_limits):
    """Every unit has its level; one that is not available leaves the others as they were."""
    one, two = rate_limits
    grant = await one.reserve(SUBJECT, LIMITS, {"requests": 1, "tokens": 40})
    assert grant.granted
    assert grant.available == {"requests": 2, "tokens": 20, "usd": 0.5}
    grant = await two.reserve(SUBJECT, LIMITS, {"requests": 1, "tokens": 40})
    assert not grant.granted
    assert grant.available == {"requests": 2, "tokens": 20, "usd": 0.5}
    assert (await two.reserve(bytes(32), LIMITS, {"tokens": 60})).granted


async def test_settling_takes_and_returns(rate_limits, clock):
    """More may be settled than is available, which must be refilled first; a returned amount is available at
    once."""
    one, two = rate_limits
    one.settle(SUBJECT, LIMITS, {"tokens": 90})
    assert not (await two.reserve(SUBJECT, LIMITS, {})).granted
    two.settle(SUBJECT, LIMITS, {"tokens": -30})
    grant = await one.reserve(SUBJECT, LIMITS, {})
    assert grant.granted
    assert grant.available["tokens"] == pytest.approx(0)
    clock.now += 30
    assert (await two.reserve(SUBJECT, LIMITS, {})).available["tokens"] == pytest.approx(30)
    one.settle(SUBJECT, LIMITS, {"tokens": -1000})
    assert (await two.reserve(SUBJECT, LIMITS, {})).available["tokens"] == 60


async def test_an_amount_above_the_limit_waits_for_a_full_bucket(rate_limits, clock):
    """An amount above the limit counts as the limit."""
    one, _ = rate_limits
    assert (await one.reserve(SUBJECT, LIMITS, {"tokens": 1000})).granted
    clock.now += 59
    assert not (await one.reserve(SUBJECT, LIMITS, {"tokens": 1000})).granted
    clock.now += 1
    assert (await one.reserve(SUBJECT, LIMITS, {"tokens": 1000})).granted


# Rate limits and budgets of keys


@pytest.fixture(params=["fake", "local", "redis"])
async def usage_limiter(request, autojump_clock, nursery) -> UsageLimiter:
    member = request.param
    if member == "redis":
        return await engine.open_usage_limiter(request.getfixturevalue("valkey"), nursery)
    if member == "fake":
        return fakes.FakeUsageLimiter()
    return LocalUsageLimiter(MemoryRateLimits(), fakes.FakeLedger())


def key(**fields: Any) -> ApiKey:
    return ApiKey("key_1", "0" * 64, "bob", **fields)


REQUEST = {"requests": 1, "tokens": 10}


async def test_a_request_reserves_and_settles(usage_limiter, autojump_clock):
    """Unused amounts are available at once; a request that reached no model is free."""
    limited = key(rpm=2, tpm=100)
    first = await usage_limiter.reserve(limited, {"requests": 1, "tokens": 90})
    with pytest.raises(RequestError) as rejection:
        await usage_limiter.reserve(limited, {"requests": 1, "tokens": 90})
    assert (rejection.value.status, rejection.value.code) == (429, "rate_limit_exceeded")
    first.settle({"tokens": 0}, attempted=False, answered=False)
    first.settle({"tokens": 100}, attempted=True, answered=True)
    second = await usage_limiter.reserve(limited, {"requests": 1, "tokens": 90})
    second.settle({"tokens": 5}, attempted=True, answered=True)
    (await usage_limiter.reserve(limited, {"requests": 1, "tokens": 95})).settle(
        {"tokens": 0}, attempted=True, answered=False
    )
    with pytest.raises(RequestError):
        await usage_limiter.reserve(limited, REQUEST)
    await trio.sleep(60)
    await usage_limiter.reserve(limited, REQUEST)
    assert next(iter(usage_limiter.rate_limits(limited)))[:2] == ("requests", 2)
    assert list(usage_limiter.rate_limits(key())) == []


async def test_a_request_in_flight_extends_its_reservation(usage_limiter, autojump_clock):
    """It is stopped when its rate limit or its budget of tokens is exhausted, but not by its budget of
    requests."""
    fast = await usage_limiter.reserve(key(rpm=2), {"requests": 1, "tokens": 0})
    await fast.extend({"requests": 1, "tokens": 500})
    with pytest.raises(RequestError):
        await fast.extend({"requests": 1, "tokens": 0})
    small = replace(key(budgets=(Quota("day", requests=1, tokens=100),)), id="key_2", name="amy")
    session = await usage_limiter.reserve(small, {"requests": 1, "tokens": 0})
    await session.extend({"requests": 1, "tokens": 60})
    with pytest.raises(RequestError) as rejection:
        await session.extend({"requests": 1, "tokens": 60})
    assert rejection.value.code == "insufficient_quota"


async def test_a_budget_counts_requests_in_flight(usage_limiter, autojump_clock):
    """Concurrent requests cannot together exceed the remainder; one without a response returns its share."""
    limited = key(budgets=(Quota("month", requests=2),))
    first = await usage_limiter.reserve(limited, REQUEST)
    second = await usage_limiter.reserve(limited, REQUEST)
    with pytest.raises(RequestError) as rejection:
        await usage_limiter.reserve(limited, REQUEST)
    assert (rejection.value.status, rejection.value.code) == (429, "insufficient_quota")
    first.settle({"tokens": 0}, attempted=True, answered=False)
    second.settle({"tokens": 10}, attempted=True, answered=True)
    third = await usage_limiter.reserve(limited, REQUEST)
    third.settle({"tokens": 10}, attempted=True, answered=True)
    with pytest.raises(RequestError):
        await usage_limiter.reserve(limited, REQUEST)


async def test_a_budget_in_money(usage_limiter, autojump_clock):
    """Dollars are reserved by the estimate, and settled by what the request has cost."""
    limited = key(budgets=(Quota("month", usd=0.02),))
    first = await usage_limiter.reserve(limited, {"requests": 1, "tokens": 5, "usd": 0.02})
    with pytest.raises(RequestError):
        await usage_limiter.reserve(limited, {"requests": 1, "tokens": 5, "usd": 0.001})
    first.settle({"tokens": 5, "usd": 0.0125}, attempted=True, answered=True)
    second = await usage_limiter.reserve(limited, {"requests": 1, "tokens": 5, "usd": 0.001})
    second.settle({"tokens": 5, "usd": 0.0075}, attempted=True, answered=True)
    with pytest.raises(RequestError):
        await usage_limiter.reserve(limited, {"requests": 1, "tokens": 5, "usd": 0.001})


async def test_a_rejected_request_uses_no_budget(usage_limiter, autojump_clock):
    """A request that the rate limit rejects uses nothing of the budget."""
    limited = key(rpm=1, budgets=(Quota("day", requests=2),))
    first = await usage_limiter.reserve(limited, REQUEST)
    for _ in range(3):
        with pytest.raises(RequestError) as rejection:
            await usage_limiter.reserve(limited, REQUEST)
        assert rejection.value.code == "rate_limit_exceeded"
    first.settle({"tokens": 10}, attempted=True, answered=True)
    await trio.sleep(60)
    await usage_limiter.reserve(limited, REQUEST)


# Grants


@pytest.fixture(params=["fake", "local", "redis"])
async def grant_stores(request, tmp_path, clock, nursery) -> tuple[GrantStore, GrantStore]:
    if request.param == "redis":
        server = request.getfixturevalue("valkey")
        one, two = [await engine.open_grants(Link(server, clock), nursery, clock) for _ in range(2)]
        return one, two
    if request.param == "fake":
        fake = fakes.FakeGrants(clock)
        return fake, fake
    path = tmp_path / "access.sqlite3"
    return SqliteGrants(path, wall_clock=clock), SqliteGrants(path, wall_clock=clock)


async def test_a_grant_holds_until_it_expires_or_is_revoked(grant_stores, clock):
    """A grant added in one process is found in the other under its kind alone; revoking a missing one does
    nothing."""
    one, two = grant_stores
    await one.add("session", b"a", clock.now + 10)
    await one.add("session", b"b", clock.now + 10)
    assert await two.has("session", b"a")
    assert not await two.has("key", b"a")
    await two.revoke("session", b"b")
    await two.revoke("session", b"b")
    assert not await one.has("session", b"b")
    clock.now += 10
    assert not await one.has("session", b"a")


async def test_grants_of_another_epoch_end(grant_stores, clock):
    """Grants of the kind from another epoch are revoked; others stay."""
    one, two = grant_stores
    await one.add("session", b"old", clock.now + 10, epoch="1")
    await one.add("session", b"new", clock.now + 10, epoch="2")
    await one.add("key", b"old", clock.now + 10)
    await two.retain("session", "2")
    found = [await one.has("session", b"old"), await one.has("session", b"new"), await one.has("key", b"old")]
    assert found == [False, True, True]


# Account states


@pytest.fixture(params=["fake", "local", "redis"])
async def account_states(request, tmp_path, clock, nursery):
    stores: list[AccountStateStore]
    if request.param == "fake":
        states: dict[str, AccountState] = {}
        stores = [fakes.FakeAccountState(states, name, clock) for name in "pq"]
    elif request.param == "local":
        stores = [SqliteAccountState(tmp_path / "accounts.db", wall_clock=clock) for _ in range(2)]
    else:
        server = request.getfixturevalue("valkey")
        stores = [await engine.open_account_state(server, nursery, clock) for _ in range(2)]
    yield stores
    for store in stores:
        await store.aclose()


async def test_account_state_is_shared(account_states):
    """Counts add up, cooldowns start and end, requests in flight count by process."""
    one, two = account_states
    cooldown = Cooldown(START + 100, START, "quota", None)
    await one.exchange(
        {"id": AccountStateDelta("a", {"": cooldown}, requests=2, in_flight=2, quota=("gone",))}
    )
    states = await two.exchange({"id": AccountStateDelta("a", requests=1, failures=1, in_flight=1)})
    state = states["id"]
    assert (state.name, state.requests, state.failures, state.quota) == ("a", 3, 1, "gone")
    assert (state.cooldowns, state.active_requests(START), state.last_minute(START)) == ({"": cooldown}, 3, 3)
    await two.exchange({"id": AccountStateDelta("a", {"": None}, quota=(None,))})
    assert dict(await one.load(["id", "none"])) == dict(await two.load(["id"]))
    state = (await one.load(["id"]))["id"]
    assert (state.cooldowns, state.quota) == ({}, None)


async def test_processes_share_one_rate_limit_per_account(account_states, clock):
    """Processes together get what one would get, in any units, and a returned amount is available to both."""
    one, two = account_states
    limits = {"requests": 3, "tokens": 100, "pictures": 2}
    assert (await one.acquire("id", limits, {"requests": 1, "tokens": 90, "pictures": 1}, None)).granted
    grant = await two.acquire("id", limits, {"requests": 1, "tokens": 90}, None)
    assert not grant.granted
    assert grant.available == {"requests": 2, "tokens": 10, "pictures": 1}
    await one.exchange({"id": AccountStateDelta("a", released={"tokens": 80, "pictures": 1}, limits=limits)})
    grant = await two.acquire("id", limits, {"requests": 1, "tokens": 90, "pictures": 2}, None)
    assert grant.granted
    assert grant.available == {"requests": 1, "tokens": 0, "pictures": 0}
    clock.now += 20
    assert (await one.acquire("id", limits, {}, None)).available["requests"] == pytest.approx(2)


async def test_one_process_probes(account_states, clock):
    """After an expired cooldown one process may send the next request; another one, when that has failed."""
    one, two = account_states
    expired = Cooldown(START, START - 60, "quota")
    await one.exchange({"id": AccountStateDelta("a", {"": expired})})
    probe = {"": replace(expired, until=START + 15, probing=True)}
    assert await one.claim_probe("id", probe)
    assert not await two.claim_probe("id", probe)
    state = (await two.exchange({"id": AccountStateDelta("a")}))["id"]
    assert state.cooldowns[""].probing
    failed = Cooldown(START + 3, START + 1, "quota", failed_probes=1)
    clock.now += 1
    await one.exchange({"id": AccountStateDelta("a", {"": failed})})
    again = {"": replace(failed, until=START + 17, probing=True)}
    assert not await two.claim_probe("id", again)
    clock.now += 2
    assert await two.claim_probe("id", again)
    assert not await one.claim_probe("id", again)
    clock.now += 15
    assert await one.claim_probe("id", {"": replace(failed, until=clock.now + 15, probing=True)})


async def test_a_cooldown_ends_with_the_later_of_two_deadlines(account_states):
    """Whichever process publishes first; a success ends it for both."""
    one, two = account_states
    early, late = Cooldown(START + 10, START + 2, "quota"), Cooldown(START + 90, START + 1, "quota")
    for first, second, name in ((early, late, "id"), (late, early, "other")):
        await one.exchange({name: AccountStateDelta("a", {"": first})})
        state = (await two.exchange({name: AccountStateDelta("a", {"": second})}))[name]
        assert state.cooldowns == {"": replace(late, since=START + 2)}
        await one.exchange({name: AccountStateDelta("a", successes={"": START + 3})})
        assert (await two.exchange({name: AccountStateDelta("a")}))[name].cooldowns == {}


async def test_what_is_known_of_an_account_is_shared(account_states):
    """Errors, logins, circuits, learned rules and results: the latest counts, in any order."""
    one, two = account_states
    circuit = SharedCircuit(START, START + 30, 6)
    login = LoginState("ready", "logged in", True, START + 500)
    await one.exchange(
        {
            "id": AccountStateDelta(
                "a",
                last_error="500 x",
                last_error_at=START,
                last_message="down",
                last_fault_at=START,
                failed_model="m",
                results="+-",
                circuit=circuit,
                login=login,
                learned_rules={"no_tools m": START, "short n": START},
            )
        }
    )
    delta = AccountStateDelta(
        "a", last_success_at=START - 5, results="+", circuit=replace(circuit, changed_at=START - 1)
    )
    state = (await two.exchange({"id": replace(delta, learned_rules={"short n": None})}))["id"]
    assert state.history.is_failing
    assert state.history.last_cause == "500 x: down"
    assert (state.circuit, state.login, state.failed_model, state.results) == (circuit, login, "m", "+-+")
    assert dict(state.learned_rules) == {"no_tools m": START}
    closed = SharedCircuit(START + 1, 0.0, 0)
    await two.exchange({"id": AccountStateDelta("a", circuit=closed, last_success_at=START + 1)})
    state = (await one.exchange({"id": AccountStateDelta("a")}))["id"]
    assert state.circuit == closed
    assert not state.history.is_failing


async def test_a_woken_account_has_no_cooldown(account_states):
    """An operator ends what started before, in every process; what starts later stays."""
    one, two = account_states
    await one.exchange({"id": AccountStateDelta("a", {"m": Cooldown(START + 99, START, "model")})})
    await two.exchange({"id": AccountStateDelta("a", woken_at=START + 1, quota=(None,))})
    later = Cooldown(START + 99, START + 2, "quota")
    await one.exchange({"id": AccountStateDelta("a", {"": later})})
    assert (await two.exchange({"id": AccountStateDelta("a")}))["id"].cooldowns == {"": later}


async def test_slots_of_an_account_are_counted_over_processes(account_states):
    """No more requests are in flight than `max_in_flight`, where the member counts them."""
    one, two = account_states
    if not one.counts_in_flight:
        return
    for store in (one, two, one):
        grant = await store.acquire("id", {}, {"requests": 1}, 3)
        assert grant.granted
        assert grant.has_slot
    grant = await two.acquire("id", {}, {"requests": 1}, 3)
    assert (grant.granted, grant.at_capacity, grant.has_slot) == (False, True, False)
    two.release("id")
    assert (await two.acquire("id", {}, {"requests": 1}, 3)).granted


# Credentials


@pytest.fixture(params=["fake", "local", "redis"])
async def credential_stores(
    request, tmp_path, nursery, autojump_clock
) -> tuple[CredentialStore, CredentialStore]:
    member = request.param
    if member == "redis":
        server = request.getfixturevalue("valkey")
        machines = [await open_credentials(server, nursery, tmp_path / name) for name in ("a", "b")]
        return machines[0], machines[1]
    if member == "fake":
        fake = fakes.FakeCredentials()
        return fake, fake
    path = tmp_path / "me" / "oauth_creds.json"
    one, two = (FileCredentials(CredentialFile(path), FileLock(path), run=in_place) for _ in range(2))
    return one, two


OLD = TokenSet("a1", "r1", "Bearer", 1_760_000_000_000, "portal.qwen.ai")
NEW = TokenSet("a2", "r2", "Bearer", 1_760_000_100_000, "portal.qwen.ai")


async def test_tokens_are_saved_and_removed(credential_stores, autojump_clock):
    """Tokens saved in one process load in the other; the version changes with the tokens, and is None without
    any."""
    one, two = credential_stores
    assert (await one.version(), await one.load(), await one.remove()) == (None, None, False)
    await one.save(OLD)
    version = await two.version()
    assert (version is not None, await two.load()) == (True, OLD)
    await two.save(NEW)
    assert (await one.version() != version, await one.load()) == (True, NEW)
    assert (await one.remove(), await two.remove(), await two.load()) == (True, False, None)


async def test_a_refresh_prepares_and_commits(credential_stores, autojump_clock):
    """Nothing changes before the commit; a discarded pending write leaves the tokens unchanged."""
    one, two = credential_stores
    await one.save(OLD)
    async with one.exclusive():
        pending = await one.prepare_write(OLD.refresh_token)
        assert await two.load() == OLD
        await pending.discard()
        assert await two.load() == OLD
        pending = await one.prepare_write(OLD.refresh_token)
        await pending.commit(NEW)
        await pending.discard()
    assert await two.load() == NEW


async def test_one_process_refreshes_at_a_time(credential_stores, autojump_clock):
    """Another process waits until exclusive access is released, even after an error."""
    one, two = credential_stores
    await one.save(OLD)
    order = []

    async def second(after):
        await trio.sleep(after)
        async with two.exclusive():
            order.append("second")

    async def first():
        async with one.exclusive():
            await trio.sleep(1)
            order.append("first")
            raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(second, 0.5)
        with pytest.raises(ZeroDivisionError):
            await first()
    assert order == ["first", "second"]


# Logins


@pytest.fixture(params=["fake", "local", "redis"])
async def open_logins(request, nursery, autojump_clock):
    if request.param == "redis":
        client = await start_client(Link(request.getfixturevalue("valkey")), nursery, [LOGINS])
        return lambda tasks: open_login_sessions(client, nursery, tasks)
    return fakes.FakeLoginSessions if request.param == "fake" else LocalLoginSessions


async def test_a_login_in_progress_is_shared(open_logins, tmp_path, autojump_clock):
    """A second start attaches to the login; it ends with saved tokens, or when it is cancelled, and stays
    readable."""
    tasks = RefreshTasks()
    logins: LoginSessions = open_logins(tasks)
    async with signed(tmp_path) as it:
        it.nursery.start_soon(tasks.run)
        await trio.testing.wait_all_tasks_blocked()
        source = it.source()
        assert (await logins.progress("me"), await logins.cancel("me")) == (None, None)
        progress, new = await logins.start(source)
        assert (progress.state, new) == ("pending", True)
        again, new = await logins.start(source)
        assert (again.user_code, new) == (progress.user_code, False)
        cancelled = await logins.cancel("me")
        assert cancelled is not None
        assert cancelled.state == "cancelled"
        progress, new = await logins.start(source)
        assert new
        assert it.emulator.identity.decide(progress.user_code)
        await trio.sleep(30)
        done = await logins.progress("me")
        assert done is not None
        assert done.state == "signed_in"
        assert (await source.credential()).token == it.on_disk().access_token
        await tasks.stop()
        it.nursery.cancel_scope.cancel()


# Stored responses


@pytest.fixture(params=["fake", "local", "redis"])
async def response_stores(request, tmp_path, clock, nursery):
    if request.param == "redis":
        server = request.getfixturevalue("valkey")
        stores: list[ResponseStore] = [
            await engine.open_responses(Link(server, clock), nursery) for _ in range(2)
        ]
    elif request.param == "fake":
        stores = [fakes.FakeResponses()] * 2
    else:
        path = tmp_path / "responses.sqlite3"
        stores = [SqliteResponseStore(path, max_age=100.0, max_bytes=10**6, timeout=5.0) for _ in range(2)]
    yield stores
    for store in stores:
        await store.aclose()


def response(id: str, previous: str | None = None, owner: str = "bob") -> StoredResponse:
    return StoredResponse(id, owner, previous, {"id": id, "output": [f"out {id}"]}, [f"in {id}"])


async def test_only_the_owner_finds_a_conversation(response_stores):
    """A response is found once it is saved, with everything before it; other owners find nothing."""
    one, two = response_stores
    for stored in (response("a"), response("b", "a"), response("c", "b")):
        await one.save(stored)
    assert await two.get("bob", "b") == response("b", "a")
    assert [stored.id for stored in await two.conversation("bob", "c")] == ["a", "b", "c"]
    for owner, id in (("amy", "a"), ("bob", "d"), ("bob", "")):
        with pytest.raises(ResponseNotFound):
            await two.get(owner, id)
        with pytest.raises(ResponseNotFound):
            await two.conversation(owner, id)
        with pytest.raises(ResponseNotFound):
            await two.delete(owner, id)


async def test_a_deleted_response_ends_its_conversation(response_stores):
    """Later responses can still be read, but not continued."""
    one, two = response_stores
    for stored in (response("a"), response("b", "a")):
        await one.save(stored)
    await two.delete("bob", "a")
    assert (await one.get("bob", "b")).id == "b"
    with pytest.raises(ResponseNotFound) as missing:
        await one.conversation("bob", "b")
    assert missing.value.id == "a"


async def test_all_responses_of_an_owner_are_deleted(response_stores):
    """The number of deleted responses is returned; those of other owners stay."""
    one, two = response_stores
    for stored in (response("a"), response("b", "a"), response("c", owner="amy")):
        await one.save(stored)
    assert await two.delete_owner("bob") == 2
    assert await two.delete_owner("bob") == 0
    with pytest.raises(ResponseNotFound):
        await one.get("bob", "b")
    assert (await one.get("amy", "c")).id == "c"


# Tool rounds


async def open_memories(request: Any, nursery: trio.Nursery) -> list[SealedMemory]:
    """Return what two processes share."""
    server = request.getfixturevalue("valkey")
    return [await engine.open_memory(Link(server), nursery) for _ in range(2)]


@pytest.fixture(params=["fake", "local", "redis"])
async def reasoning_stores(request, nursery) -> tuple[ReasoningStore, ReasoningStore]:
    if request.param == "fake":
        return (fakes.FakeReasoning(),) * 2
    if request.param == "local":
        return (MemoryReasoning(seconds=60.0, max_bytes=10_000),) * 2
    one, two = [
        RedisReasoning(memory, MemoryReasoning(seconds=60.0, max_bytes=10_000))
        for memory in await open_memories(request, nursery)
    ]
    return one, two


async def test_ciphertext_is_found_by_client_account_and_message(reasoning_stores, autojump_clock):
    """The last ciphertext saved under a key is found by that key alone."""
    one, reasoning = reasoning_stores
    await one.save(("client", "one", "hash"), "old")
    await one.save(("client", "one", "hash"), "new")
    assert not reasoning.is_empty
    others = [("client", "two", "hash"), ("other", "one", "hash"), ("client", "one", "another")]
    assert await reasoning.load([("client", "one", "hash"), *others]) == {("client", "one", "hash"): "new"}


@pytest.fixture(params=["fake", "local", "redis"])
async def round_stores(request, nursery) -> tuple[ToolRoundStore, ToolRoundStore]:
    if request.param == "fake":
        return (fakes.FakeToolRounds(),) * 2
    if request.param == "local":
        return (MemoryToolRounds(seconds=60.0),) * 2
    one, two = [
        RedisToolRounds(memory, MemoryToolRounds(seconds=60.0))
        for memory in await open_memories(request, nursery)
    ]
    return one, two


async def test_rounds_are_found_by_conversation_and_calls(round_stores, autojump_clock):
    """The last saved round is loaded; other calls, another order and other conversations find nothing."""
    one, tool_rounds = round_stores
    await one.save("place", ("1", "2"), [{"role": "tool", "content": "old"}])
    await one.save("place", ("1", "2"), [{"role": "tool", "content": "new"}])
    assert not tool_rounds.is_empty
    found = await tool_rounds.load("place", [("1", "2"), ("2", "1"), ("3",)])
    assert dict(found) == {("1", "2"): [{"role": "tool", "content": "new"}]}
    assert not await tool_rounds.load("elsewhere", [("1", "2")])


# Usage


@pytest.fixture(params=["fake", "local", "postgres"])
def opened_ledger(request, tmp_path, clock) -> UsageLedger:
    if request.param == "fake":
        return fakes.FakeLedger(clock)
    if request.param == "local":
        return SqliteUsageLedger(tmp_path / "ledger.sqlite3", Pricing(), keep_days=90, wall_clock=clock)
    address = PostgresAddress(request.getfixturevalue("postgres").create_schema(), timeout=5.0)
    spool = LedgerSpool(tmp_path / "ledger-spool.sqlite3")
    return PostgresUsageLedger(address, Pricing(), keep_days=90, spool=spool, wall_clock=clock)


@pytest.fixture
async def ledger(opened_ledger):
    yield opened_ledger
    await opened_ledger.aclose()


def write(ledger: UsageLedger, clock: Clock) -> None:
    """Record four requests: two of bob's, one of amy's an hour later, and one that reached no account."""
    ledger.use_pricing(Pricing(listed_for=["one"], catalog=package_catalog()))
    for id, changes in (
        ("r1", {}),
        ("r2", {"outcome": "client_disconnected"}),
        ("r2", {}),
        ("r3", {"key": "amy", "account": "two"}),
        ("r4", {"account": None, "outcome": "error", "usage": None, "first_byte": None}),
        ("r5", {"model": ""}),
    ):
        clock.now += 3600 * (id == "r3")
        ledger.record(record(**{"id": id, **changes}))


async def test_usage_is_summed_by_key_account_and_model(ledger, clock):
    """A query includes all earlier records; a request counts once, and not at all if it reached no
    account."""
    write(ledger, clock)
    by_key = await ledger.usage_by("key", ("5h", "all"), clock.now + 1)
    for window in ("5h", "all"):
        rows = [(row.name, row.window, row.requests, row.failed, row.tokens) for row in by_key[window]]
        assert rows == [("bob", window, 2, 1, 242), ("amy", window, 1, 0, 121)]
    (bob, amy) = by_key["all"]
    assert bob.cost > 0
    assert (bob.unpriced, amy.cost, amy.unpriced) == (0, 0.0, 1)
    accounts = (await ledger.usage_by("account", ("all",), clock.now + 1))["all"]
    assert [row.name for row in accounts] == ["one", "two"]
    (model,) = (await ledger.usage_by("model", ("all",), clock.now + 1))["all"]
    assert (model.name, model.requests) == ("qwen3.7-plus", 3)


async def test_units_are_summed_beside_tokens(ledger, clock):
    """Characters, seconds and pictures are columns of a request and of every sum, priced or counted as
    unpriced."""
    for id, units in (("u1", {"characters": 120}), ("u2", {"characters": 30, "seconds": 2.5}), ("u3", {})):
        made = record(id=id, usage=None)
        made.relay.units.update(units)
        ledger.record(made)
    for window in ("5h", "all"):
        (row,) = (await ledger.usage_by("key", (window,), clock.now + 1))[window]
        assert (row.units, row.unpriced, row.tokens) == ({"characters": 150, "seconds": 2.5}, 2, 0)
    stored = await ledger.request("u2")
    assert (stored["characters"], stored["seconds"], stored["images"]) == (30, 2.5, 0)


async def test_usage_of_a_key_by_window(ledger, clock):
    """Amounts are by unit; a rolling window resets five hours after its first request."""
    began = clock.now
    write(ledger, clock)
    usage = await ledger.key_usage("bob", {"5h", "month"}, clock.now + 1)
    for window in ("5h", "month"):
        assert {**usage[window].used, "usd": 0} == {"requests": 2, "tokens": 242, "usd": 0}
    assert (
        usage["month"].used["usd"]
        == (await ledger.usage_by("key", ("month",), clock.now + 1))["month"][0].cost
    )
    assert usage["5h"].resets_at == pytest.approx(began + 5 * 3600, abs=1)
    assert usage["5h"].start == pytest.approx(clock.now + 1 - 5 * 3600)
    assert (await ledger.key_usage("carl", {"month"}, clock.now))["month"].used == {}


async def test_a_key_is_deleted_from_the_ledger(ledger, clock):
    """Rows and sums of the key are deleted, those of others stay; the number of requests is returned."""
    write(ledger, clock)
    rows = len(await ledger.recent_requests(100, only={"key": "bob"}))
    assert await ledger.delete_key("bob") == rows > 0
    usage = (await ledger.usage_by("key", ("all",), clock.now + 1))["all"]
    assert "bob" not in {row.name for row in usage}
    assert "amy" in {row.name for row in usage}
    assert (await ledger.key_usage("bob", {"month"}, clock.now + 1))["month"].used == {}
    assert await ledger.delete_key("bob") == 0


async def test_requests_are_listed_and_found(ledger, clock):
    """Requests are listed newest first, by page, filtered; one is found by its id."""
    write(ledger, clock)
    newest = await ledger.recent_requests(2)
    assert [row["id"] for row in newest] == ["r4", "r3"]
    last = newest[-1]
    older = await ledger.recent_requests(2, before=(last["ended"], last["id"]))
    assert [row["id"] for row in older] == ["r2", "r1"]
    assert [row["id"] for row in await ledger.recent_requests(9, only={"key": "amy"})] == ["r3"]
    found = await ledger.request("r1")
    assert found is not None
    assert (found["key"], found["outcome"]) == ("bob", "ok")
    assert await ledger.request("r9") is None


async def test_history_in_equal_slots(ledger, clock):
    """A request counts in the slot in which it finished, as successful, failed or disconnected."""
    began = clock.now
    write(ledger, clock)
    history = await ledger.history(began - 1, began + 7199, 2)
    parts = [(slot.start, slot.requests, slot.ok, slot.disconnected, slot.failed) for slot in history.slots]
    assert parts == [(began - 1, 2, 1, 1, 0), (began + 3599, 2, 1, 0, 1)]
    assert [slot.start for slot in history.latencies] == [began - 1, began + 3599]


def test_sql_is_confined_to_the_local_backends():
    """Only `backends.local` imports SQLite's helpers and its own modules, except the factories and checks of
    files."""
    import qproxy

    root = Path(qproxy.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if "local" not in path.relative_to(root).parts
        and any(
            word in path.read_text()
            for word in ("qproxy.backends.local", "qproxy.system.sqlite", "import sqlite3")
        )
    }
    assert found == {
        "backends/api_keys.py",
        "backends/credentials.py",
        "backends/factory.py",
        "backends/stores.py",
        "backends/ledgers.py",
        "backends/sealing.py",
        "backends/shared_commands.py",
        "backends/shared_operations.py",
        "diagnostics/system.py",
        "system/sqlite.py",
    }
