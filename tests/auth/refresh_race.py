"""Refresh one account in several processes at once, against an identity server that detects reuse; print
counts.

    python -m tests.auth.refresh_race --processes 8 --tokens 5

The account's tokens last less than half a second, so every process finds them expired again and again, at the
same moments. The server runs in this process; the others are forked from it, each with its own refresher,
locks and sockets.

A process races until it has held a number of different tokens, without a time limit: the load of the machine
decides the duration, not the result. Each process reads the file once more only after all have finished, when
no process changes it any more.
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
MESSAGE_BYTES = 100
"""Bytes of a message to a child: all children read from one pipe, each its own part."""


async def race(origin: str, path: Path, enough: int) -> dict[str, Any]:
    """Request tokens in one process until it has held enough different ones."""
    provider = IdentityProvider(
        f"{origin}/api/v1/oauth2/device/code", f"{origin}/api/v1/oauth2/token", CLIENT_ID, "openid"
    )
    refresher = TokenRefresher(
        TokenState("me", 1200.0),
        FileCredentials(CredentialFile(path), FileLock(path)),
        IdentityClient(UpstreamTransport(transport_limits()), provider, timeout=30.0),
    )
    source = OAuthSource(
        refresher._token_state,
        refresher,
        hosts=(origin,),
        fallback_url=origin,
        interval=5.0,
        round_timeout=70.0,
    )
    tokens: set[str | None] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        while len(tokens) < enough:
            with suppress(UpstreamError):  # on a busy machine the token may expire before it arrives
                tokens.add((await source.credential()).token)
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return {"tokens": len(tokens), "refreshes": source.status().refreshes}


async def read_token(path: Path) -> str | None:
    """Return the token that a process finds in the file after the race."""
    refresher = TokenRefresher(
        TokenState("me", 0.0),
        FileCredentials(CredentialFile(path), FileLock(path)),
        IdentityClient(UpstreamTransport(transport_limits()), IdentityProvider("", "", "", ""), timeout=30.0),
    )
    await refresher._reload_stored()
    tokens = refresher._token_state.tokens
    return tokens.access_token if tokens else None


def fork_child(ready: int, path: Path, enough: int) -> int:
    """Fork a process that races once it receives the address, and reads the file once it receives the second
    message.

    Returns the read end of the pipe on which its two reports arrive.
    """
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        return reader
    try:
        origin = os.read(ready, MESSAGE_BYTES).decode().strip()
        os.write(writer, json.dumps(trio.run(race, origin, path, enough)).encode())
        os.read(ready, MESSAGE_BYTES)
        os.write(writer, json.dumps(trio.run(read_token, path)).encode())
    finally:
        os._exit(0)


async def receive_reports(pipes: list[int]) -> list[Any]:
    """Return the next report of each process."""
    return [json.loads(await trio.to_thread.run_sync(os.read, pipe, 4096)) for pipe in pipes]


async def serve(pipes: list[int], start_pipe: int, path: Path) -> dict[str, Any]:
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
        os.write(start_pipe, origin.ljust(MESSAGE_BYTES).encode() * len(pipes))
        reports = await receive_reports(pipes)
        os.write(start_pipe, b"look".ljust(MESSAGE_BYTES) * len(pipes))
        last_tokens = await receive_reports(pipes)
        nursery.cancel_scope.cancel()
    found = CredentialFile(path).load()
    assert found is not None
    return {
        "processes": len(pipes),
        "refreshes": identity.issued_count - 1,
        "reused": identity.reused_count,
        "by_process": [report["refreshes"] for report in reports],
        "with_the_newest": sum(last_token == found.access_token for last_token in last_tokens),
    }


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "me" / "oauth_creds.json"
        ready, start_pipe = os.pipe()
        pipes = [fork_child(ready, path, options.tokens) for _ in range(options.processes)]
        return trio.run(serve, pipes, start_pipe, path)


if __name__ == "__main__":
    print(json.dumps(main()))
