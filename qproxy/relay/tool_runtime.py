"""Where tools and answers meet: what a request is equipped with, and its answer in as many rounds as it takes.

`equip` says which tools a request gets and puts the hidden part of its conversation back; `answer` opens a plain
answer, at no further cost, for a request without tools of this server.  A reload brings another workshop; the one
before goes on for the requests that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

import trio

from qproxy.access.api_keys import Key
from qproxy.relay.event_stream import Pulled
from qproxy.relay.relay import Relay
from qproxy.relay.tool_history import Memory, place
from qproxy.relay.tool_loop import LIMIT, Rounds, Tools
from qproxy.telemetry import Story
from qproxy.tools.registry import Toolbox
from qproxy.tools.tool import Tool
from qproxy.wire.events import Turn


class Workshop:
    """The tools of a running server."""

    def __init__(
        self, toolbox: Toolbox | None = None, *, limit: int = LIMIT, memory: Memory | None = None
    ) -> None:
        self.toolbox = toolbox or Toolbox()
        self.memory = memory or Memory(trio.current_time)
        self.limit = limit

    def __repr__(self) -> str:
        return f"<Workshop with {self.toolbox!r} and {self.memory!r}>"

    async def open(self, nursery: trio.Nursery) -> None:
        """Get ready: the sandbox is tried out, MCP servers are connected to in the nursery."""
        await self.toolbox.open(nursery)

    def retire(self) -> None:
        """No new request will come."""
        self.toolbox.retire()

    def equip(
        self, turn: Turn, key: Key | None, *, stands_for: str | None = None, remembers: bool = True
    ) -> tuple[Turn, Tools]:
        """The turn with its whole conversation, and its tools; RequestError names one that it cannot have.

        `stands_for` is the model that an alias of the request means.
        `remembers` is for clients that do not see the calls of our tools and cannot send them back.
        """
        name = (key.name or key.id) if key else ""
        tools: Mapping[str, Tool] = {}
        if turn.completion is None and (self.toolbox or turn.requested):  # who completes a text calls nothing
            tools = self.toolbox.for_turn(turn, name, stands_for)
        if not remembers or not (tools or len(self.memory)):
            return turn, Tools(tools, self.limit)
        where = place(turn, key.digest if key else "")
        turn = replace(turn, messages=self.memory.restore(turn, where))
        return turn, Tools(tools, self.limit, self.memory, where)

    async def answer(
        self,
        relay: Relay,
        turn: Turn,
        tools: Tools,
        story: Story,
        stack: AsyncExitStack,
        nursery: Callable[[], trio.Nursery],
    ) -> Pulled:
        """The answer, begun; tools run in the `nursery`.  Raises QproxyError when no account could begin one."""
        if not tools.tools:
            return await relay.open(turn, story, stack)
        rounds = Rounds(relay, turn, tools, story, stack, nursery())
        await rounds.begin()
        return rounds
