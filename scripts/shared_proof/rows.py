"""The rows of the table, and what the cases have in common."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import httpx2
import trio
from installation import Installation
from traffic import Hammer

LIMIT = 300
TOLERANCE = 1.01
MINUTE = 60.0
MODEL = "qwen-plus"
REJECTED = ("429 rate_limit_exceeded",)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    expected: str
    counted: str
    holds: bool


Rows = AsyncIterator[Row]


def exactly(what: str, expected: object, counted: object) -> Row:
    """Return a row of two values that must be equal."""
    return Row(f"{what}: {expected}", str(counted), expected == counted)


async def wait_for(holds: Callable[[], Awaitable[bool]], seconds: float) -> float | None:
    """Return the seconds until something holds; None if it never does."""
    began = trio.current_time()
    while not await holds():
        if trio.current_time() > began + seconds:
            return None
        await trio.sleep(0.05)
    return trio.current_time() - began


async def statuses(it: Installation, key: str, path: str = "/v1/models") -> list[int]:
    """Return what each home answers to a key."""
    async with httpx2.AsyncClient(timeout=10) as client:
        head = {"authorization": f"Bearer {key}"}
        return [(await client.get(home.url + path, headers=head)).status_code for home in it.homes]


async def known_key(it: Installation, name: str, *limits: str) -> str:
    """Return a new key that both homes accept."""
    key = await it.one.create_key(name, *limits)

    async def accepted() -> bool:
        return await statuses(it, key) == [200, 200]

    assert await wait_for(accepted, 10) is not None, "the homes do not accept a new key"
    return key


async def limited(
    it: Installation,
    name: str,
    seconds: float,
    fault: Callable[[], Awaitable[object]] | None = None,
    *,
    losses: bool = False,
    least: float = 0.99,
) -> Rows:
    """Send requests of one limited key, with a fault in their middle."""
    hammer = Hammer(it, await known_key(it, name, "--rpm", str(LIMIT)))
    age = trio.current_time() - it.server_started
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hammer.run, seconds)
        if fault is not None:
            await trio.sleep(seconds / 6)
            await fault()
    most = LIMIT + LIMIT / 60 * hammer.seconds
    begins_with = LIMIT * min(1.0, age / MINUTE)  # a young server gives what a minute has refilled since
    fewest = least * (begins_with + LIMIT / 60 * hammer.seconds)
    granted, rejected = hammer.granted, sum(hammer.outcomes[code] for code in REJECTED)
    expected = f"granted {fewest:.0f} (or all) to {TOLERANCE * most:.0f} in {hammer.seconds:.1f} s"
    holds = granted <= TOLERANCE * most and (granted >= fewest or not rejected)
    yield Row(expected, f"{granted}, {rejected} rejected", holds)
    allowed = {"200", *REJECTED, *(["no answer"] if losses else [])}
    others = {code: count for code, count in hammer.outcomes.items() if code not in allowed}
    yield exactly("other outcomes than 200 and 429", {}, others)
