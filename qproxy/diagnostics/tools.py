"""The sandbox, the MCP servers and the tools, as the server would have them."""

from __future__ import annotations

import trio

from qproxy.diagnostics.report import Finding
from qproxy.relay import Workshop
from qproxy.sandbox import Site

AREA = "tools"
SANDBOX_ADVICE = 'docs/security.md says what a sandbox needs; `sandbox = "none"` does without one'
CONNECT_SECONDS = 10.0
"""For MCP servers to tell their tools."""


async def tools(workshop: Workshop, site: Site, fenced: bool) -> list[Finding]:
    """What would become of a call; nothing is called."""
    box = workshop.toolbox
    if not box.tools() and not box.sources:
        return [Finding(AREA, "tools", "skipped", "none are declared")]
    await site.look()
    found = [_sandbox(site, fenced)]
    async with trio.open_nursery() as nursery:
        await workshop.open(nursery)
        await box.settled(CONNECT_SECONDS)
        for source in box.sources:
            well = source.state.startswith("connected")
            advice = "" if well else "`qproxy tools` shows it too; see that it starts by hand"
            name = f"MCP server {source.label}"
            found.append(Finding(AREA, name, "ok" if well else "failed", source.state, advice))
        refused = [tool for tool in box.tools().values() if tool.refusal]
        for tool in refused:
            found.append(Finding(AREA, tool.name, "failed", f"cannot run: {tool.refusal}", SANDBOX_ADVICE))
        ready = len(box.tools()) - len(refused)
        found.append(Finding(AREA, "tools", "ok", f"{ready} can be called"))
        nursery.cancel_scope.cancel()
    return found


def _sandbox(site: Site, needed: bool) -> Finding:
    if site.refusal is None:
        return Finding(AREA, "sandbox", "ok", "bubblewrap works here")
    if not needed:
        return Finding(AREA, "sandbox", "skipped", f"no tool wants one ({site.refusal})")
    return Finding(AREA, "sandbox", "failed", site.refusal, SANDBOX_ADVICE)
