"""The tools that this server itself runs, for any client.

Three kinds, all declared by the operator and never by a client:
    commands    programs, fenced by `qproxy.sandbox`; from `[[tools]]` in qproxy.toml
    mcp         what MCP servers offer, as `server__tool`; from `[[mcp_servers]]`
    functions   Python functions of a program that embeds qproxy: `create_app(config, tools=[f])`

Each becomes a `Tool`: a name, a schema and something to await.  `invoke.invoke` is the one place where a tool runs: it
checks the arguments before the tool sees them, keeps the time, and turns whatever goes wrong into text that the
model can read.  `ToolRegistry` says which request gets which tools.  Rounds of model and tools are `qproxy.relay.tool_loop`.

Not here: HTTP, accounts, what a client sees of it (`wire.endpoints`).
"""

from __future__ import annotations

from qproxy.tools.functions import function
from qproxy.tools.tool import Tool, ToolError

__all__ = ["Tool", "ToolError", "function"]
