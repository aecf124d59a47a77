"""The selection of a request's tools.

The operator sets a policy for each tool (`policy`), which rows of `[[tool_rules]]` override with patterns for
tools, API keys and models; the first matching row applies. *always*: the model gets the tool in every
request. *on request*: when the client names it. *never*: not even then.

A client that forces a tool choice or requests several choices gets only the tools that it names; one that
forbids tools gets none. A client's own tool takes precedence over a tool of the same name that it did not
request.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn, Protocol

import trio

from qproxy.sandbox import SystemSandbox
from qproxy.tools.tool import Tool, ToolPolicy
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from qproxy.wire.server_tools import ServerToolRequest

DRAIN_SECONDS = 300.0
log = logging.getLogger("qproxy.tools")


class ToolProvider(Protocol):
    """A source of tools that may change, such as an MCP server."""

    @property
    def label(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    @property
    def state(self) -> str: ...

    async def run(self) -> None:
        """Keep the connection open, and reconnect after failures."""

    async def wait_ready(self) -> None:
        """Wait until the first connection attempt has finished."""


@dataclass(frozen=True, slots=True)
class ToolRule:
    """One row of `[[tool_rules]]`."""

    policy: ToolPolicy
    tools: Sequence[str] = ("*",)
    keys: Sequence[str] = ("*",)
    models: Sequence[str] = ("*",)

    def matches(self, tool: Tool, key: str, names: Sequence[str]) -> bool:
        """Return whether the row applies to a tool, a key and a model with one of these names."""
        return all(
            any(fnmatchcase(value.lower(), pattern.lower()) for value in values for pattern in patterns)
            for values, patterns in (((tool.name,), self.tools), ((key,), self.keys), (names, self.models))
        )


class ToolRegistry:
    """All tools of this server."""

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        sources: Sequence[ToolProvider] = (),
        rules: Sequence[ToolRule] = (),
        sandbox: SystemSandbox | None = None,
    ) -> None:
        self._tools = tuple(tools)
        self.sources = sources
        self._rules = rules
        self.sandbox = sandbox
        """The sandbox of the tools, or None if no tool has one."""
        self._connections = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<ToolRegistry {len(self.tools())} tools>"

    def __bool__(self) -> bool:
        return bool(self._tools or self.sources)

    async def open(self, nursery: trio.Nursery) -> None:
        """Test the sandbox, log the unavailable tools, and connect the sources in the nursery."""
        if self.sandbox is not None:
            await self.sandbox.detect()
        for tool in self._tools:
            if tool.unavailable_reason is not None:
                log.warning("tool %s is unavailable: %s", tool.name, tool.unavailable_reason)
        if self.sources:
            nursery.start_soon(self._run_provider)

    async def _run_provider(self) -> None:
        with self._connections:
            async with trio.open_nursery() as nursery:
                for source in self.sources:
                    nursery.start_soon(source.run)

    async def wait_ready(self, seconds: float) -> None:
        """Wait, for at most these seconds, until every source has listed its tools or failed."""
        with trio.move_on_after(seconds):
            for source in self.sources:
                await source.wait_ready()

    def drain(self) -> None:
        """Disconnect the sources after `DRAIN_SECONDS`, which lets requests in flight finish."""
        self._connections.deadline = trio.current_time() + DRAIN_SECONDS

    def tools(self) -> dict[str, Tool]:
        """Return the current tools by name."""
        provided = {tool.name: tool for source in self.sources for tool in source.tools}
        return provided | {tool.name: tool for tool in self._tools}

    def policy_for(self, tool: Tool, key: str, names: Sequence[str]) -> ToolPolicy:
        """Return a tool's policy for requests of a key for a model with these names."""
        return next((rule.policy for rule in self._rules if rule.matches(tool, key, names)), tool.policy)

    def select(
        self,
        turn: Turn,
        key: str = "",
        served_model: str | None = None,
        sources: Sequence[ToolProvider] = (),
    ) -> dict[str, Tool]:
        """Return the tools that this server runs for a request. Raise RequestError for a tool that it may not
        use.

        `served_model` is the target of the alias in the request, if it has one; `sources` are further ones,
        which only this request has.
        """
        known = self.tools()
        names = (turn.model, served_model or turn.model)

        def policy_of(tool: Tool) -> ToolPolicy:
            return self.policy_for(tool, key, names)

        requested: dict[str, Tool] = {}
        for request in turn.server_tools:
            for tool in self._requested(request, known, policy_of, (*self.sources, *sources)):
                self._check(request, tool, turn)
                requested[tool.name] = tool
        if requested and turn.params.get("n", 1) != 1:
            message = "'n' must be 1 when the server runs tools."
            raise RequestError(message, param="n", code="unsupported_value")
        _check_choice(turn, requested)
        return requested | self._offered_by_default(turn, policy_of, known, requested)

    def _offered_by_default(
        self,
        turn: Turn,
        policy_of: Callable[[Tool], ToolPolicy],
        known: Mapping[str, Tool],
        requested: Mapping[str, Tool],
    ) -> dict[str, Tool]:
        if turn.tool_choice not in (None, "auto") or turn.params.get("n", 1) != 1:
            return {}
        taken = {*client_names(turn), *requested}
        return {
            name: tool
            for name, tool in known.items()
            if name not in taken and tool.unavailable_reason is None and policy_of(tool) == "always"
        }

    def _requested(
        self,
        request: ServerToolRequest,
        known: Mapping[str, Tool],
        policy_of: Callable[[Tool], ToolPolicy],
        sources: Sequence[ToolProvider],
    ) -> list[Tool]:
        """Return the requested tools. A forbidden tool raises the same error as one that does not exist."""

        def is_allowed(tool: Tool) -> bool:
            return policy_of(tool) != "never"

        if request.name is not None:
            tool = known.get(request.name)
            if tool is None or not is_allowed(tool):
                _unknown_tool_error(request, f"Unknown tool {request.name!r} on this server.")
            return [tool]
        source = next((source for source in sources if source.label == request.server), None)
        if source is None:
            _unknown_tool_error(
                request, f"Unknown MCP server {request.server!r}: this server is not connected to it."
            )
        if not source.tools:
            message = f"MCP server {source.label!r} is currently unavailable: {source.state}."
            raise RequestError(message, status=503, param=request.path, code="tool_unavailable")
        names = request.allowed
        matches = [
            tool for tool in source.tools if names is None or tool.remote_name in names or tool.name in names
        ]
        return [tool for tool in matches if is_allowed(tool)] or _unknown_tool_error(
            request, f"MCP server {source.label!r} has no such tools for this request."
        )

    def _check(self, request: ServerToolRequest, tool: Tool, turn: Turn) -> None:
        if tool.unavailable_reason is not None:
            message = f"Tool {tool.name!r} is unavailable on this server: {tool.unavailable_reason}"
            raise RequestError(message, param=request.path, code="tool_unavailable")
        if tool.name in client_names(turn):
            message = f"Invalid value for '{request.path}': {tool.name!r} is declared twice."
            raise RequestError(message, param=request.path, code="invalid_value")


def client_names(turn: Turn) -> list[str]:
    """Return the names of the client's own tools."""
    return [str(tool[tool["type"]]["name"]) for tool in turn.tools]


def _unknown_tool_error(request: ServerToolRequest, message: str) -> NoReturn:
    raise RequestError(message, param=request.path, code="unknown_tool")


def _check_choice(turn: Turn, requested: Mapping[str, Tool]) -> None:
    """Raise RequestError for a choice of a tool that the request does not have."""
    choice = turn.tool_choice
    if isinstance(choice, dict):
        name = choice[choice["type"]]["name"]
        if name not in requested and name not in client_names(turn):
            message = f"Invalid value for 'tool_choice': the function {name[:100]!r} is not among the tools."
            raise RequestError(message, param="tool_choice", code="invalid_value")
