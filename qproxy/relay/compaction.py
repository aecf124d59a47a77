"""Responses to conversations that are too long: summarized first, or without their oldest messages.

`Compactor.start` opens a response as the turn's `ContextPolicy` permits. A `CompactionStream` first pulls the
model's summary, of which the client sees that it is being written, and then the response that goes on from
it, if the client wants more than the summary. That response is opened in a task of the request's nursery, as
`tool_loop` opens its rounds, so that keep-alive comments can be sent meanwhile. The account of the summary is
released before.

Only a prompt that is rejected before the first event is shortened: afterwards nothing can be taken back.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import trio

from qproxy.relay.event_stream import EventStream
from qproxy.relay.relay import Relay
from qproxy.relay.wakeup import Wakeup
from qproxy.telemetry import RelayRecord
from qproxy.wire.compaction import Summary, clip, compacted_turn, shorten, split_messages, summary_turn
from qproxy.wire.dialects.error_mapping import CONTEXT_EXCEEDED
from qproxy.wire.errors import QproxyError, UpstreamError
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    CompactionDelta,
    CompactionDone,
    Event,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
    Usage,
)
from qproxy.wire.sealing import NONCE_BYTES, Sealer
from qproxy.wire.tool_rounds import add_usage

log = logging.getLogger("qproxy.relay")
MAX_SHORTENINGS = 6
"""How often a prompt is shortened; each time by what the server reports as too much, or by half."""
DEFAULT_THRESHOLD = 0.8
"""The share of a model's context above which a conversation is summarized, if the client names none."""
OpenResponse = Callable[[Turn], Awaitable[EventStream]]


class Compactor:
    """Opens responses, with conversations that are too long made shorter."""

    def __init__(self, sealer: Sealer, *, on_overflow: bool) -> None:
        """With `on_overflow`, a stored conversation that does not fit is summarized without being asked."""
        self.unseal = sealer.unseal
        self._sealer = sealer
        self._on_overflow = on_overflow

    def renewed(self, *, on_overflow: bool) -> Compactor:
        """Return one with other settings and the same keys."""
        return Compactor(self._sealer, on_overflow=on_overflow)

    def seal(self, summary: Summary) -> str:
        """Return a summary as the content of a compaction item."""
        return self._sealer.seal(summary.to_json(), secrets.token_bytes(NONCE_BYTES))

    async def start(
        self,
        respond: OpenResponse,
        relay: Relay,
        turn: Turn,
        record: RelayRecord,
        stack: AsyncExitStack,
        nursery: Callable[[], trio.Nursery],
    ) -> EventStream:
        """Return the started response; `respond` opens one as it is. Raises QproxyError if none started."""
        policy = turn.context
        assert policy is not None, "nothing to do"
        compaction = _Compaction(self, relay, record, stack, nursery, respond)
        if policy.only_summary:
            return await compaction.start(turn, None)
        threshold = policy.threshold or _default_threshold(relay, turn)
        if policy.compacts and threshold is not None and turn.token_estimate.prompt > threshold:
            parts = split_messages(turn, threshold)
            if parts is not None:
                return await compaction.start(parts[0], turn, parts[1])
        try:
            return await respond(turn)
        except QproxyError as error:
            if error.code != CONTEXT_EXCEEDED:
                raise
            if policy.compacts or (self._on_overflow and policy.is_stored and not policy.truncates):
                room = threshold if error.overflow is None else error.overflow.limit or threshold
                before, kept = split_messages(turn, room or 0) or (turn, ())
                return await compaction.start(before, turn, kept)
            if policy.truncates:
                return await _open_shortened(respond, turn, error)
            raise


def _default_threshold(relay: Relay, turn: Turn) -> int | None:
    """Return the threshold for a client that names none; None if the model's context is not known."""
    spec = relay.policy.catalog.get(relay.names.route(turn.model).served)
    return int(spec.context * DEFAULT_THRESHOLD) if spec.context and spec.knows("context") else None


async def _open_shortened(
    respond: OpenResponse, turn: Turn, error: QproxyError | None = None, *, clips: bool = False
) -> EventStream:
    """Return a response to as much of a turn as fits; `error` is that of the whole one.

    With `clips` long texts are cut where no message can be dropped.
    """
    for _ in range(MAX_SHORTENINGS):
        if error is not None:
            shorter = shorten(turn, error.overflow)
            if shorter is None and clips:
                shorter = clip(turn, error.overflow)
            if shorter is None:
                raise error
            turn = shorter
        try:
            return await respond(turn)
        except QproxyError as failure:
            if failure.code != CONTEXT_EXCEEDED:
                raise
            error = failure
    assert error is not None
    raise error


class _Compaction:
    """The compaction of one request."""

    def __init__(
        self,
        compactor: Compactor,
        relay: Relay,
        record: RelayRecord,
        stack: AsyncExitStack,
        nursery: Callable[[], trio.Nursery],
        respond: OpenResponse,
    ) -> None:
        self.seal = compactor.seal
        self._relay = relay
        self.record = record
        self._stack = stack
        self.nursery = nursery
        self._respond = respond

    async def start(self, before: Turn, turn: Turn | None, kept: tuple[JSON, ...] = ()) -> EventStream:
        """Return the response that begins with a summary of `before`, and goes on with `turn` if given."""
        held = await self._stack.enter_async_context(AsyncExitStack())

        async def summarize(part: Turn) -> EventStream:
            return await self._relay.open(summary_turn(part), self.record, held)

        async def go_on(summary: Summary) -> EventStream:
            assert turn is not None
            self.record.rounds += 1
            return await self._respond(compacted_turn(turn, summary))

        stream = await _open_shortened(summarize, before, clips=True)
        settings = () if before.context is None else before.context.settings
        draft = Summary("", turn is not None, kept, settings)
        return CompactionStream(stream, held, self, draft, None if turn is None else go_on)


class CompactionStream(EventStream):
    """A response that begins with a summary of its conversation."""

    def __init__(
        self,
        stream: EventStream,
        held: AsyncExitStack,
        request: _Compaction,
        draft: Summary,
        go_on: Callable[[Summary], Awaitable[EventStream]] | None,
    ) -> None:
        """`stream` has the text of the `draft`, and `held` closes its connection; `go_on` opens the rest of
        the response, if there is one."""
        self._stream: EventStream | None = stream
        self._held = held
        self._request = request
        self._draft = draft
        self._go_on = go_on
        self._text: list[str] = []
        self._reason = "stop"
        self._usage = Usage()
        self._pending: list[Event] = []
        self._summarized = False
        self._finished = False
        self._wakeup = Wakeup()

    def __repr__(self) -> str:
        return f"<CompactionStream {'with its summary' if self._summarized else 'being summarized'}>"

    def interrupt(self) -> None:
        """Make the waiting `receive`, if any, raise ReceiveTimeout."""
        if self._stream is not None:
            self._stream.interrupt()
        else:
            self._wakeup.interrupt()

    async def receive(self, until: float = math.inf) -> list[Event]:
        """Return the next events; empty at the end. Raises `ReceiveTimeout` at `until`, and loses nothing."""
        while True:
            if self._pending:
                events, self._pending = self._pending, []
                return events
            if self._finished:
                return []
            if self._stream is None:
                await self._wakeup.wait(until)
            elif self._summarized:
                return self._with_usage(await self._stream.receive(until))
            else:
                self._add(await self._stream.receive(until))

    def _with_usage(self, events: list[Event]) -> list[Event]:
        """Return events of the rest of the response; its usage is that of both parts."""
        out: list[Event] = []
        for event in events:
            if isinstance(event, Usage):
                event = self._request.record.usage = add_usage(self._usage, event)
            out.append(event)
        return out

    def _add(self, events: list[Event]) -> None:
        """Take some events of the summary; at its end start the rest."""
        progress = False
        for event in events:
            if isinstance(event, TextDelta):
                self._text.append(event.text)
            elif isinstance(event, Usage):
                self._usage = event
            elif isinstance(event, ChoiceFinished):
                self._reason = event.reason
            elif isinstance(event, StreamFailed):
                self._fail(event.error)
                return
            progress |= isinstance(event, TextDelta | ReasoningDelta)
        if progress:
            self._pending.append(CompactionDelta())
        if not events:
            self._finish_summary()

    def _finish_summary(self) -> None:
        summary = replace(self._draft, text="".join(self._text).strip())
        if self._reason != "stop" or not summary.text:
            what = "is empty" if not summary.text else f"is not complete (finish reason {self._reason!r})"
            message = (
                f"The model's summary of the conversation {what}: compact it earlier, or with another model."
            )
            self._fail(UpstreamError(message, code="compaction_failed"))
            return
        self._summarized = True
        self._pending.append(CompactionDone(self._request.seal(summary)))
        if self._go_on is None:
            self._finished = True
            reported = [self._usage] if self._usage != Usage() else []
            self._pending += [*reported, ChoiceFinished("stop"), StreamDone()]
        else:
            self._stream = None
            self._request.nursery().start_soon(self._continue, self._go_on, summary)

    async def _continue(self, go_on: Callable[[Summary], Awaitable[EventStream]], summary: Summary) -> None:
        """Open the rest of the response."""
        try:
            await self._held.aclose()
            self._stream = await go_on(summary)
        except QproxyError as error:
            self._fail(error)
        except Exception as error:  # an internal error is reported to the client
            log.exception("a response after a compaction failed", exc_info=error)
            message = "Internal server error after a compaction; see the qproxy log."
            self._fail(QproxyError(message, code="internal_error"))
        self._wakeup.set()

    def _fail(self, error: QproxyError) -> None:
        self._finished = True
        self._pending.append(StreamFailed(error))
