"""The tools of a request, and its response over several rounds.

`prepare` selects a request's tools and restores the hidden part of its conversation; `start` opens a plain
response, at no further cost, for a request without tools of this server. A reload creates another runtime;
requests in flight keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

import trio

from qproxy.access.api_keys import ApiKey
from qproxy.relay.event_stream import EventStream
from qproxy.relay.relay import Relay
from qproxy.relay.tool_loop import RequestTools, ToolLoop
from qproxy.relay.tool_rounds import ToolRoundStore, conversation_key, restore
from qproxy.telemetry import RelayRecord
from qproxy.tools.registry import ToolRegistry
from qproxy.tools.tool import Tool
from qproxy.wire.events import Turn


class ToolRuntime:
    """The tools of a running server."""

    def __init__(
        self,
        registry: ToolRegistry,
        *,
        limit: int,
        rounds: ToolRoundStore | None,
    ) -> None:
        self.registry = registry
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
        self, turn: Turn, key: ApiKey | None, *, served_model: str | None = None, remembers: bool = True
    ) -> tuple[Turn, RequestTools]:
        """Return the turn with its whole conversation, and its tools. Raises RequestError naming an
        unavailable one.

        `stands_for` is the model of the request's alias.
        `remembers` is for clients that do not see the calls of this server's tools and cannot send them back.
        """
        name = (key.name or key.id) if key else ""
        tools: Mapping[str, Tool] = {}
        if turn.completion is None and (self.registry or turn.server_tools):  # a completion calls no tools
            tools = self.registry.select(turn, name, served_model)
        rounds = self.rounds if remembers else None
        if rounds is None or not (tools or not rounds.is_empty):
            return turn, RequestTools(tools, self.max_rounds)
        where = conversation_key(turn, key.digest if key else "")
        if not rounds.is_empty:
            turn = replace(turn, messages=await restore(rounds, turn, where))
        return turn, RequestTools(tools, self.max_rounds, rounds, where)

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
        if not tools.tools:
            return await relay.open(turn, record, stack)
        rounds = ToolLoop(relay, turn, tools, record, stack, nursery())
        await rounds.start()
        return rounds
