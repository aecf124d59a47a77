"""Calling a tool: checked arguments in, text for the model out, whatever happens.

The one place where a tool runs.  Nothing is raised but cancellation: arguments that do not fit, a program that fails, hangs or says too much, and a fault in a function all become a result that says so, because
the model can often mend its call.  Of a fault the log has the kind; its words may hold what a client wrote.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from qproxy.sandbox import SandboxUnavailable
from qproxy.tools.tool import Tool, ToolError

log = logging.getLogger("qproxy.tools")
MAX_RESULT = 256 * 1024
"""Characters of one result."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a call."""

    text: str
    ok: bool
    seconds: float


def unknown_tool_message(tools: Mapping[str, Tool], name: str) -> str:
    """What a model is told that called a tool which there is not."""
    return f"There is no tool named {name[:64]!r}; there are: {', '.join(sorted(tools)) or 'none'}."


async def invoke(tool: Tool, arguments: str) -> ToolResult:
    """Run one call that a model made."""
    began = trio.current_time()
    try:
        text, ok = await _run(tool, arguments), True
    except ToolError as error:
        text, ok = f"Error: {error}", False
        if tool.unavailable_reason is not None:
            log.warning("tool %s is not available: %s", tool.name, tool.unavailable_reason)
    except SandboxUnavailable as refusal:
        log.warning("tool %s cannot run: %s", tool.name, refusal)
        text, ok = "Error: this tool cannot run on this server now.", False
    except Exception as error:
        log.error(
            "tool %s failed: %s", tool.name, _tool_kind(error), exc_info=log.isEnabledFor(logging.DEBUG)
        )
        text, ok = "Error: the tool failed.", False
    return ToolResult(_truncate(text), ok, trio.current_time() - began)


async def _run(tool: Tool, arguments: str) -> str:
    given = await tool.validate(arguments)
    with trio.move_on_after(tool.timeout):
        return await tool.run(given)
    raise ToolError(f"The tool did not finish within {tool.timeout:g} s and was stopped.")


def _tool_kind(error: BaseException) -> str:
    """The kind of an error, and of those that a group holds."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_tool_kind(inner) for inner in error.exceptions)
    return type(error).__name__


def _truncate(text: str) -> str:
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]}\n[cut: {len(text) - MAX_RESULT} more characters]"
