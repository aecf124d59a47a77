"""An answer of several rounds, pulled like an answer of one.

`ToolLoop` is `EventStream` as any other answer, so what streams or assembles an answer does not know of it: `receive` gives
the events of the round under way, and between two rounds what the tools say, in the order of their calls.

Who owns what: the tools of a round run in parallel, together with the opening of the next round, in *one* task of the
request's nursery, which the server opens around everything that is done for a request and cancels when the client
has left or the answer is whole.  It is not a nursery of `receive`'s own: a pull may give up at its time (`ReceiveTimeout`), so
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

from qproxy.relay.event_stream import EventStream
from qproxy.relay.relay import Relay
from qproxy.relay.tool_rounds import ConversationKey, ToolRoundStore
from qproxy.telemetry import RelayRecord
from qproxy.tools import invoke
from qproxy.tools.tool import Tool
from qproxy.transport import ReceiveTimeout
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Event, ServerToolCall, ServerToolResult, StreamFailed, Turn, Usage
from qproxy.wire.tool_rounds import RoundCall, RoundStage, add_usage, next_turn

log = logging.getLogger("qproxy.relay")
MAX_CALLS_PER_ROUND = 32
"""That are run of one round."""


@dataclass(frozen=True, slots=True)
class RequestTools:
    """What a request has of this server's tools."""

    tools: Mapping[str, Tool]
    limit: int
    """Rounds in which tools may run; then one more, without."""
    store: ToolRoundStore | None = None
    conversation_key: ConversationKey = ""
    """Under which the hidden part of this response is saved."""

    def offered_tools(self, turn: Turn) -> Turn:
        """The turn with these tools among its own."""
        declared = [tool.declaration() for tool in self.tools.values()]
        return replace(turn, tools=[*turn.tools, *declared])


class ToolLoop:
    """An answer under way, over as many rounds as it takes."""

    def __init__(
        self,
        relay: Relay,
        turn: Turn,
        tools: RequestTools,
        record: RelayRecord,
        stack: AsyncExitStack,
        nursery: trio.Nursery,
    ) -> None:
        self._relay = relay
        self._tools = tools
        self._record = record
        self._stack = stack
        self._nursery = nursery
        self._client_calls = frozenset(tool[tool["type"]]["name"] for tool in turn.tools)
        self._client_turn = turn
        self._turn = tools.offered_tools(turn)
        self._opening_messages = len(turn.messages)
        self._number = 1
        self._stage = self._start_round(Usage())
        self._stream: EventStream | None = None
        self._pending_events: list[Event] = []
        self._finished = False
        self._has_events = trio.Event()
        self._waiter: trio.CancelScope | None = None
        self._results: dict[str, ServerToolResult | None] = {}
        """Of the calls that run, in their order; one that has ended waits until those before it have."""

    def __repr__(self) -> str:
        return f"<Rounds, in round {self._number} {'over' if self._finished else 'under way'}>"

    async def start(self) -> None:
        """Open the first round; raises QproxyError when it never comes."""
        self._held = await self._stack.enter_async_context(AsyncExitStack())
        self._stream = await self._relay.open(self._turn, self._record, self._held)

    def interrupt(self) -> None:
        """Make the `receive` that is waiting, if there is one, raise Quiet."""
        if self._stream is not None:
            self._stream.interrupt()
        elif self._waiter is not None:
            self._waiter.cancel()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Every event that became certain; empty at the end.  Raises `ReceiveTimeout` at `until`, and loses nothing."""
        while True:
            if self._pending_events:
                events, self._pending_events = self._pending_events, []
                return events
            if self._finished:
                return []
            if self._stream is None:
                await self._wait_for_results(until)
            else:
                self._process(await self._stream.receive(until))

    async def read_all(self) -> list[Event]:
        """The rest of the answer."""
        events: list[Event] = []
        while piece := await self.receive():
            events.extend(piece)
        return events

    async def _wait_for_results(self, until: float) -> None:
        self._has_events = trio.Event()
        with trio.CancelScope(deadline=until) as self._waiter:
            try:
                await self._has_events.wait()
                return
            finally:
                self._waiter = None
        raise ReceiveTimeout

    def _report_results(self, *events: Event) -> None:
        self._pending_events += events
        self._has_events.set()

    def _start_round(self, before: Usage) -> RoundStage:
        number = self._number

        def our_id(place: int) -> str:
            return self._client_turn.call_id(0, f"{number}/{place}")

        last = number > self._tools.limit
        return RoundStage(self._tools.tools.keys(), self._client_calls, our_id, before, last)

    def _process(self, events: list[Event]) -> None:
        """Pass on what the client gets of some events of the round; at its end see what is next."""
        self._pending_events += [out for event in events for out in self._stage.feed(event)]
        if self._stage.usage is not None:
            self._record.usage = add_usage(self._stage.text_before, self._stage.usage)
        if events and not self._stage.failed:
            return
        if not events and self._stage.pending:
            self._stream = None
            self._nursery.start_soon(self._run_tools)
        else:
            self._end_round()

    def _end_round(self) -> None:
        self._finished = True
        self._pending_events += self._stage.close()

    async def _run_tools(self) -> None:
        """Run the calls of the round that is over, and open the next one."""
        try:
            await self._held.aclose()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for place, call in enumerate(self._stage.pending):
                    if place < MAX_CALLS_PER_ROUND:
                        self._start(call, nursery)
                    else:
                        call.output = (
                            f"Error: not run, because more than {MAX_CALLS_PER_ROUND} were called at once."
                        )
            self._record.tool_seconds += trio.current_time() - began
            if self._stage.sent:
                await self._save_round()
                self._end_round()
            else:
                await self._next()
        except QproxyError as error:
            self._fail(error)
        except Exception as error:  # ours: the client is told, as everywhere
            log.exception("a round of tools failed", exc_info=error)
            self._fail(QproxyError("qproxy had an internal error between two rounds.", code="internal_error"))
        self._has_events.set()

    def _fail(self, error: QproxyError) -> None:
        self._finished = True
        self._report_results(StreamFailed(error))

    def _start(self, call: RoundCall, nursery: trio.Nursery) -> None:
        tool = self._tools.tools.get(call.name)
        if tool is None:  # nothing runs, so nobody is told
            call.output = f"Error: {invoke.unknown_tool_message(self._tools.tools, call.name)}"
            return
        self._results[call.id] = None
        self._report_results(
            ServerToolCall(call.id, call.name, call.arguments, tool.server, tool.remote_name or tool.name)
        )
        nursery.start_soon(self._run_tool, call, tool)

    async def _run_tool(self, call: RoundCall, tool: Tool) -> None:
        outcome = await invoke.invoke(tool, call.arguments)
        call.output = outcome.text
        self._results[call.id] = ServerToolResult(
            call.id, call.name, outcome.text, outcome.ok, outcome.seconds
        )
        while self._results and (result := next(iter(self._results.values()))) is not None:
            del self._results[result.id]
            self._report_results(result)

    async def _next(self) -> None:
        done = self._stage
        before = add_usage(done.text_before, done.usage) if done.usage else done.text_before
        self._number += 1
        self._record.rounds = self._number
        self._turn = next_turn(self._turn, done, last=self._number > self._tools.limit)
        self._stage = self._start_round(before)
        turn = replace(self._turn, id=f"{self._client_turn.id}/{self._number}")  # ids of calls are made of it
        self._stream = await self._relay.open(turn, self._record, self._held)

    async def _save_round(self) -> None:
        """Save what the client does not see of this response, for its next request."""
        if self._tools.store is not None:
            hidden = [
                *self._turn.messages[self._opening_messages :],
                self._stage.message(),
                *self._stage.results(),
            ]
            ids = tuple(call.id for call in self._stage.sent)
            await self._tools.store.save(self._tools.conversation_key, ids, hidden)
