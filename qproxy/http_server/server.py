"""Patch Hypercorn in this process, and serve with it.

`patch_hypercorn` is the only place where Hypercorn's names are replaced.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import hypercorn.protocol
import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.trio
import hypercorn.trio.run
import trio
from hypercorn.config import Config

from qproxy.http_server.h2 import H2Protocol, StreamBuffer
from qproxy.http_server.h11 import H11Protocol
from qproxy.http_server.tcp_server import TCPServer
from qproxy.http_server.worker import install_worker
from qproxy.http_server.ws_stream import WSStream
from qproxy.system.listener import bound_socket

PATCHED_VERSION = "0.18"
BACKLOG = 2048
log = logging.getLogger("qproxy.http_server")


def patch_hypercorn() -> None:
    """Patch Hypercorn in this process. Idempotent. Another minor version is left unpatched, with a
    warning."""
    if not version("hypercorn").startswith(PATCHED_VERSION + "."):
        log.warning(
            "unsupported Hypercorn version %s, not patched (supported: %s)",
            version("hypercorn"),
            PATCHED_VERSION,
        )
        return
    install_worker()
    setattr(hypercorn.trio.run, "TCPServer", TCPServer)  # noqa: B010 - typed modules do not let classes be replaced
    setattr(hypercorn.protocol, "H11Protocol", H11Protocol)  # noqa: B010
    setattr(hypercorn.protocol, "H2Protocol", H2Protocol)  # noqa: B010
    setattr(hypercorn.protocol.h2, "StreamBuffer", StreamBuffer)  # noqa: B010
    setattr(hypercorn.protocol.h11, "WSStream", WSStream)  # noqa: B010
    setattr(hypercorn.protocol.h2, "WSStream", WSStream)  # noqa: B010


class _Config(Config):
    """Hypercorn's settings for one address, whose errors name it."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._address = host, port

    def _create_sockets(self, binds: list[str], type_: int = socket.SOCK_STREAM) -> list[socket.socket]:
        if binds != self.bind or binds[0].startswith("fd://"):
            return super()._create_sockets(binds, type_)
        bound = bound_socket(*self._address)
        bound.setblocking(False)
        return [bound]


async def serve(
    app: Any,
    *,
    host: str,
    port: int,
    certfile: str | None,
    keyfile: str | None,
    listener: int | None = None,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI app over HTTP/1.1 and HTTP/2 (h2c with prior knowledge; ALPN with a certificate).

    Reports the bound URLs. `listener`: the descriptor of a listening socket, instead of an address. When
    `shutdown_trigger` returns, no new connection is accepted and requests in flight may complete. The limits
    are those that the app sets in its lifespan (`HttpServerLimits.apply`).
    """
    patch_hypercorn()
    config = _Config(host, port)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    config.bind = [address if listener is None else f"fd://{listener}"]
    config.certfile, config.keyfile = certfile, keyfile
    config.backlog = BACKLOG
    config.errorlog = logging.getLogger("hypercorn.error")

    async def serve_in_nursery(task_status: Any) -> None:
        await hypercorn.trio.serve(app, config, shutdown_trigger=shutdown_trigger, task_status=task_status)

    async with trio.open_nursery() as nursery:
        task_status.started(await nursery.start(serve_in_nursery))
