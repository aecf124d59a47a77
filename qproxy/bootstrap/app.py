"""A server from a `Config`: for `qproxy serve`, for other ASGI servers, and within a Trio program.

build_server(config) the server and all its parts create_app(config) the ASGI app serve(config) within a Trio
program: `await nursery.start(qproxy.serve, config)` returns the bound URLs
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from qproxy import http_server
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.factory import Backends
from qproxy.bootstrap.state import build_state
from qproxy.bootstrap.tools import ToolLike
from qproxy.config import Config, load
from qproxy.dashboard import DashboardRoutes
from qproxy.sandbox import SystemSandbox
from qproxy.server import App, Server
from qproxy.transport import ConnectFunction
from qproxy.wire.endpoints import ENDPOINTS, Endpoint


def build_server(
    config: Config,
    *,
    connect: ConnectFunction = trio.open_tcp_stream,
    tools: Sequence[ToolLike] = (),
    sandbox: SystemSandbox | None = None,
    workers_directory: Path | None = None,
    backends: Backends | None = None,
    endpoints: Sequence[Endpoint] = ENDPOINTS,
) -> Server:
    """Build a server.

    `connect(host, port)` opens streams to upstreams; `tools` are functions of the program that models may
    call; `workers_directory` holds the sockets of the other workers at the same address; `backends` store the
    shared state, by default those of the settings; `endpoints` are the APIs that generate text.
    """
    state = build_state(
        config,
        connect=connect,
        tools=tools,
        sandbox=sandbox,
        workers_directory=workers_directory,
        backends=backends,
        endpoints=endpoints,
    )
    return Server(state, [DashboardRoutes])


def create_app(config: Config | None = None, *, tools: Sequence[ToolLike] = ()) -> App:
    """Return the Quart-Trio app; without a config, from qproxy.toml and the environment. Raises ConfigError.

    `tools` are functions of the program that models may call. Routes added to the app require an API key,
    once there are keys.
    """
    config = config or load()
    config.for_app().check(has_api_keys)
    return build_server(config, tools=tools).app()


async def serve(
    config: Config,
    *,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    server: Server | None = None,
    tools: Sequence[ToolLike] = (),
    listener: int | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown_trigger` returns or the caller cancels; reports the bound URLs.

    `tools` are functions of the program that models may call; `listener` is the descriptor of a listening
    socket.
    """
    config.check(has_api_keys)
    server = server or build_server(config, tools=tools)
    try:
        await http_server.serve(
            server.app(),
            host=config.host,
            port=config.port,
            listener=listener,
            certfile=config.certfile,
            keyfile=config.keyfile,
            shutdown_trigger=shutdown_trigger,
            task_status=task_status,
        )
    finally:  # cancellation skips the app's own shutdown
        with trio.CancelScope(shield=True):  # closing idle sockets cannot block; the store has its time limit
            await server.aclose()
