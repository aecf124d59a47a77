"""An answer of several rounds, pulled like an answer of one.

`Rounds` is `Pulled` as any other answer, so what streams or assembles an answer does not know of it: `receive` gives
the events of the round under way, and between two rounds what the tools say, in the order of their calls.

Who owns what: the tools of a round run in parallel, together with the opening of the next round, in *one* task of the
request's nursery, which the server opens around everything that is done for a request and cancels when the client
has left or the answer is whole.  It is not a nursery of `receive`'s own: a pull may give up at its time (`Quiet`), so
that a comment can go out, and the tools must go on meanwhile.  Nor is it one on the request's exit stack: a nursery
belongs to the task that opened it, and the stack outlives the request's handler.  The task is over before the stack
closes what it opened.

The connection and the lease of a round are given back before its tools run: a slow tool holds no account.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from qproxy.relay.event_stream import Pulled
from qproxy.relay.relay import Relay
from qproxy.relay.tool_history import Memory, Place
from qproxy.telemetry import Story
from qproxy.tools import invoke as calling
from qproxy.tools.tool import Tool
from qproxy.transport import Quiet
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Event, Failed, ServerCall, ServerResult, Turn, Usage
from qproxy.wire.tool_rounds import Call, Round, next_turn, total

log = logging.getLogger("qproxy.tools")
LIMIT = 8
"""Rounds in which tools may run, unless the settings say otherwise; then one more, without."""

MOST_CALLS = 32
"""That are run of one round."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a request has of this server's tools."""

    tools: Mapping[str, Tool]
    limit: int = LIMIT
    memory: Memory | None = None
    place: Place = ""
    """Where the hidden part of this answer is remembered."""

    def offered(self, turn: Turn) -> Turn:
        """The turn with these tools among its own."""
        declared = [tool.declaration() for tool in self.tools.values()]
        return replace(turn, tools=[*turn.tools, *declared])


class Rounds:
    """An answer under way, over as many rounds as it takes."""

    def __init__(
        self,
        relay: Relay,
        turn: Turn,
        tools: Tools,
        story: Story,
        stack: AsyncExitStack,
        nursery: trio.Nursery,
    ) -> None:
        self._relay = relay
        self._tools = tools
        self._story = story
        self._stack = stack
        self._nursery = nursery
        self._theirs = frozenset(tool[tool["type"]]["name"] for tool in turn.tools)
        self._asked = turn
        self._turn = tools.offered(turn)
        self._began_with = len(turn.messages)
        self._number = 1
        self._round = self._new_round(Usage())
        self._answer: Pulled | None = None
        self._ready: list[Event] = []
        self._over = False
        self._news = trio.Event()
        self._waiting: trio.CancelScope | None = None
        self._results: dict[str, ServerResult | None] = {}
        """Of the calls that run, in their order; one that has ended waits until those before it have."""

    def __repr__(self) -> str:
        return f"<Rounds, in round {self._number} {'over' if self._over else 'under way'}>"

    async def begin(self) -> None:
        """Open the first round; raises QproxyError when it never comes."""
        self._held = await self._stack.enter_async_context(AsyncExitStack())
        self._answer = await self._relay.open(self._turn, self._story, self._held)

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._answer is not None:
            self._answer.interrupt()
        elif self._waiting is not None:
            self._waiting.cancel()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Every event that became certain; empty at the end.  Raises `Quiet` at `until`, and loses nothing."""
        while True:
            if self._ready:
                events, self._ready = self._ready, []
                return events
            if self._over:
                return []
            if self._answer is None:
                await self._wait_for_news(until)
            else:
                self._take(await self._answer.receive(until))

    async def all(self) -> list[Event]:
        """The rest of the answer."""
        events: list[Event] = []
        while piece := await self.receive():
            events.extend(piece)
        return events

    async def _wait_for_news(self, until: float) -> None:
        self._news = trio.Event()
        with trio.CancelScope(deadline=until) as self._waiting:
            try:
                await self._news.wait()
                return
            finally:
                self._waiting = None
        raise Quiet

    def _tell(self, *events: Event) -> None:
        self._ready += events
        self._news.set()

    def _new_round(self, before: Usage) -> Round:
        number = self._number

        def our_id(place: int) -> str:
            return self._asked.call_id(0, f"{number}/{place}")

        last = number > self._tools.limit
        return Round(self._tools.tools.keys(), self._theirs, our_id, before, last)

    def _take(self, events: list[Event]) -> None:
        """Pass on what the client gets of some events of the round; at its end see what is next."""
        self._ready += [out for event in events for out in self._round.feed(event)]
        if self._round.usage is not None:
            self._story.usage = total(self._round.before, self._round.usage)
        if events and not self._round.failed:
            return
        if not events and self._round.pending:
            self._answer = None
            self._nursery.start_soon(self._between_rounds)
        else:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._ready += self._round.close()

    async def _between_rounds(self) -> None:
        """Run the calls of the round that is over, and open the next one."""
        try:
            await self._held.aclose()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for place, call in enumerate(self._round.pending):
                    if place < MOST_CALLS:
                        self._start(call, nursery)
                    else:
                        call.output = f"Error: not run, because more than {MOST_CALLS} were called at once."
            self._story.tool_seconds += trio.current_time() - began
            if self._round.sent:
                self._remember()
                self._end()
            else:
                await self._next()
        except QproxyError as error:
            self._fail(error)
        except Exception as error:  # ours: the client is told, as everywhere
            log.exception("a round of tools failed", exc_info=error)
            self._fail(QproxyError("qproxy had an internal error between two rounds.", code="internal_error"))
        self._news.set()

    def _fail(self, error: QproxyError) -> None:
        self._over = True
        self._tell(Failed(error))

    def _start(self, call: Call, nursery: trio.Nursery) -> None:
        tool = self._tools.tools.get(call.name)
        if tool is None:  # nothing runs, so nobody is told
            call.output = f"Error: {calling.unknown(self._tools.tools, call.name)}"
            return
        self._results[call.id] = None
        self._tell(ServerCall(call.id, call.name, call.arguments, tool.server, tool.original or tool.name))
        nursery.start_soon(self._run, call, tool)

    async def _run(self, call: Call, tool: Tool) -> None:
        outcome = await calling.call(tool, call.arguments)
        call.output = outcome.text
        self._results[call.id] = ServerResult(call.id, call.name, outcome.text, outcome.ok, outcome.seconds)
        while self._results and (result := next(iter(self._results.values()))) is not None:
            del self._results[result.id]
            self._tell(result)

    async def _next(self) -> None:
        done = self._round
        before = total(done.before, done.usage) if done.usage else done.before
        self._number += 1
        self._story.rounds = self._number
        self._turn = next_turn(self._turn, done, last=self._number > self._tools.limit)
        self._round = self._new_round(before)
        turn = replace(self._turn, id=f"{self._asked.id}/{self._number}")  # ids of calls are made of it
        self._answer = await self._relay.open(turn, self._story, self._held)

    def _remember(self) -> None:
        """Keep what the client does not see of this answer, for when it comes back with its results."""
        if self._tools.memory is not None:
            hidden = [*self._turn.messages[self._began_with :], self._round.message(), *self._round.results()]
            ids = tuple(call.id for call in self._round.sent)
            self._tools.memory.keep((self._tools.place, ids), hidden)
