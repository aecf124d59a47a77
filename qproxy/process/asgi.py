"""`qproxy.app`: the ASGI app for servers that something else starts, from qproxy.toml and the environment.

It is built in the lifespan and nowhere else, so there is never one without its background tasks; a configuration that
cannot be served is `lifespan.startup.failed` with a line that says why, and a request that comes without a lifespan is a
503 in words.  The settings of a server (`Config.for_app`) are that server's: those that say something else are named in
the log.
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
"""Where Hypercorn has the settings that are its own."""
TRY_AGAIN_LATER = 1013
"""A WebSocket's close code (IANA's registry)."""
log = logging.getLogger("qproxy")


class LazyApp:
    """The app, once its lifespan has begun; `read` gets the settings, anew for each lifespan."""

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
        """The app, or None and why there is none."""
        try:
            return self._build(), ""
        except Exception as error:
            return None, _failure_message(error)

    def _build(self) -> Any:
        """The app for whatever serves it.  ConfigError when that may not be."""
        if not trio.lowlevel.in_trio_run():
            raise ConfigError(launch.TRIO_REQUIRED)
        if self._app is not None:
            raise ConfigError("qproxy.app is served already: use `qproxy.create_app` for another one.")
        http_server.patch_hypercorn()
        config, worker = self._load_config(), current_shutdown.get()
        config.for_app().check(has_api_keys)
        if isinstance(worker, http_server.Worker):
            for host in worker.hosts():
                config.check_address(host, has_api_keys)
        if not logging.getLogger().handlers:  # else somebody has said where logs go
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
    """What to say of settings that are the server's, where a program or a command runs Hypercorn itself."""
    return [
        f"the setting {name} is not used: Hypercorn has its own ({HYPERCORN_OPTIONS[name]})"
        for name in SERVER_SETTINGS
        if getattr(config, name) != SETTINGS[name].default
    ]


def _is_first_worker() -> bool:
    """Whether this process is alone, or the first of several workers: what holds for all is said by one."""
    return multiprocessing.parent_process() is None or multiprocessing.current_process().name.endswith("-1")


def _failure_message(error: Exception) -> str:
    """Why there is no app, in a line; what nobody foresaw is in the log too."""
    if not isinstance(error, ConfigError | ApiKeyStoreError | OSError):
        log.error("the app cannot be built", exc_info=error)
        return f"{type(error).__name__}: {error}; the log has the details"
    return " ".join(str(error).split())


async def _send_not_started(scope: Any, send: Any) -> None:
    """Answer a request that came before the lifespan, or without one."""
    message = "The server has not started: its ASGI lifespan has not run, or has failed. Its log says why."
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
