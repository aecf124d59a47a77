"""Checks of the sandbox, the MCP servers and the tools."""

from __future__ import annotations

import trio

from qproxy.diagnostics.report import Finding
from qproxy.relay import ToolRuntime
from qproxy.sandbox import SystemSandbox

AREA = "tools"
SANDBOX_ADVICE = 'for its requirements see: qproxy help security, or set `sandbox = "none"`'
TOOL_ADVICE = "try it with `qproxy tools run NAME`"
CONNECT_SECONDS = 10.0
"""Seconds for MCP servers to list their tools."""


async def check_tools(
    tool_runtime: ToolRuntime, sandbox: SystemSandbox, needs_sandbox: bool
) -> list[Finding]:
    """Check that the tools could be called; calls none."""
    registry = tool_runtime.registry
    found = await check_sandbox(tool_runtime, sandbox, needs_sandbox)
    if not registry.tools() and not registry.sources:
        return found
    async with trio.open_nursery() as nursery:
        await tool_runtime.open(nursery)
        await registry.wait_ready(CONNECT_SECONDS)
        for source in registry.sources:
            is_connected = source.state.startswith("connected")
            advice = "" if is_connected else "check that its command runs by hand, or that its URL responds"
            name = f"MCP server {source.label}"
            found.append(Finding(AREA, name, "ok" if is_connected else "failed", source.state, advice))
        unavailable = [tool for tool in registry.tools().values() if tool.unavailable_reason]
        for tool in unavailable:
            explained = tool.unavailable_reason == sandbox.unavailable_reason
            text = (
                "unavailable without the sandbox" if explained else f"unavailable: {tool.unavailable_reason}"
            )
            found.append(Finding(AREA, tool.name, "failed", text, "" if explained else TOOL_ADVICE))
        ready = len(registry.tools()) - len(unavailable)
        found.append(Finding(AREA, "tools", "ok", f"{ready} available"))
        nursery.cancel_scope.cancel()
    return found


async def check_sandbox(
    tool_runtime: ToolRuntime, sandbox: SystemSandbox, needs_sandbox: bool
) -> list[Finding]:
    """Check the sandbox if there are tools; makes no connection."""
    registry = tool_runtime.registry
    if not registry.tools() and not registry.sources:
        return [Finding(AREA, "tools", "skipped", "none configured")]
    await sandbox.detect()
    return [_sandbox(sandbox, needs_sandbox)]


def _sandbox(sandbox: SystemSandbox, needed: bool) -> Finding:
    if sandbox.unavailable_reason is None:
        return Finding(AREA, "sandbox", "ok", "bubblewrap is available")
    if not needed:
        return Finding(AREA, "sandbox", "skipped", f"no tool needs it ({sandbox.unavailable_reason})")
    return Finding(AREA, "sandbox", "failed", sandbox.unavailable_reason, SANDBOX_ADVICE)
