"""Processes that refresh one account at once, against an identity server that punishes reuse: run me, I print counts.

    python -m tests.auth.racing --processes 8 --seconds 3

The account's tokens last less than half a second, so every process finds them ended again and again, at the same
moments.  The server runs in this process; the others are forked from it, each with its own keeper, locks and sockets.
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
from qproxy.auth.files import CredentialFile
from qproxy.auth.holding import Holding
from qproxy.auth.identity import Identity
from qproxy.auth.keeper import Keeper
from qproxy.auth.locks import Lock
from qproxy.emulator import Emulator
from qproxy.emulator.identity import CLIENT_ID, Family
from qproxy.transport import Transport
from qproxy.wire.errors import UpstreamError
from qproxy.wire.oauth import Provider
from qproxy.wire.tokens import Tokens

LIFETIME = 0.4


async def race(origin: str, path: Path, seconds: float) -> dict[str, Any]:
    """One process: ask for a token for some time."""
    provider = Provider(
        f"{origin}/api/v1/oauth2/device/code", f"{origin}/api/v1/oauth2/token", CLIENT_ID, "openid"
    )
    keeper = Keeper(Holding("me", 1200.0), CredentialFile(path), Lock(path), Identity(Transport(), provider))
    source = OAuthSource(keeper._holding, keeper, hosts=(origin,), fallback_url=origin)
    tokens: set[str | None] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.keep)
        with trio.move_on_after(seconds):
            while True:
                with suppress(UpstreamError):  # the machine is busy, and the token ended on its way here
                    tokens.add((await source.credential()).token)
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return {"tokens": len(tokens), "refreshes": source.status().refreshes}


async def last(path: Path) -> str | None:
    """What a process that looks once more holds, long after the race."""
    keeper = Keeper(
        Holding("me", 0.0), CredentialFile(path), Lock(path), Identity(Transport(), Provider("", "", "", ""))
    )
    await keeper._look()
    tokens = keeper._holding.tokens
    return tokens.access_token if tokens else None


def child(ready: int, path: Path, seconds: float) -> int:
    """Fork a process that races once it is told the address; the end of a pipe from which its report comes."""
    mine, theirs = os.pipe()
    if os.fork():
        os.close(theirs)
        return mine
    origin = os.read(ready, 100).decode().strip()
    found = trio.run(race, origin, path, seconds)
    found["last"] = trio.run(last, path)
    os.write(theirs, json.dumps(found).encode())
    os._exit(0)


async def serve(processes: int, seconds: float, pipes: list[int], told: int, path: Path) -> dict[str, Any]:
    """Serve the identity server until every process has reported."""
    emulator = Emulator()
    identity = emulator.identity
    identity.token_lifetime = LIFETIME
    identity.clock = time.monotonic
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        origin = emulator.base_url.removesuffix("/compatible-mode/v1")
        first = identity.issue(Family(), origin)
        CredentialFile(path).save(Tokens(first["access_token"], first["refresh_token"], "Bearer", 1, origin))
        os.write(told, (origin.ljust(100)).encode() * processes)
        reports = [json.loads(await trio.to_thread.run_sync(os.read, pipe, 4096)) for pipe in pipes]
        nursery.cancel_scope.cancel()
    found = CredentialFile(path).read()
    assert found is not None
    return {
        "processes": processes,
        "refreshes": identity.issued - 1,
        "reused": identity.reused,
        "by_process": [report["refreshes"] for report in reports],
        "with_the_newest": sum(report["last"] == found.access_token for report in reports),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "me" / "oauth_creds.json"
        ready, told = os.pipe()
        pipes = [child(ready, path, chosen.seconds) for _ in range(chosen.processes)]
        return trio.run(serve, chosen.processes, chosen.seconds, pipes, told, path)


if __name__ == "__main__":
    print(json.dumps(main()))
