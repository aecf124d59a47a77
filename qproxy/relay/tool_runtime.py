"""The tools of a request, and its response over several rounds.

`prepare` selects a request's tools and restores the hidden part of its conversation; `start` opens a plain
response, at no further cost, for a request without tools of this server. A reload creates another runtime;
requests in flight keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.relay.event_stream import EventStream
from qproxy.relay.relay import Relay
from qproxy.relay.tool_loop import RequestTools, ToolLoop
from qproxy.relay.tool_rounds import ToolRoundStore, conversation_key, restore
from qproxy.telemetry import RelayRecord
from qproxy.tools.client_servers import ClientServers
from qproxy.tools.registry import ToolRegistry, client_names
from qproxy.tools.tool import Tool
from qproxy.wire.errors import RequestError
from qproxy.wire.events import ServerToolList, Turn

SEARCH_PARAMS = ("web_search_options", "enable_search", "search_options")
"""The parameters that ask a model's server to search."""


class ToolRuntime:
    """The tools of a running server."""

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        limit: int,
        rounds: ToolRoundStore | None,
        search_tool: str | None,
        requires_search: bool,
        client_servers: ClientServers,
    ) -> None:
        """`search_tool` is the name of the tool that searches the web for models that cannot; with
        `requires_search` a request for a search that nothing can do is an error."""
        self.registry = registry
        self._search_tool = search_tool
        self._client_servers = client_servers
        self._requires_search = requires_search
        self.rounds = rounds
        self.max_rounds = limit

    def __repr__(self) -> str:
        return f"<ToolRuntime with {self.registry!r} and {self.rounds!r}>"

    async def open(self, nursery: trio.Nursery) -> None:
        """Test the sandbox, and connect to MCP servers in the nursery."""
        await self.registry.open(nursery)

    def drain(self) -> None:
        """Close: no new request will use this runtime."""
        self.registry.drain()

    async def prepare(
        self,
        turn: Turn,
        key: ApiKey | None,
        *,
        served_model: str | None = None,
        remembers: bool = True,
        can_search: Callable[[str], bool] = lambda model: True,
        nursery: trio.Nursery | None = None,
    ) -> tuple[Turn, RequestTools]:
        """Return the turn with its whole conversation, and its tools. Raises RequestError naming an
        unavailable one.

        `served_model` is the model of the request's alias. `can_search` returns whether a model searches the
        web itself.
        `nursery` is that of the request, None for one in the background.
        `remembers` is for clients that do not see the calls of this server's tools and cannot send them back.
        """
        name = (key.name or key.id) if key else ""
        tools: Mapping[str, Tool] = {}
        if turn.completion is None and (self.registry or turn.server_tools):  # a completion calls no tools
            named = [request for request in turn.server_tools if request.url is not None]
            labels = [source.label for source in self.registry.sources]
            servers = await self._client_servers.connect(named, labels, nursery) if named else []
            tools = self.registry.select(turn, name, served_model, servers)
        approvals: Iterable[str] = () if remembers else _approvals(turn, tools)
        lists: Iterable[ServerToolList] = () if remembers else _lists(turn, tools)
        searches = ""
        if turn.web_search is not None and not can_search(served_model or turn.model):
            search = self._find_search_tool(turn, name, served_model)
            if search is None:
                turn = self._without_search(turn)
            else:
                turn = _with_search_tool(turn, search)
                tools, searches = {**tools, search.name: search}, search.name
        rounds = self.rounds if remembers else None
        if rounds is None or not (tools or not rounds.is_empty):
            return turn, RequestTools(
                tools, self.max_rounds, search=searches, approvals=frozenset(approvals), lists=tuple(lists)
            )
        where = conversation_key(turn, key.digest if key else "")
        if not rounds.is_empty:
            turn = replace(turn, messages=await restore(rounds, turn, where))
        return turn, RequestTools(tools, self.max_rounds, rounds, where, search=searches)

    def _find_search_tool(self, turn: Turn, key: str, served_model: str | None) -> Tool | None:
        """Return the tool that searches the web for a request, None if there is none that it may use."""
        tool = self.registry.tools().get(self._search_tool or "")
        if tool is None or tool.unavailable_reason is not None or turn.tool_choice == "none":
            return None
        names = (turn.model, served_model or turn.model)
        is_taken = tool.name in client_names(turn) or turn.params.get("n", 1) != 1
        return None if is_taken or self.registry.policy_for(tool, key, names) == "never" else tool

    def _without_search(self, turn: Turn) -> Turn:
        """Return the turn without its web search.  Raises RequestError if that is required."""
        assert turn.web_search is not None
        path = turn.web_search.path
        if self._requires_search:
            message = (
                f"The model {turn.model[:200]!r} cannot search the web here (missing_web_search): remove "
                f"'{path}' or use another model."
            )
            raise RequestError(message, param=path, code="unsupported_parameter")
        return replace(_without_search_params(turn), ignored=(*turn.ignored, path))

    async def start(
        self,
        relay: Relay,
        turn: Turn,
        tools: RequestTools,
        record: RelayRecord,
        stack: AsyncExitStack,
        nursery: Callable[[], trio.Nursery],
    ) -> EventStream:
        """Return the started response; tools run in `nursery`. Raises QproxyError if no account could start
        one."""
        if not tools.tools and not turn.approved_calls:
            return await relay.open(turn, record, stack)
        rounds = ToolLoop(relay, turn, tools, record, stack, nursery())
        await rounds.start()
        return rounds


def _approvals(turn: Turn, tools: Mapping[str, Tool]) -> Iterator[str]:
    """Yield the names of the tools whose calls the client wants to approve."""
    policies = {request.server: request.approval for request in turn.server_tools if request.server}
    for name, tool in tools.items():
        if tool.server in policies and policies[tool.server].requires(tool.remote_name):
            yield name


def _lists(turn: Turn, tools: Mapping[str, Tool]) -> Iterator[ServerToolList]:
    """Yield the tools of each MCP server that the client requests for the first time."""
    labels = dict.fromkeys(request.server for request in turn.server_tools if request.server)
    for label in labels:
        if label not in turn.listed_servers:
            yield ServerToolList(label, [_listed(tool) for tool in tools.values() if tool.server == label])


def _listed(tool: Tool) -> dict[str, Any]:
    return {"name": tool.remote_name, "description": tool.description, "input_schema": tool.parameters}


def _without_search_params(turn: Turn) -> Turn:
    params = {name: value for name, value in turn.params.items() if name not in SEARCH_PARAMS}
    return replace(turn, params=params)


def _with_search_tool(turn: Turn, tool: Tool) -> Turn:
    """Return the turn for a model that searches with a tool, which it must call if the search is forced."""
    turn = _without_search_params(turn)
    if turn.web_search is None or not turn.web_search.forced:
        return turn
    return replace(turn, tool_choice={"type": "function", "function": {"name": tool.name}})
