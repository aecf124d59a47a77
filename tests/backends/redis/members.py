"""Members on a real server whose time is a test's: with an autojump clock, or one that a test sets."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import trio

from qproxy.backends.local.conversations import SqliteConversations
from qproxy.backends.local.grants import SqliteGrants
from qproxy.backends.local.responses import SqliteResponseStore
from qproxy.backends.redis.account_state import ACCOUNTS, RedisAccountState
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.conversations import RedisConversations
from qproxy.backends.redis.grants import MAX_GRANTS, RedisGrants
from qproxy.backends.redis.memory import SealedMemory
from qproxy.backends.redis.rate_limits import RedisRateLimits
from qproxy.backends.redis.response_runs import RedisResponseRuns
from qproxy.backends.redis.responses import RedisResponses
from qproxy.backends.redis.script import Script, load_script
from qproxy.backends.redis.sealing import Sealer
from qproxy.backends.redis.subjects import Policy, Subjects
from qproxy.backends.redis.subscriber import Subscriber
from qproxy.backends.redis.usage_limiter import RedisUsageLimiter
from qproxy.limits.token_bucket import Amounts, RateLimitGrant
from qproxy.server.response_store import ResponseStore
from tests.backends.fakes import FakeLedger
from tests.backends.redis.link import Link
from tests.backends.redis.server import Server, with_clock

KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
SEALER = Sealer([KEY])


async def open_subjects(
    server: Server,
    nursery: trio.Nursery,
    clock: Callable[[], float] = trio.current_time,
    *,
    kind: str = "k",
    policy: Policy = "share",
    link: Link | None = None,
    scripts: Sequence[Script] = (),
) -> Subjects:
    """Return the subjects of one process, connected."""
    script = with_clock(load_script("limits"))
    client = await open_client(link or Link(server, clock), nursery, script, *scripts)
    subjects = Subjects(client, script, kind, policy, clock=clock)
    nursery.start_soon(subjects.run)
    return subjects


async def open_client(link: Link, nursery: trio.Nursery, *scripts: Script) -> RedisClient:
    """Return the client of one process, connected."""
    client = RedisClient(
        link.server.address,
        prefix="q",
        timeout=0.25,
        connect_timeout=1.0,
        scripts=scripts,
        open_stream=link.open,
    )
    nursery.start_soon(client.run)
    await client.wait_connected()
    return client


async def open_grants(
    link: Link, nursery: trio.Nursery, clock: Callable[[], float], *, limit: int = MAX_GRANTS
) -> RedisGrants:
    """Return the grants of one process, with a store of its own in memory."""
    script = with_clock(load_script("grants"))
    client = await open_client(link, nursery, script)
    return RedisGrants(client, SqliteGrants(None, wall_clock=clock), script=script, limit=limit)


def scripts_with_clock(*names: str) -> list[Script]:
    """Return scripts whose time is that of the link."""
    scripts = map(load_script, names)
    return [with_clock(script) if "TIME" in script.text else script for script in scripts]


async def open_responses(
    link: Link,
    nursery: trio.Nursery,
    *,
    sealer: Sealer = SEALER,
    local: ResponseStore | None = None,
    max_age: float = 100.0,
    max_bytes: int = 10**6,
) -> RedisResponses:
    """Return the responses of one machine, with a store of its own in memory."""
    scripts = scripts_with_clock("responses", "owners")
    client = await open_client(link, nursery, *scripts)
    local = local or SqliteResponseStore(None, max_age=max_age, max_bytes=10**6, timeout=5.0)
    return RedisResponses(client, sealer, local, max_age=max_age, max_bytes=max_bytes, scripts=scripts)


async def open_conversations(
    link: Link, nursery: trio.Nursery, *, max_age: float = 100.0
) -> RedisConversations:
    """Return the conversations of one machine, with a store of its own in memory."""
    scripts = scripts_with_clock("conversations", "owners")
    client = await open_client(link, nursery, *scripts)
    local = SqliteConversations(None, max_age=max_age, max_bytes=10**6, timeout=5.0)
    return RedisConversations(client, SEALER, local, max_age=max_age, scripts=scripts)


async def open_response_runs(link: Link, nursery: trio.Nursery) -> RedisResponseRuns:
    """Return the response runs of one process."""
    scripts = scripts_with_clock("response_runs", "owners")
    return RedisResponseRuns(await open_client(link, nursery, *scripts), SEALER, scripts=scripts)


async def open_memory(link: Link, nursery: trio.Nursery, *, sealer: Sealer = SEALER) -> SealedMemory:
    """Return what one process shares for a minute after its last use."""
    return SealedMemory(await open_client(link, nursery), sealer, "m", seconds=60.0)


async def open_account_state(
    server: Server,
    nursery: trio.Nursery,
    clock: Callable[[], float] = trio.current_time,
    *,
    wall_clock: Callable[[], float] | None = None,
    policy: Policy = "share",
    link: Link | None = None,
) -> RedisAccountState:
    """Return the account states of one process, connected."""
    script = with_clock(ACCOUNTS)
    subjects = await open_subjects(
        server, nursery, clock, kind="a", policy=policy, link=link, scripts=[script]
    )
    subscriber = Subscriber(subjects.client)
    nursery.start_soon(subscriber.run)
    return SettledAccountState(
        subjects.client, subjects, subscriber, script=script, wall_clock=wall_clock or clock, clock=clock
    )


class SettledAccountState(RedisAccountState):
    """States whose released amounts and slots are on the server at once, and whose rejections do not hold."""

    async def acquire(self, identity, limits, amounts, max_in_flight):
        grant = await super().acquire(identity, limits, amounts, max_in_flight)
        self._limited[identity]._denied = None
        return grant

    async def exchange(self, delta):
        states = await super().exchange(delta)
        await self.settle()
        return states

    def release(self, identity: str) -> None:
        super().release(identity)
        self._limited[identity].flush()

    async def settle(self):
        subjects = self._limited.values()
        while self._client.is_connected and any(each._changed or each._in_flight for each in subjects):
            self._subjects._flush()
            await trio.lowlevel.checkpoint()


class SettledRateLimits(RedisRateLimits):
    """A store whose settled amounts are on the server before anything is reserved anywhere."""

    open: list[SettledRateLimits]

    async def reserve(self, subject: bytes, limits: Amounts, amounts: Amounts) -> RateLimitGrant:
        for store in self.open:
            while not all(each.is_settled for each in store.subjects()):
                for each in store.subjects():
                    each.flush()
                await trio.lowlevel.checkpoint()
        return await super().reserve(subject, limits, amounts)

    def subjects(self):
        return [*self._subjects._by_name.values()]


async def open_rate_limits(
    server: Server, nursery: trio.Nursery, clock: Callable[[], float], stores: list[SettledRateLimits]
) -> SettledRateLimits:
    """Return a store, which settles with the others."""
    store = SettledRateLimits(await open_subjects(server, nursery, clock))
    stores.append(store)
    store.open = stores
    return store


async def open_usage_limiter(server: Server, nursery: trio.Nursery) -> RedisUsageLimiter:
    """Return a limiter with an empty ledger."""
    return RedisUsageLimiter(await open_subjects(server, nursery), FakeLedger())
