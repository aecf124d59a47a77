"""Shared helpers: an app in front of an emulator, in memory, and real HTTP clients for it.

`world()` runs a qproxy app whose upstream is an `Emulator` behind memory streams: no sockets, and Trio's
clock can jump. `h1(app)` and `h2c(app)` serve it with the patched Hypercorn over a memory pair, with real
HTTP bytes.
"""

import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events
import h11
import trio
import trio.testing
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app

from qproxy import http_server
from qproxy.bootstrap.app import build_server
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator
from qproxy.server import Server
from qproxy.server.asgi_client import InProcessClient, in_process
from qproxy.wire.endpoints import ENDPOINTS

MODEL = "qwen3.7-plus"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}


@dataclass
class World:
    """An app, its parts, and the emulator behind it."""

    emulator: Emulator
    server: Server
    app: Any
    client: InProcessClient

    async def post(self, body, path="/v1/chat/completions", headers=()):
        """Return (status, headers, parsed body) of a whole response."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = [(b"content-type", b"application/json"), *headers]
        async with self.client.request("POST", path, headers=fields, body=raw) as response:
            data = await response.read()
        head = {name.decode(): value.decode() for name, value in response.headers}
        return response.status, head, json.loads(data) if data else None

    async def get(self, path, headers=()):
        async with self.client.request("GET", path, headers=headers) as response:
            data = await response.read()
        return response.status, json.loads(data)

    async def stream(self, body):
        """Return (status, text) of a streamed response."""
        raw = json.dumps({**body, "stream": True}).encode()
        fields = [(b"content-type", b"application/json")]
        async with self.client.request("POST", "/v1/chat/completions", headers=fields, body=raw) as response:
            return response.status, (await response.read()).decode()

    def sound(self):
        """Return whether no lease and no connection is in use."""
        statistics = self.server.state.relay.transport.statistics()
        leases = [account.in_flight for account in self.server.state.relay.accounts.accounts]
        return statistics.open == statistics.idle and not any(leases)


async def leftovers(it):
    """Return the counts that a leak would increase: connections, tasks and open files."""
    await trio.testing.wait_all_tasks_blocked()
    tasks, waiting = 0, [task for task in (trio.lowlevel.current_root_task(),) if task]
    while waiting:
        task = waiting.pop()
        tasks += 1
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    statistics = it.server.state.relay.transport.statistics()
    busy = statistics.open - statistics.idle
    return {
        "busy": busy,
        "tasks": tasks - it.emulator.open_connections,
        "files": len(os.listdir("/proc/self/fd")),
        "leases": sum(account.in_flight for account in it.server.state.relay.accounts.accounts),
        "lives": len(it.server.state.in_flight),
        "places": it.server.state.concurrency.in_use,
    }


def frames(text):
    """Return the data of a stream's events."""
    return [frame.removeprefix("data: ") for frame in text.split("\n\n") if frame.startswith("data: ")]


def accounts(*names, **settings):
    return tuple(
        AccountConfig(name, base_url=f"http://{name}.test/v1", key="sk-test-key", **settings)
        for name in names
    )


@asynccontextmanager
async def world(
    *, emulator=None, through=None, functions=(), site=None, backends=None, endpoints=ENDPOINTS, **settings
) -> AsyncIterator[World]:
    """Serve an app in front of an emulator; `settings` are those of `Config`.

    `functions` are Python functions as tools, `site` is a sandbox, `backends` hold shared state;
    `through(connect, host, port)` makes special connections.
    """
    emulator = emulator or Emulator()
    settings.setdefault("accounts", accounts("one"))
    settings.setdefault("probe_interval", 0)  # an emulator gets only the requests of its test
    settings.setdefault("insecure_no_auth", True)  # the connections of `served` have a public address
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            client_end, server_end = trio.testing.memory_stream_pair()
            nursery.start_soon(emulator.handle, server_end)
            return client_end

        connector = connect if through is None else partial(through, connect)
        server = build_server(
            Config(**settings),
            connect=connector,
            tools=functions,
            sandbox=site,
            backends=backends,
            endpoints=endpoints,
        )
        app = server.app()
        async with in_process(app) as client:
            yield World(emulator, server, app, client)
        nursery.cancel_scope.cancel()


class _Socket:
    """The parts of a socket that Hypercorn uses."""

    family = socket.AF_INET

    def getpeername(self):
        return ("127.0.0.1", 1)

    def getsockname(self):
        return ("192.0.2.1", 2)


@asynccontextmanager
async def served(
    app, server_class=http_server.TCPServer, context=None, pair=trio.testing.memory_stream_pair, **config
):
    """Yield the client's end of a connection that Hypercorn serves."""
    http_server.patch_hypercorn()
    settings = HypercornConfig()
    for name, value in config.items():
        setattr(settings, name, value)
    client_end, server_end = pair()
    server_end.socket = _Socket()
    async with trio.open_nursery() as nursery:
        server = server_class(
            wrap_app(app, 2**16, "asgi"), settings, context or WorkerContext(None), {}, server_end
        )
        nursery.start_soon(server.run)
        yield client_end
        nursery.cancel_scope.cancel()


class WebServer(Emulator):
    """A server of web pages, which is no API."""

    async def handle(self, stream):
        head = (
            b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: 28\r\n\r\n"
        )
        while await stream.receive_some(2**16):
            await stream.send_all(head + b"<!DOCTYPE html>\n<p>404</p>\n\n")


@dataclass
class H1Client:
    """An HTTP/1.1 connection."""

    stream: Any
    http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT))
    most: int = 65536
    """The number of bytes per read."""

    async def send(self, method, path, body=b"", headers=(), host="localhost"):
        fields = [("host", host), ("content-length", str(len(body))), *headers]
        data = self.http.send(h11.Request(method=method, target=path, headers=fields))
        data += self.http.send(h11.Data(data=body)) + self.http.send(h11.EndOfMessage())
        await self.stream.send_all(data)

    async def event(self):
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(bytes(await self.stream.receive_some(self.most)))
        return event

    async def response(self):
        """Return (status, body) of the whole response."""
        head = await self.event()
        body = b""
        while isinstance(event := await self.event(), h11.Data):
            body += event.data
        return head.status_code, body

    async def aclose(self):
        await trio.aclose_forcefully(self.stream)


@dataclass
class H2Client:
    """An HTTP/2 connection with prior knowledge."""

    stream: Any
    http: h2.connection.H2Connection = field(
        default_factory=lambda: h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    )
    seen: list = field(default_factory=list)
    acknowledge: bool = True
    """If true, received data reopens the window."""

    async def begin(self):
        self.http.initiate_connection()
        await self.flush()

    async def flush(self):
        await self.stream.send_all(self.http.data_to_send())

    async def send(self, method, path, body=b"", headers=(), end=True):
        stream_id = self.http.get_next_available_stream_id()
        fields = [
            (":method", method),
            (":path", path),
            (":scheme", "http"),
            (":authority", "localhost"),
            *headers,
        ]
        self.http.send_headers(stream_id, fields, end_stream=end and not body)
        if body:
            self.http.send_data(stream_id, body, end_stream=end)
        await self.flush()
        return stream_id

    async def event(self, *kinds):
        """Return the next event of one of these kinds."""
        while True:
            for event in self.seen:
                if isinstance(event, kinds):
                    self.seen.remove(event)
                    return event
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                return None
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                    self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                self.seen.append(event)
            await self.flush()


@asynccontextmanager
async def h1(app, **config):
    async with served(app, **config) as stream:
        yield H1Client(stream)


@asynccontextmanager
async def h2c(app, **config):
    async with served(app, **config) as stream:
        client = H2Client(stream)
        await client.begin()
        yield client
