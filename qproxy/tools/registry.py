"""Which request gets which tools.

The operator says it for each tool (`policy`) and, before that, by rows of `[[tool_rules]]` with patterns for tools,
client keys and models; the first row that fits decides.  *always*: the model is told of the tool, whatever the client
asks.  *on request*: when the client names it.  *never*: not even then.

A client that forces the choice of a tool, or wants several answers at once, gets only what it asks for by name; one
that forbids tools gets none.  A client's own tool wins over one of the same name that it did not ask for.
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
from qproxy.wire.events import ServerToolRequest, Turn

DRAIN_SECONDS = 300.0
log = logging.getLogger("qproxy.tools")


class ToolProvider(Protocol):
    """What tools come from, if they come and go: an MCP server."""

    @property
    def label(self) -> str: ...

    @property
    def tools(self) -> Sequence[Tool]: ...

    @property
    def state(self) -> str: ...

    async def run(self) -> None:
        """Stay connected, for ever."""

    async def wait_ready(self) -> None:
        """Return when the first attempt to connect is over."""


@dataclass(frozen=True, slots=True)
class ToolRule:
    """One row of `[[tool_rules]]`."""

    policy: ToolPolicy
    tools: Sequence[str] = ("*",)
    keys: Sequence[str] = ("*",)
    models: Sequence[str] = ("*",)

    def matches(self, tool: Tool, key: str, names: Sequence[str]) -> bool:
        """Whether the row is about this tool, this key and a model of one of these names."""
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
        """Where fenced ones run, if there are any."""
        self._connections = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Toolbox {len(self.tools())} tools>"

    def __bool__(self) -> bool:
        return bool(self._tools or self.sources)

    async def open(self, nursery: trio.Nursery) -> None:
        """Try the sandbox out, say which tools cannot run, and keep the sources connected in the nursery."""
        if self.sandbox is not None:
            await self.sandbox.detect()
        for tool in self._tools:
            if tool.unavailable_reason is not None:
                log.warning("the tool %s is not offered: %s", tool.name, tool.unavailable_reason)
        if self.sources:
            nursery.start_soon(self._run_provider)

    async def _run_provider(self) -> None:
        with self._connections:
            async with trio.open_nursery() as nursery:
                for source in self.sources:
                    nursery.start_soon(source.run)

    async def wait_ready(self, seconds: float) -> None:
        """Return when every source has told its tools or failed to, or when the time is over."""
        with trio.move_on_after(seconds):
            for source in self.sources:
                await source.wait_ready()

    def drain(self) -> None:
        """End the sources when the requests that may use them are over."""
        self._connections.deadline = trio.current_time() + DRAIN_SECONDS

    def tools(self) -> dict[str, Tool]:
        """The tools there are now, by name."""
        found = {tool.name: tool for source in self.sources for tool in source.tools}
        return found | {tool.name: tool for tool in self._tools}

    def policy_for(self, tool: Tool, key: str, names: Sequence[str]) -> ToolPolicy:
        """Return whether a request of this key for the model of these names gets the tool."""
        return next((rule.policy for rule in self._rules if rule.matches(tool, key, names)), tool.policy)

    def select(self, turn: Turn, key: str = "", served_model: str | None = None) -> dict[str, Tool]:
        """The tools that this server runs for a request; RequestError names a request for one that it does not get.

        `served_model` is the model that an alias of the request means.
        """
        known = self.tools()
        names = (turn.model, served_model or turn.model)

        def policy_of(tool: Tool) -> ToolPolicy:
            return self.policy_for(tool, key, names)

        asked: dict[str, Tool] = {}
        for request in turn.server_tools:
            for tool in self._requested(request, known, policy_of):
                self._check(request, tool, turn)
                asked[tool.name] = tool
        if asked and turn.params.get("n", 1) != 1:
            message = "This server runs tools for one answer at a time; 'n' must be 1."
            raise RequestError(message, param="n", code="unsupported_value")
        _check_choice(turn, asked)
        return asked | self._offered_by_default(turn, policy_of, known, asked)

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
        self, request: ServerToolRequest, known: Mapping[str, Tool], policy_of: Callable[[Tool], ToolPolicy]
    ) -> list[Tool]:
        """Those that a request means.  One that it may never have is as unknown as one that is not there."""

        def may(tool: Tool) -> bool:
            return policy_of(tool) != "never"

        if request.name is not None:
            tool = known.get(request.name)
            if tool is None or not may(tool):
                _unknown_tool_error(request, f"This server runs no tool named {request.name!r}.")
            return [tool]
        source = next((source for source in self.sources if source.label == request.server), None)
        if source is None:
            _unknown_tool_error(
                request, f"This server is connected to no MCP server labelled {request.server!r}."
            )
        if not source.tools:
            message = f"The MCP server {source.label!r} is not there now: {source.state}."
            raise RequestError(message, status=503, param=request.path, code="tool_unavailable")
        names = request.allowed
        wanted = [
            tool for tool in source.tools if names is None or tool.remote_name in names or tool.name in names
        ]
        return [tool for tool in wanted if may(tool)] or _unknown_tool_error(
            request, f"The MCP server {source.label!r} has no such tools for this request."
        )

    def _check(self, request: ServerToolRequest, tool: Tool, turn: Turn) -> None:
        if tool.unavailable_reason is not None:
            message = f"The tool {tool.name!r} cannot run on this server: {tool.unavailable_reason}"
            raise RequestError(message, param=request.path, code="tool_unavailable")
        if tool.name in client_names(turn):
            message = f"Invalid value for '{request.path}': {tool.name!r} is declared twice."
            raise RequestError(message, param=request.path, code="invalid_value")


def client_names(turn: Turn) -> list[str]:
    """The names of the client's own tools."""
    return [str(tool[tool["type"]]["name"]) for tool in turn.tools]


def _unknown_tool_error(request: ServerToolRequest, message: str) -> NoReturn:
    raise RequestError(message, param=request.path, code="unknown_tool")


def _check_choice(turn: Turn, requested: Mapping[str, Tool]) -> None:
    """A choice that names a tool must name one that is there."""
    choice = turn.tool_choice
    if isinstance(choice, dict):
        name = choice[choice["type"]]["name"]
        if name not in requested and name not in client_names(turn):
            message = f"Invalid value for 'tool_choice': the function {name[:100]!r} is not among the tools."
            raise RequestError(message, param="tool_choice", code="invalid_value")
