"""Tool calls: arguments as JSON in, text for the model out.

The only place where a tool runs. Only cancellation is raised: invalid arguments, a program that fails, hangs
or prints too much, and an exception in a function all become an error result, because the model can often
correct its call. The log has only the type of an exception, since its message may contain a client's data.
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
    """The result of a tool call."""

    text: str
    ok: bool
    seconds: float


def unknown_tool_message(tools: Mapping[str, Tool], name: str) -> str:
    """Return the result of a call to an unknown tool."""
    return f"Unknown tool {name[:64]!r}. Available tools: {', '.join(sorted(tools)) or 'none'}."


async def invoke(tool: Tool, arguments: str) -> ToolResult:
    """Run a model's call of a tool, and return its result."""
    started_at = trio.current_time()
    try:
        text, ok = await _run(tool, arguments), True
    except ToolError as error:
        text, ok = f"Error: {error}", False
        if tool.unavailable_reason is not None:
            log.warning("tool %s is unavailable: %s", tool.name, tool.unavailable_reason)
    except SandboxUnavailable as error:
        log.warning("tool %s cannot run: %s", tool.name, error)
        text, ok = "Error: this tool is currently unavailable on this server.", False
    except Exception as error:
        log.error(
            "tool %s failed: %s", tool.name, _tool_kind(error), exc_info=log.isEnabledFor(logging.DEBUG)
        )
        text, ok = "Error: the tool failed.", False
    return ToolResult(_truncate(text), ok, trio.current_time() - started_at)


async def _run(tool: Tool, arguments: str) -> str:
    values = await tool.validate(arguments)
    with trio.move_on_after(tool.timeout):
        return await tool.run(values)
    raise ToolError(f"The tool did not finish within {tool.timeout:g} s (timeout) and was killed.")


def _tool_kind(error: BaseException) -> str:
    """Return the type of an exception, or the types in a group."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(_tool_kind(inner) for inner in error.exceptions)
    return type(error).__name__


def _truncate(text: str) -> str:
    if len(text) <= MAX_RESULT:
        return text
    return f"{text[:MAX_RESULT]}\n[truncated: {len(text) - MAX_RESULT} more characters]"
