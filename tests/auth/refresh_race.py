"""Processes that refresh one account at once, against an identity server that punishes reuse: run me, I print
counts.

    python -m tests.auth.refresh_race --processes 8 --tokens 5

The account's tokens last less than half a second, so every process finds them ended again and again, at the
same moments. The server runs in this process; the others are forked from it, each with its own keeper, locks
and sockets.

A process races until it has held so many tokens, and no time is set for that: how busy the machine is decides
how long it takes, not what comes out. Only when all have finished does each look at the file: nobody changes
it any more.
"""

import argparse
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from qproxy.auth import OAuthSource
from qproxy.auth.identity_client import IdentityClient
from qproxy.auth.refresher import TokenRefresher
from qproxy.auth.token_state import TokenState
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.backends.local.credential_lock import FileLock
from qproxy.backends.local.credentials import FileCredentials
from qproxy.emulator import Emulator
from qproxy.emulator.identity import CLIENT_ID, TokenFamily
from qproxy.transport import UpstreamTransport
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.errors import UpstreamError
from qproxy.wire.oauth import IdentityProvider
from tests.defaults import transport_limits

LIFETIME = 0.4
WORD = 100
"""Bytes of what a process is told: all read from one pipe, each its own part."""


async def race(origin: str, path: Path, enough: int) -> dict[str, Any]:
    """One process: ask for a token until there have been enough different ones."""
    provider = IdentityProvider(
        f"{origin}/api/v1/oauth2/device/code", f"{origin}/api/v1/oauth2/token", CLIENT_ID, "openid"
    )
    keeper = TokenRefresher(
        TokenState("me", 1200.0),
        FileCredentials(CredentialFile(path), FileLock(path)),
        IdentityClient(UpstreamTransport(transport_limits()), provider, timeout=30.0),
    )
    source = OAuthSource(
        keeper._token_state, keeper, hosts=(origin,), fallback_url=origin, interval=5.0, round_timeout=70.0
    )
    tokens: set[str | None] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        while len(tokens) < enough:
            with suppress(UpstreamError):  # the machine is busy, and the token ended on its way here
                tokens.add((await source.credential()).token)
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return {"tokens": len(tokens), "refreshes": source.status().refreshes}


async def last(path: Path) -> str | None:
    """What a process that looks once more holds, long after the race."""
    keeper = TokenRefresher(
        TokenState("me", 0.0),
        FileCredentials(CredentialFile(path), FileLock(path)),
        IdentityClient(UpstreamTransport(transport_limits()), IdentityProvider("", "", "", ""), timeout=30.0),
    )
    await keeper._reload_stored()
    tokens = keeper._token_state.tokens
    return tokens.access_token if tokens else None


def child(ready: int, path: Path, enough: int) -> int:
    """Fork a process that races once it is told the address, and looks once it is told that all have
    finished.

    Returns the end of a pipe from which its two reports come.
    """
    mine, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        return mine
    try:
        origin = os.read(ready, WORD).decode().strip()
        os.write(theirs, json.dumps(trio.run(race, origin, path, enough)).encode())
        os.read(ready, WORD)
        os.write(theirs, json.dumps(trio.run(last, path)).encode())
    finally:
        os._exit(0)


async def heard(pipes: list[int]) -> list[Any]:
    """What each process reports next."""
    return [json.loads(await trio.to_thread.run_sync(os.read, pipe, 4096)) for pipe in pipes]


async def serve(pipes: list[int], told: int, path: Path) -> dict[str, Any]:
    """Serve the identity server until every process has reported."""
    emulator = Emulator()
    identity = emulator.identity
    identity.token_lifetime = LIFETIME
    identity.clock = time.monotonic
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        origin = emulator.base_url.removesuffix("/compatible-mode/v1")
        first = identity.issue(TokenFamily(), origin)
        CredentialFile(path).save(
            TokenSet(first["access_token"], first["refresh_token"], "Bearer", 1, origin)
        )
        os.write(told, origin.ljust(WORD).encode() * len(pipes))
        reports = await heard(pipes)
        os.write(told, b"look".ljust(WORD) * len(pipes))
        looks = await heard(pipes)
        nursery.cancel_scope.cancel()
    found = CredentialFile(path).load()
    assert found is not None
    return {
        "processes": len(pipes),
        "refreshes": identity.issued_count - 1,
        "reused": identity.reused_count,
        "by_process": [report["refreshes"] for report in reports],
        "with_the_newest": sum(look == found.access_token for look in looks),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "me" / "oauth_creds.json"
        ready, told = os.pipe()
        pipes = [child(ready, path, chosen.tokens) for _ in range(chosen.processes)]
        return trio.run(serve, pipes, told, path)


if __name__ == "__main__":
    print(json.dumps(main()))
