"""The sandbox, the MCP servers and the tools, as the server would have them."""

from __future__ import annotations

import trio

from qproxy.diagnostics.report import Finding
from qproxy.relay import ToolRuntime
from qproxy.sandbox import SystemSandbox

AREA = "tools"
SANDBOX_ADVICE = 'docs/security.md says what a sandbox needs; `sandbox = "none"` does without one'
CONNECT_SECONDS = 10.0
"""For MCP servers to tell their tools."""


async def check_tools(tool_runtime: ToolRuntime, sandbox: SystemSandbox, fenced: bool) -> list[Finding]:
    """What would become of a call; nothing is called."""
    box = tool_runtime.registry
    if not box.tools() and not box.sources:
        return [Finding(AREA, "tools", "skipped", "none are declared")]
    await sandbox.detect()
    found = [_sandbox(sandbox, fenced)]
    async with trio.open_nursery() as nursery:
        await tool_runtime.open(nursery)
        await box.wait_ready(CONNECT_SECONDS)
        for source in box.sources:
            well = source.state.startswith("connected")
            advice = "" if well else "`qproxy tools` shows it too; see that it starts by hand"
            name = f"MCP server {source.label}"
            found.append(Finding(AREA, name, "ok" if well else "failed", source.state, advice))
        refused = [tool for tool in box.tools().values() if tool.unavailable_reason]
        for tool in refused:
            found.append(
                Finding(AREA, tool.name, "failed", f"cannot run: {tool.unavailable_reason}", SANDBOX_ADVICE)
            )
        ready = len(box.tools()) - len(refused)
        found.append(Finding(AREA, "tools", "ok", f"{ready} can be called"))
        nursery.cancel_scope.cancel()
    return found


def _sandbox(sandbox: SystemSandbox, needed: bool) -> Finding:
    if sandbox.unavailable_reason is None:
        return Finding(AREA, "sandbox", "ok", "bubblewrap works here")
    if not needed:
        return Finding(AREA, "sandbox", "skipped", f"no tool wants one ({sandbox.unavailable_reason})")
    return Finding(AREA, "sandbox", "failed", sandbox.unavailable_reason, SANDBOX_ADVICE)
