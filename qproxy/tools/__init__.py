"""The tools that this server runs for its clients.

Three kinds, all declared by the operator and never by a client:
    commands    sandboxed programs (`qproxy.sandbox`); from `[[tools]]` in qproxy.toml
    mcp         tools of MCP servers, as `server__tool`; from `[[mcp_servers]]`
    functions   Python functions of a program that embeds qproxy: `create_app(config, tools=[f])`

Each becomes a `Tool`: a name, a schema and an async function. `invoke.invoke` is the only place where a tool
runs: it validates the arguments, enforces the timeout, and turns every failure into text for the model.
`ToolRegistry` selects the tools of a request. The loop of model calls and tool calls is
`qproxy.relay.tool_loop`.

Not here: HTTP, accounts, and the client's view of tools (`wire.endpoints`).
"""

from __future__ import annotations

from qproxy.tools.functions import function
from qproxy.tools.tool import Tool, ToolError

__all__ = ["Tool", "ToolError", "function"]
