"""Strict cancellation: a disconnect, at any moment and in any way, frees everything held for the request."""

import json

import pytest
import trio

from qproxy import http_server
from tests.disconnects import BEGUN, MOMENTS, WAYS, disconnect_and_check, real_world, slow, until
from tests.helpers import HELLO, H1Client, served, world

EVERY = [
    pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS),
    pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS),
]


@EVERY[0]
@EVERY[1]
async def test_a_disconnect(moment, ask, caplog, autojump_clock, monkeypatch):
    """The upstream closes within 100 ms, lease and slots are released, and no error is logged."""
    monkeypatch.setattr(http_server.TCPServer, "connections", 0)
    async with world() as it, served(it.app) as stream:
        await disconnect_and_check(it, stream, ask, moment, caplog, within=0.1)


@EVERY[0]
@EVERY[1]
async def test_a_disconnect_over_real_sockets(moment, ask, caplog, monkeypatch):
    """The same holds over real sockets (with time for a busy machine)."""
    monkeypatch.setattr(http_server.TCPServer, "connections", 0)
    async with real_world() as (it, connect):
        await disconnect_and_check(it, await connect(), ask, moment, caplog, within=2)


async def test_a_disconnect_in_process(autojump_clock):
    """An embedding program that closes a response early frees the upstream."""
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


async def test_clients_that_disconnect_at_once():
    """A client that sends and disconnects at once leaves no work, in any order of the server's tasks."""
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
