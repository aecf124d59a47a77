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
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qproxy.system import launch
from qproxy.version import VERSION as __version__

if TYPE_CHECKING:
    from qproxy.bootstrap.app import create_app, serve
    from qproxy.config import Config
    from qproxy.process.asgi import app
    from qproxy.server.asgi_client import in_process

__all__ = ["Config", "__version__", "app", "create_app", "in_process", "serve"]


def __getattr__(name: str) -> Any:
    """Import a public name on its first use, to keep `import qproxy` fast."""
    from importlib import import_module

    modules = {
        "app": "process.asgi",
        "Config": "config",
        "create_app": "bootstrap.app",
        "serve": "bootstrap.app",
        "in_process": "server.asgi_client",
    }
    if name not in modules:
        raise AttributeError(f"module 'qproxy' has no attribute {name!r}")
    return getattr(import_module(f"qproxy.{modules[name]}"), name)


if launch.is_hypercorn_command():
    launch.require_trio()
    # Hypercorn looks up the app in the module's namespace, without `__getattr__`.
    from qproxy.process.asgi import app
