"""Clients that leave: the ways to do it, the moments at which they do, and what must hold right afterwards.

A new kind of request adds a row to `MOMENTS` (or makes a `Moment` of its own) and is left in all ways:

    async with real(app) as port:
        await left(it, port, WAYS[name], moment)
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
    """What the client has asked, what the server behind has said so far, and what the client has had of
    it."""

    reply: ScriptedReply
    stream: bool
    begun: bool = False
    """The client has had a piece of the answer."""
    body: dict[str, Any] = field(default_factory=lambda: HELLO)
    path: str = "/v1/chat/completions"


MOMENTS = {
    "before the head": Moment(ScriptedReply((PauseStep(1000),)), stream=True),
    "before the first event": Moment(slow(b": wait\n\n"), stream=True),
    "in mid-stream": Moment(slow(BEGUN), stream=True, begun=True),
    "whole answer": Moment(slow(BEGUN), stream=False),
    "a batch of embeddings": Moment(
        ScriptedReply((PauseStep(1000),)),
        stream=False,
        path="/v1/embeddings",
        body={"model": "text-embedding-v4", "input": ["a", "b"]},
    ),
}
Ask = Callable[[trio.abc.HalfCloseableStream, Moment], Awaitable[Callable[[], Awaitable[None]]]]
"""Ask, and come back with how to leave."""


async def _over_h1(half, stream, moment):
    client = H1Client(stream)
    body = json.dumps({**moment.body, "stream": moment.stream}).encode()
    await client.send("POST", moment.path, body, [JSON_HEADER])
    if moment.begun:
        assert (await client.event()).status_code == 200
        assert isinstance(await client.event(), h11.Data)
    return stream.send_eof if half else client.aclose


async def _over_h2(reset, stream, moment):
    client = H2Client(stream)
    await client.begin()
    body = json.dumps({**moment.body, "stream": moment.stream}).encode()
    number = await client.send("POST", moment.path, body, [JSON_HEADER])
    if moment.begun:
        await client.event(h2.events.DataReceived)

    async def leave():
        if reset:
            client.http.reset_stream(number)
            await client.flush()
        else:
            await trio.aclose_forcefully(stream)

    return leave


WAYS: dict[str, Ask] = {
    "HTTP/1.1, closed": partial(_over_h1, False),
    "HTTP/1.1, half closed": partial(_over_h1, True),
    "HTTP/2, reset": partial(_over_h2, True),
    "HTTP/2, lost": partial(_over_h2, False),
}


async def until(holds):
    """Return when it holds: what is waited for has no event of its own."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.001)


async def left(it, stream, ask, moment, caplog, *, within):
    """Leave at a moment; the upstream is closed in time, everything is given back, and the log has no
    error."""
    it.emulator.script(moment.reply)
    seen = len(it.emulator.requests)
    leave = await ask(stream, moment)
    await until(lambda: len(it.emulator.requests) > seen)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert not it.sound()
    with trio.fail_after(within):
        await leave()
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
        await until(
            lambda: http_server.TCPServer.connections == 0
        )  # the client's own socket is given back too


@asynccontextmanager
async def real_world():
    """A world whose client's side and upstream's side are both real sockets on loopback; yields it and a
    connector."""
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
