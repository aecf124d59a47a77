"""Strict cancellation: whoever leaves, however and whenever, frees everything that was held for the request."""

import json

import pytest
import trio

from qproxy import hypercorn as mended
from tests.helpers import HELLO, served, world
from tests.leaving import BEGUN, MOMENTS, WAYS, left, real_world, slow

EVERY = [
    pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS),
    pytest.mark.parametrize("ask", WAYS.values(), ids=WAYS),
]


@EVERY[0]
@EVERY[1]
async def test_leaving(moment, ask, caplog, autojump_clock, monkeypatch):
    """The upstream is closed within 100 ms, lease and places are back, and nothing is an error."""
    monkeypatch.setattr(mended.Server, "connections", 0)
    async with world() as it, served(it.app) as stream:
        await left(it, stream, ask, moment, caplog, within=0.1)


@EVERY[0]
@EVERY[1]
async def test_leaving_over_real_sockets(moment, ask, caplog, monkeypatch):
    """The same with the kernel in between (and time for a busy machine)."""
    monkeypatch.setattr(mended.Server, "connections", 0)
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
            await seen.left.wait()
        assert it.sound()
