"""Measure what sharing the accounts' state costs: python scripts/bench_accounts.py

A lease of an account without a pace is the unit. Beside it: a paced account in one process, and with a shared
file; and how long the event loop is held up while the file is exchanged once a second.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from qproxy.accounts import Account, AccountPool
from qproxy.accounts.rate_limit import AccountRateLimiter
from qproxy.accounts.sync import AccountStateSync
from qproxy.auth import StaticKey
from qproxy.backends.local.account_state import SqliteAccountState

ROUNDS = 2000
PACE = 10**9


def accounts(board: SqliteAccountState | None, pace: AccountRateLimiter) -> AccountPool:
    ten = [Account(f"a{n}", StaticKey("http://x"), identity=f"id{n}", rate_limiter=pace) for n in range(10)]
    return AccountPool(
        ten, sharing=AccountStateSync(board) if board else None, queue_timeout=1.0, max_queue_size=100
    )


async def leases(all_of_them: AccountPool) -> float:
    """The median time of a lease, in microseconds."""
    times = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        async with all_of_them.lease("m", affinity=str(number)):
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6


async def held_up(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """How long some work takes, and how long it lets nobody else run at worst, in microseconds (medians of
    200)."""
    took, gaps = [], []

    async def ticks(done: trio.Event) -> None:
        worst, last = 0.0, time.perf_counter()
        while not done.is_set():
            await trio.lowlevel.checkpoint()
            now = time.perf_counter()
            worst, last = max(worst, now - last), now
        gaps.append(worst)

    for _ in range(200):
        async with trio.open_nursery() as nursery:
            done = trio.Event()
            nursery.start_soon(ticks, done)
            begun = time.perf_counter()
            await work()
            took.append(time.perf_counter() - begun)
            done.set()
    return statistics.median(took) * 1e6, statistics.median(gaps) * 1e6


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        board = SqliteAccountState(Path(directory) / "accounts.db")
        unit = await leases(accounts(None, AccountRateLimiter()))
        print(f"a lease without a pace: {unit:.0f} us, the unit")
        print(
            "with a pace, one process: "
            f"{await leases(accounts(None, AccountRateLimiter(PACE, PACE))) / unit:.1f} times that"
        )
        shared = accounts(board, AccountRateLimiter(PACE, PACE))
        print(f"with a pace and a shared file: {await leases(shared) / unit:.1f} times that")

        async def exchange() -> None:
            for account in shared.accounts:
                account.requests += 1
            await shared.start_sync()

        took, gap = await held_up(exchange)
        print(f"an exchange of ten accounts: {took / unit:.0f} times that, in a thread")
        print(f"the longest that the event loop waits for it: {gap / unit:.1f} times that")
        await board.aclose()


if __name__ == "__main__":
    trio.run(main)
