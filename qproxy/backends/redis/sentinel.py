"""The primary's address, as servers of Sentinel know it.

All are asked at once. One that is cut off from the others may name a primary of the past, so the first
address that a majority names is used, or the one that most name after half of the time. Whether it is a
primary is asked in the handshake; after the end of a connection it begins here again.
"""

from __future__ import annotations

import ssl
from collections import Counter
from typing import Any

import trio

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.connection import query
from qproxy.backends.redis.errors import RedisError, RedisReplyError, RedisUnavailable


async def open_primary(address: Address, context: ssl.SSLContext | None, timeout: float) -> trio.abc.Stream:
    """Return a stream to the primary. Raises OSError, trio.BrokenResourceError or RedisUnavailable."""
    host, port = await find_primary(address, context, timeout)
    return await address.at(host, port).open(context)


async def find_primary(address: Address, context: ssl.SSLContext | None, timeout: float) -> tuple[str, int]:
    """Return the host and port of the primary. Raises RedisUnavailable if no Sentinel names it."""
    votes: Counter[tuple[str, int]] = Counter()
    failures: list[str] = []
    with trio.move_on_after(timeout / 2):
        async with trio.open_nursery() as nursery:

            async def ask(host: str, port: int) -> None:
                try:
                    votes[await _ask(address.at(host, port), address.service, context, timeout)] += 1
                except (OSError, trio.BrokenResourceError, RedisError) as error:
                    failures.append(f"{host}:{port}: {error}")
                if votes and 2 * max(votes.values()) > len(address.hosts):
                    nursery.cancel_scope.cancel()

            for host, port in address.hosts:
                nursery.start_soon(ask, host, port)
    if not votes:
        raise RedisUnavailable(f"no Sentinel names a primary: {'; '.join(failures) or 'no reply'}")
    return votes.most_common(1)[0][0]


async def _ask(
    sentinel: Address, service: str, context: ssl.SSLContext | None, timeout: float
) -> tuple[str, int]:
    """Return what one Sentinel knows. Raises OSError, trio.BrokenResourceError or a RedisError."""
    command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    login = ("AUTH", sentinel.user or "default", sentinel.password)
    try:
        commands = [login, command] if sentinel.password else [command]
        reply: Any = await query(await sentinel.open(context), commands, timeout=timeout)
    except RedisReplyError:
        if not sentinel.password:
            raise
        # Sentinel may have no password where the server has one.
        reply = await query(await sentinel.open(context), [command], timeout=timeout)
    if reply is None:
        raise RedisUnavailable(f"it knows no primary {service!r}")
    return reply[0].decode(), int(reply[1])
