"""Mending Hypercorn in this process, its signals, and serving with it.

`install` is the only place where Hypercorn's names are changed.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import sys
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

from qproxy.hypercorn.connection import Server
from qproxy.hypercorn.http1 import H1
from qproxy.hypercorn.http2 import H2, StreamBuffer
from qproxy.hypercorn.websocket import Socket

MENDED = "0.18"
log = logging.getLogger("qproxy.hypercorn")


def install(
    *, write_timeout: float | None = None, max_connections: int | None = None, max_age: float | None = None
) -> None:
    """Mend Hypercorn in this process.  Idempotent.  Another minor version is left as it is, with a warning."""
    if write_timeout is not None:
        Server.write_timeout = write_timeout
    if max_connections is not None:
        Server.max_connections = max_connections
    if max_age is not None:
        Server.max_age = max_age
    if not version("hypercorn").startswith(MENDED + "."):
        log.warning("Hypercorn %s is not the %s that qproxy knows how to mend", version("hypercorn"), MENDED)
        return
    setattr(hypercorn.trio.run, "TCPServer", Server)  # noqa: B010 - typed modules do not let classes be replaced
    setattr(hypercorn.protocol, "H11Protocol", H1)  # noqa: B010
    setattr(hypercorn.protocol, "H2Protocol", H2)  # noqa: B010
    setattr(hypercorn.protocol.h2, "StreamBuffer", StreamBuffer)  # noqa: B010
    setattr(hypercorn.protocol.h11, "WSStream", Socket)  # noqa: B010
    setattr(hypercorn.protocol.h2, "WSStream", Socket)  # noqa: B010


def _is_hypercorns_command() -> bool:
    """Whether this process was begun by `hypercorn`, `python -m hypercorn`, or as a worker of either."""
    process = multiprocessing.current_process()
    target = getattr(process, "_target", None)  # the only sign of a worker that was begun with -m
    if getattr(target, "func", target) is hypercorn.trio.run.trio_worker:
        return True
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return "hypercorn.__main__" in (getattr(spec, "name", None), *sys.modules)


def install_signals() -> None:
    """For the `hypercorn` command only (an embedding program keeps its own handlers).  Call it within Trio."""
    if not _is_hypercorns_command():
        return
    if multiprocessing.parent_process() is not None:  # the master's shutdown event drives the workers
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        # -w 0 has no handler: make it the KeyboardInterrupt that Hypercorn ends on.  Raised from Trio's own task, it
        # goes to the main task, and never into whichever request happens to run.
        token = trio.lowlevel.current_trio_token()
        signal.signal(signal.SIGTERM, lambda *_: token.run_sync_soon(signal.raise_signal, signal.SIGINT))


async def serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listener: int | None = None,
    certfile: str | None = None,
    keyfile: str | None = None,
    graceful_timeout: float = 30.0,
    write_timeout: float = 30.0,
    max_connections: int = 6000,
    max_connection_age: float = math.inf,
    max_header_bytes: int = 64 * 1024,
    idle_timeout: float = 60.0,
    ping_interval: float | None = 20.0,
    max_message_bytes: int = 16 * 1024 * 1024,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI app over HTTP/1.1 and HTTP/2 (h2c with prior knowledge; ALPN with a certificate).

    Reports the bound URLs.  `listener`: the descriptor of a socket that listens already, instead of an address.  When `shutdown_trigger` returns, no new connection is taken and running requests have
    `graceful_timeout` seconds to end.
    """
    install(write_timeout=write_timeout, max_connections=max_connections, max_age=max_connection_age)
    config = Config()
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    config.bind = [address if listener is None else f"fd://{listener}"]
    config.certfile, config.keyfile = certfile, keyfile
    config.graceful_timeout = graceful_timeout
    config.keep_alive_timeout = idle_timeout
    config.h11_max_incomplete_size = config.h2_max_header_list_size = max_header_bytes
    config.websocket_ping_interval = ping_interval
    config.websocket_max_message_size = max_message_bytes
    config.backlog = 2048
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn.error")
    config.h2_max_concurrent_streams = 250

    async def serve_in(task_status: Any) -> None:
        await hypercorn.trio.serve(app, config, shutdown_trigger=shutdown_trigger, task_status=task_status)

    async with trio.open_nursery() as nursery:
        task_status.started(await nursery.start(serve_in))


async def until_signal(stop: trio.Event, say: Callable[[str], None]) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; a second one ends the program at once."""
    asked = False  # `stop` may be set from elsewhere too, and then the first signal is still the first
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if asked:
                say("Stopping at once.")
                # Whatever is in the way of an orderly end is in the way of an exception too.
                os._exit(128 + number)
            asked = True
            say("Stopping: running requests may end; once more to stop at once.")
            stop.set()
