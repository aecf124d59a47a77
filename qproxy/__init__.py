"""An OpenAI-compatible server for Alibaba's Qwen models, with reliable function calling.

    request    client bytes → endpoints.chat.decode → Turn → dialects.X.request → upstream bytes
    response   upstream bytes → sse.Decoder → dialects.X.Decoder → tool_calls → events
                                                    → endpoints.chat.Encoder → client bytes

A client's bytes become a `Turn`; the response bytes of a Qwen account become events; the events become the
client's bytes. `wire` is pure; `relay` runs one request; `server` is the HTTP server for clients, `transport`
the HTTP client for upstreams; `bootstrap` builds everything from the configuration.

If the model calls a tool of the server, `relay.tool_loop` runs it (`tools`, in a `sandbox`) and sends the
result to the model.

Imports point one way: cli → diagnostics → {process, emulator} → bootstrap → {backends, dashboard} → server →
relay → accounts → config → access → {auth, ledger} → {http_server, limits, telemetry, tools} → transport →
{wire, sandbox, system}. Only `bootstrap`, `process`, `diagnostics`, `emulator.demo` and `cli` read the
settings (`config`); the other packages get arguments.

    qproxy serve                                        the command
    hypercorn qproxy:app --worker-class trio            under Hypercorn: `app` reads qproxy.toml
    urls = await nursery.start(qproxy.serve, config)    in a Trio program
    async with qproxy.in_process(app) as client: ...    in a Trio program, without a socket
    httpx2.AsyncClient(transport=client.transport(httpx2))    for an SDK, without a socket
"""

from __future__ import annotations

from qproxy.system import launch
from qproxy.version import VERSION as __version__

TYPE_CHECKING = False  # importing typing takes longer than all else here, before `__main__` handles Ctrl+C
if TYPE_CHECKING:
    from typing import Any

    from qproxy.bootstrap.app import create_app, serve
    from qproxy.config import Config, load
    from qproxy.config.accounts import AccountConfig, ConfigError
    from qproxy.process.asgi import app
    from qproxy.server.asgi_client import InProcessClient, in_process
    from qproxy.server.in_process_response import InProcessError, InProcessResponse

__all__ = [
    "AccountConfig",
    "Config",
    "ConfigError",
    "InProcessClient",
    "InProcessError",
    "InProcessResponse",
    "__version__",
    "app",
    "create_app",
    "in_process",
    "load",
    "serve",
]
_MODULES = {
    "app": "process.asgi",
    "AccountConfig": "config.accounts",
    "Config": "config",
    "ConfigError": "config.accounts",
    "InProcessClient": "server.asgi_client",
    "InProcessError": "server.in_process_response",
    "InProcessResponse": "server.in_process_response",
    "create_app": "bootstrap.app",
    "in_process": "server.asgi_client",
    "load": "config",
    "serve": "bootstrap.app",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, to keep `import qproxy` fast."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module 'qproxy' has no attribute {name!r}")
    return getattr(import_module(f"qproxy.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})


if launch.is_hypercorn_command():
    launch.require_trio()
    # Hypercorn looks up the app in the module's namespace, without `__getattr__`.
    from qproxy.process.asgi import app
