"""Clients that disconnect: the ways and moments, and the conditions that must hold afterwards.

A new kind of request adds a row to `MOMENTS` (or its own `Moment`) and is tested in all ways with
`disconnect_and_check`.
"""

import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h2.events
import h11
import trio
import trio.testing
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from qproxy import http_server
from qproxy.emulator import Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from tests.helpers import HELLO, H1Client, H2Client, world

JSON_HEADER = ("content-type", "application/json")
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})


def slow(*pieces):
    return ScriptedReply((*pieces, PauseStep(1000), DONE))


@dataclass(frozen=True)
class Moment:
    """A client's request, the upstream's reply so far, and the client's received part."""

    reply: ScriptedReply
    stream: bool
    has_data: bool = False
    """The client has received a part of the response."""
    body: dict[str, Any] = field(default_factory=lambda: HELLO)
    path: str = "/v1/chat/completions"


MOMENTS = {
    "before the head": Moment(ScriptedReply((PauseStep(1000),)), stream=True),
    "before the first event": Moment(slow(b": wait\n\n"), stream=True),
    "in mid-stream": Moment(slow(BEGUN), stream=True, has_data=True),
    "whole answer": Moment(slow(BEGUN), stream=False),
    "a batch of embeddings": Moment(
        ScriptedReply((PauseStep(1000),)),
        stream=False,
        path="/v1/embeddings",
        body={"model": "text-embedding-v4", "input": ["a", "b"]},
    ),
}
Ask = Callable[[trio.abc.HalfCloseableStream, Moment], Awaitable[Callable[[], Awaitable[None]]]]
"""A function that sends a request and returns the function that disconnects."""


async def _over_h1(half, stream, moment):
    client = H1Client(stream)
    body = json.dumps({**moment.body, "stream": moment.stream}).encode()
    await client.send("POST", moment.path, body, [JSON_HEADER])
    if moment.has_data:
        assert (await client.event()).status_code == 200
        assert isinstance(await client.event(), h11.Data)
    return stream.send_eof if half else client.aclose


async def _over_h2(reset, stream, moment):
    client = H2Client(stream)
    await client.begin()
    body = json.dumps({**moment.body, "stream": moment.stream}).encode()
    number = await client.send("POST", moment.path, body, [JSON_HEADER])
    if moment.has_data:
        await client.event(h2.events.DataReceived)

    async def disconnect():
        if reset:
            client.http.reset_stream(number)
            await client.flush()
        else:
            await trio.aclose_forcefully(stream)

    return disconnect


WAYS: dict[str, Ask] = {
    "HTTP/1.1, closed": partial(_over_h1, False),
    "HTTP/1.1, half closed": partial(_over_h1, True),
    "HTTP/2, reset": partial(_over_h2, True),
    "HTTP/2, lost": partial(_over_h2, False),
}


async def until(holds):
    """Wait until `holds()` is true, for conditions without an event."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.001)


async def disconnect_and_check(it, stream, ask, moment, caplog, *, within):
    """Disconnect at a moment; the upstream closes in time, everything is released, and no error is logged."""
    it.emulator.script(moment.reply)
    seen = len(it.emulator.requests)
    disconnect = await ask(stream, moment)
    await until(lambda: len(it.emulator.requests) > seen)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not it.sound()
    with trio.fail_after(within):
        await disconnect()
        await it.emulator.requests[-1].disconnected.wait()
        await until(
            lambda: (
                it.sound() and not len(it.server.state.in_flight) and not it.server.state.concurrency.in_use
            )
        )
    assert it.server.state.counters.outcomes["client_disconnected"] == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    await trio.aclose_forcefully(stream)
    with trio.fail_after(within):
        await until(lambda: http_server.TCPServer.connections == 0)  # the client's own socket is released too


@asynccontextmanager
async def real_world():
    """Yield a world with real sockets on both sides on loopback, and a connector."""
    http_server.patch_hypercorn()
    emulator = Emulator()

    async def upstream(in_memory, host, port):
        return await trio.open_tcp_stream("127.0.0.1", emulator.port)

    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        async with world(emulator=emulator, through=upstream) as it:
            app = wrap_app(it.app, 2**16, "asgi")

            async def serve(stream):
                await http_server.TCPServer(app, HypercornConfig(), WorkerContext(None), {}, stream).run()

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            yield it, partial(trio.open_tcp_stream, *listeners[0].socket.getsockname())
        nursery.cancel_scope.cancel()
