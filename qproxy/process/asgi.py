"""`qproxy.app`: the ASGI app for other servers, configured by qproxy.toml and the environment.

The app is built in the lifespan, so it never runs without its background tasks. An invalid configuration is
`lifespan.startup.failed` with the reason in one line; a request without a lifespan gets a 503. The settings
of a server (`Config.for_app`) are ignored, with a warning in the log.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from typing import Any

import trio

from qproxy import http_server
from qproxy.access.api_keys import ApiKeyStoreError
from qproxy.backends.api_keys import has_api_keys
from qproxy.bootstrap import app as bootstrap
from qproxy.config import Config, load
from qproxy.config.accounts import ConfigError
from qproxy.config.settings import SERVER_SETTINGS, SETTINGS
from qproxy.http_server.shutdown import current_shutdown
from qproxy.process import log_setup, serve
from qproxy.system import launch
from qproxy.wire import json_codec
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import OverloadedError

HYPERCORN_OPTIONS = {
    "host": "--bind",
    "port": "--bind",
    "workers": "--workers",
    "certfile": "--certfile",
    "keyfile": "--keyfile",
}
"""Hypercorn's options for the settings that it has itself."""
TRY_AGAIN_LATER = 1013
"""WebSocket close code (IANA registry)."""
log = logging.getLogger("qproxy")


class LazyApp:
    """An ASGI app that is built when its lifespan starts, from the settings that `read` returns."""

    def __init__(self, read: Callable[[], Config] = load) -> None:
        self._load_config = read
        self._app: Any = None

    def __repr__(self) -> str:
        return f"<App {'served' if self._app is not None else 'not started'}>"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        else:
            await _send_not_started(scope, send)

    async def _lifespan(self, scope: Any, receive: Any, send: Any) -> None:
        async def forward(message: Any) -> None:
            worker = current_shutdown.get()
            if message["type"] == "lifespan.startup.failed" and isinstance(worker, http_server.Worker):
                worker.fail(message["message"])
            await send(message)

        app, reason = self._try_build()
        if app is None:
            await receive()
            await forward({"type": "lifespan.startup.failed", "message": reason})
            return
        self._app = app
        try:
            await app(scope, receive, forward)
        finally:
            self._app = None

    def _try_build(self) -> tuple[Any, str]:
        """Return the app and "", or None and the reason."""
        try:
            return self._build(), ""
        except Exception as error:
            return None, _failure_message(error)

    def _build(self) -> Any:
        """Build the app for the current server. Raises ConfigError."""
        if not trio.lowlevel.in_trio_run():
            raise ConfigError(launch.TRIO_REQUIRED)
        if self._app is not None:
            raise ConfigError("qproxy.app is already running; use `qproxy.create_app` for another app.")
        http_server.patch_hypercorn()
        config, worker = self._load_config(), current_shutdown.get()
        config.for_app().check(has_api_keys)
        if isinstance(worker, http_server.Worker):
            for host in worker.hosts():
                config.check_address(host, has_api_keys)
        if not logging.getLogger().handlers:  # otherwise the program has configured logging
            log_setup.configure_logging(config)
        if isinstance(worker, http_server.Worker):
            worker.use_process_logging()
        if launch.is_hypercorn_command():
            serve.raise_file_limit(config)
        if _is_first_worker():
            unused = unused_settings(config) if isinstance(worker, http_server.Worker) else []
            for warning in (*unused, *config.warnings()):
                log.warning("%s", warning)
        return bootstrap.create_app(config)


def unused_settings(config: Config) -> list[str]:
    """Return warnings for settings that Hypercorn overrides when it was started by another program."""
    return [
        f"setting {name} is ignored: Hypercorn has its own option ({HYPERCORN_OPTIONS[name]})"
        for name in SERVER_SETTINGS
        if getattr(config, name) != SETTINGS[name].default
    ]


def _is_first_worker() -> bool:
    """Return whether this process should log warnings that concern all workers."""
    return multiprocessing.parent_process() is None or multiprocessing.current_process().name.endswith("-1")


def _failure_message(error: Exception) -> str:
    """Return the reason in one line; an unexpected error is logged with its traceback."""
    if not isinstance(error, ConfigError | ApiKeyStoreError | OSError):
        log.error("cannot build the app", exc_info=error)
        return f"{type(error).__name__}: {error}; see the log for the traceback"
    return " ".join(str(error).split())


async def _send_not_started(scope: Any, send: Any) -> None:
    """Reject a request that arrived before the lifespan started, or without one."""
    message = "The server has not started: its ASGI lifespan did not run or failed; see its log."
    error = OverloadedError(message, code="not_started", retry_after=1)
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": message})
        return
    body = json_codec.dumps(OPENAI.error_body(error, ""))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in OPENAI.retry_headers(error).items()]
    await send({"type": "http.response.start", "status": OPENAI.error_status(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})


http_server.install_worker()  # before a server is started
app = LazyApp()
