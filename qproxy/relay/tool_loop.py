"""A response of several rounds, pulled like a response of one.

`ToolLoop` is an `EventStream`, so the code that streams or assembles a response does not depend on it:
`receive` returns the events of the current round, and between two rounds the tools' results in the order of
their calls.

The tools of a round run in parallel, and then the next round is opened, in *one* task of the request's
nursery, which the server opens around the whole request and cancels when the client has disconnected or the
response is complete. `receive` has no nursery of its own: it may time out (`ReceiveTimeout`), so that a
keep-alive comment can be sent, while the tools continue. Nor is there one on the request's exit stack: a
nursery belongs to the task that opened it, and the stack outlives the request's handler. The task has
finished before the stack closes what it opened.

The connection and the lease of a round are released before its tools run: a slow tool holds no account.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import trio

from qproxy.relay.event_stream import EventStream
from qproxy.relay.relay import Relay
from qproxy.relay.tool_rounds import ConversationKey, ToolRoundStore
from qproxy.relay.wakeup import Wakeup
from qproxy.telemetry import RelayRecord
from qproxy.tools import invoke
from qproxy.tools.tool import Tool
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    ApprovalRequest,
    Event,
    SearchInfo,
    ServerToolCall,
    ServerToolList,
    ServerToolResult,
    StreamFailed,
    Turn,
    Usage,
)
from qproxy.wire.search_results import results_of_output
from qproxy.wire.token_estimate import prompt_size
from qproxy.wire.tool_rounds import RoundCall, RoundStage, add_usage, next_turn, with_outputs

log = logging.getLogger("qproxy.relay")
MAX_CALLS_PER_ROUND = 32
"""Maximum calls that are run in one round."""


@dataclass(frozen=True, slots=True)
class RequestTools:
    """The tools of this server for one request."""

    tools: Mapping[str, Tool]
    limit: int
    """Maximum rounds in which tools may run; one more follows without them."""
    store: ToolRoundStore | None = None
    conversation_key: ConversationKey = ""
    """The key of the saved hidden part of this response."""
    search: str = ""
    """The name of the tool that searches the web for this request; "" for none."""
    approvals: frozenset[str] = frozenset()
    """The names of the tools whose calls the client wants to approve."""
    lists: tuple[ServerToolList, ...] = ()
    """The lists of tools that the client gets first."""

    def offered_tools(self, turn: Turn) -> Turn:
        """Return the turn with these tools among its own."""
        declared = [tool.declaration() for tool in self.tools.values()]
        return replace(turn, tools=[*turn.tools, *declared])


class ToolLoop(EventStream):
    """A response in progress, over several rounds."""

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
        self._calls_left = math.inf if turn.max_tool_calls is None else turn.max_tool_calls
        self._number = 1
        self._stage = self._start_round(Usage())
        self._stream: EventStream | None = None
        self._pending_events: list[Event] = list(tools.lists)
        self._finished = False
        self._wakeup = Wakeup()
        self._results: dict[str, ServerToolResult | None] = {}
        """Results of the running calls in order; a finished one waits for those before it."""

    def __repr__(self) -> str:
        return f"<ToolLoop in round {self._number}, {'finished' if self._finished else 'active'}>"

    async def start(self) -> None:
        """Open the first round. Raises QproxyError if it fails before its first event."""
        self._held = await self._stack.enter_async_context(AsyncExitStack())
        if self._client_turn.approved_calls:
            self._nursery.start_soon(self._run_guarded, self._run_approved)
        else:
            self._stream = await self._relay.open(self._turn, self._record, self._held)

    def interrupt(self) -> None:
        """Make the waiting `receive`, if any, raise ReceiveTimeout."""
        if self._stream is not None:
            self._stream.interrupt()
        else:
            self._wakeup.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Return the next events; empty at the end. Raises `ReceiveTimeout` at `until`, and loses nothing."""
        while True:
            if self._pending_events:
                events, self._pending_events = self._pending_events, []
                return events
            if self._finished:
                return []
            if self._stream is None:
                await self._wakeup.wait(until)
            else:
                self._process(await self._stream.receive(until))

    def _report_results(self, *events: Event) -> None:
        self._pending_events += events
        self._wakeup.set()

    def _start_round(self, before: Usage) -> RoundStage:
        number = self._number

        def our_id(place: int) -> str:
            return self._client_turn.call_id(0, f"{number}/{place}")

        return RoundStage(
            self._tools.tools.keys(),
            self._client_calls,
            our_id,
            before,
            separates_rounds=self._client_turn.separates_rounds,
            is_last=self._is_last(number),
        )

    def _is_last(self, number: int) -> bool:
        """Return whether tools are no longer offered; the client's own may be called beyond
        `max_tool_calls`."""
        return number > self._tools.limit or (self._calls_left <= 0 and not self._client_calls)

    def _process(self, events: list[Event]) -> None:
        """Return the client's events of some events of the round; at its end start the next step."""
        self._pending_events += [out for event in events for out in self._stage.feed(event)]
        if self._stage.usage is not None:
            self._record.usage = add_usage(self._stage.text_before, self._stage.usage)
        if events and not self._stage.failed:
            return
        if not events and self._stage.pending:
            self._stream = None
            self._nursery.start_soon(self._run_guarded, self._run_tools)
        else:
            self._end_round()

    def _end_round(self) -> None:
        self._finished = True
        self._pending_events += self._stage.close()

    async def _run_tools(self) -> None:
        """Run the calls of the finished round, and open the next one, unless the client must act first."""
        await self._held.aclose()
        waiting = [call for call in self._stage.pending if call.name in self._tools.approvals]
        await self._run_calls([(call, None) for call in self._stage.pending if call not in waiting])
        self._report_results(*map(self._approval_request, waiting))
        if self._stage.sent or waiting:
            await self._save_round()
            self._end_round()
        else:
            await self._next()

    async def _run_approved(self) -> None:
        """Run the calls that the client approved, and open the first round with their results."""
        approved = self._client_turn.approved_calls
        calls = [RoundCall(call.id, call.name, call.arguments) for call in approved]
        await self._run_calls([(call, call.id) for call in calls])
        outputs = {call.id: call.output for call in calls}
        self._turn = replace(self._turn, messages=with_outputs(self._turn.messages, outputs))
        self._stream = await self._relay.open(self._turn, self._record, self._held)

    async def _run_calls(self, calls: Sequence[tuple[RoundCall, str | None]]) -> None:
        """Run some calls, each with the id of its approval if it needed one."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for place, (call, approval) in enumerate(calls):
                if place >= MAX_CALLS_PER_ROUND:
                    call.output = (
                        f"Error: not run, because more than {MAX_CALLS_PER_ROUND} were called at once."
                    )
                elif self._calls_left <= 0:
                    call.output = "Error: not run, because the request's max_tool_calls are reached."
                else:
                    self._start(call, nursery, approval)
        self._record.tool_seconds += trio.current_time() - began

    def _approval_request(self, call: RoundCall) -> ApprovalRequest:
        tool = self._tools.tools[call.name]
        return ApprovalRequest(call.id, call.name, call.arguments, tool.server or "", tool.remote_name)

    async def _run_guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run a step between two rounds; its failure is the end of the response."""
        try:
            await work()
        except QproxyError as error:
            self._fail(error)
        except Exception as error:  # an internal error is reported to the client
            log.exception("a round of tools failed", exc_info=error)
            self._fail(
                QproxyError(
                    "Internal server error between two rounds of tools; see the qproxy log.",
                    code="internal_error",
                )
            )
        self._wakeup.set()

    def _fail(self, error: QproxyError) -> None:
        self._finished = True
        self._report_results(StreamFailed(error))

    def _start(self, call: RoundCall, nursery: trio.Nursery, approval: str | None) -> None:
        tool = self._tools.tools.get(call.name)
        if tool is None:  # nothing runs, so nothing is reported
            call.output = f"Error: {invoke.unknown_tool_message(self._tools.tools, call.name)}"
            return
        self._calls_left -= 1
        self._results[call.id] = None
        self._report_results(
            ServerToolCall(
                call.id,
                call.name,
                call.arguments,
                tool.server,
                tool.remote_name or tool.name,
                searches=call.name == self._tools.search,
                approval=approval,
            )
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
            if result.ok and result.name == self._tools.search:
                self._report_results(SearchInfo(results_of_output(result.output)))

    async def _next(self) -> None:
        done = self._stage
        before = add_usage(done.text_before, done.usage) if done.usage else done.text_before
        self._number += 1
        self._record.rounds += 1
        self._turn = next_turn(self._turn, done, last=self._is_last(self._number))
        self._turn = replace(self._turn, prior_text=self._turn.prior_text + done.text)
        self._stage = self._start_round(before)
        turn = replace(
            self._turn,
            id=f"{self._client_turn.id}/{self._number}",
            token_estimate=self._turn.token_estimate.resized(prompt_size(self._turn)),
        )  # ids of calls are derived from it
        self._stream = await self._relay.open(turn, self._record, self._held)

    async def _save_round(self) -> None:
        """Save the hidden rounds of this response for the client's next request."""
        if self._tools.store is not None and self._client_turn.store:
            hidden = [
                *self._turn.messages[self._opening_messages :],
                self._stage.message(),
                *self._stage.results(),
            ]
            ids = tuple(call.id for call in self._stage.sent)
            await self._tools.store.save(self._tools.conversation_key, ids, hidden)
