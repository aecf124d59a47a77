"""Strict cancellation: whoever leaves, however and whenever, frees everything that was held for the
request."""

import json

import pytest
import trio

from qproxy import http_server
from tests.disconnects import BEGUN, MOMENTS, WAYS, left, real_world, slow, until
from tests.helpers import HELLO, H1Client, served, world

EVERY = [
    pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS),
    pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS),
]


@EVERY[0]
@EVERY[1]
async def test_leaving(moment, ask, caplog, autojump_clock, monkeypatch):
    """The upstream is closed within 100 ms, lease and places are back, and nothing is an error."""
    monkeypatch.setattr(http_server.TCPServer, "connections", 0)
    async with world() as it, served(it.app) as stream:
        await left(it, stream, ask, moment, caplog, within=0.1)


@EVERY[0]
@EVERY[1]
async def test_leaving_over_real_sockets(moment, ask, caplog, monkeypatch):
    """The same with the kernel in between (and time for a busy machine)."""
    monkeypatch.setattr(http_server.TCPServer, "connections", 0)
    async with real_world() as (it, connect):
        await left(it, await connect(), ask, moment, caplog, within=2)


async def test_leaving_in_process(autojump_clock):
    """An embedding program that leaves a response early frees the upstream."""
    async with world() as it:
        it.emulator.script(slow(BEGUN))
        raw = json.dumps({**HELLO, "stream": True}).encode()
        async with it.client.request(
            "POST", "/v1/chat/completions", headers=[(b"content-type", b"application/json")], body=raw
        ) as response:
            assert await response.receive()
        (seen,) = it.emulator.requests
        with trio.fail_after(0.1):
            await seen.disconnected.wait()
        assert it.sound()


async def test_clients_that_leave_at_once():
    """Whoever asks and leaves in one breath has nothing done for it, however its server's tasks take
    turns."""
    body = json.dumps({**HELLO, "model": "fault-silent"}).encode()
    async with real_world() as (it, dial):
        for _ in range(60):
            stream = await dial()
            await H1Client(stream).send(
                "POST", "/v1/chat/completions", body, [("content-type", "application/json")]
            )
            await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            await until(lambda: not it.server.state.in_flight and not http_server.TCPServer.connections)
        assert it.sound()
