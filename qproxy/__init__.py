"""qproxy: any program that speaks the OpenAI API uses Alibaba's Qwen models, with function calling that arrives right.

    client bytes → endpoints.chat.decode → Turn ─┐                            ┌→ endpoints.chat.Encoder → client bytes
                                                 │   relay  (where wire       │
    dialects.X.request ← target, Turn ───────────┘   meets Trio)              └─ events ← tool_calls ← dialects.X.Decoder ← sse.Decoder ← bytes

Bytes come in from a client and become a `Turn`; a Qwen account answers with bytes that become events; the events
become the client's bytes.  `wire` is pure; `relay` takes one request through it; `server` speaks HTTP with the
client, `transport` with Qwen; `bootstrap` puts the parts together.

Where the model calls a tool of this server, `relay.tool_loop` runs it (`tools`, fenced by `sandbox`) and asks the model
again.

Imports point one way: cli → diagnostics → {process, emulator} → bootstrap → {backends, dashboard} → server → relay →
accounts → config → access → {auth, ledger} → {http_server, limits, telemetry, tools} → transport → {wire, sandbox, system}.
The settings (`config`) are read where parts are put together (`bootstrap`, `process`) and by `diagnostics`,
`emulator.demo` and `cli`: the other packages get what they need as arguments.

    qproxy serve                                        the command
    hypercorn qproxy:app --worker-class trio            under Hypercorn; `app` reads qproxy.toml and the environment
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
    """The public names, imported when they are first used: `import qproxy` alone costs nothing."""
    from importlib import import_module

    homes = {
        "app": "process.asgi",
        "Config": "config",
        "create_app": "bootstrap.app",
        "serve": "bootstrap.app",
        "in_process": "server.asgi_client",
    }
    if name not in homes:
        raise AttributeError(f"module 'qproxy' has no attribute {name!r}")
    return getattr(import_module(f"qproxy.{homes[name]}"), name)


if launch.is_hypercorn_command():
    launch.require_trio()
    # Hypercorn looks for the app among the module's own names, past `__getattr__`.
    from qproxy.process.asgi import app
