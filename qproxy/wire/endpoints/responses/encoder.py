"""Responses of `/v1/responses`: events as server-sent events or as one whole response.

Both use `ResponseBuilder`; the stream sends its events, numbered without a gap, and the whole response is its
final state. A stream ends with `response.completed`, `response.incomplete` or `response.failed`; there is no
`[DONE]`.

After `response.failed` comes one `error` event. Its fields stand in it flat, as OpenAI documents them, and
once more under `error`, as OpenAI sends them: that is what makes the official clients raise.

OpenAPI `ResponseStreamEvent`.
"""

from __future__ import annotations

from collections.abc import Iterable

from qproxy.wire import json_codec, sse
from qproxy.wire.endpoints import openai_errors
from qproxy.wire.endpoints.responses import objects
from qproxy.wire.endpoints.responses.frame_log import FrameLog
from qproxy.wire.endpoints.responses.item_event import ItemEvent
from qproxy.wire.endpoints.responses.output import ResponseOutput
from qproxy.wire.endpoints.responses.request import request_of
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    Event,
    ExtraFields,
    SearchInfo,
    StreamDone,
    StreamFailed,
    Turn,
    Usage,
)


class ResponseBuilder:
    """The state of the response to a turn."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._request = request_of(turn)
        self._output = ResponseOutput(turn.id, self._request)
        self._usage: Usage | None = None
        self._reason = "stop"
        self._found: dict[str, JSON] = {}
        """The tier that serves it, and the upstream's `search_info`, if it searched."""

    def start(self) -> list[ItemEvent]:
        response = objects.response_object(self._turn, self._request.echo, "in_progress")
        return [
            ("response.created", {"response": response}),
            ("response.in_progress", {"response": response}),
        ]

    def queue(self) -> list[ItemEvent]:
        response = queued_response(self._turn)
        return [("response.created", {"response": response}), ("response.queued", {"response": response})]

    def begin(self) -> list[ItemEvent]:
        return self.start()[1:]

    def feed(self, event: Event) -> list[ItemEvent]:
        """Return the stream events of an event; further choices, which cannot be requested here, are
        ignored."""
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, ChoiceFinished):
            self._reason = event.reason
        elif isinstance(event, SearchInfo):
            self._found["search_info"] = event.info
            return self._output.feed(event)
        elif isinstance(event, ExtraFields) and event.level == "chunk" and "service_tier" in event.fields:
            self._found["service_tier"] = event.fields["service_tier"]
        elif (
            not isinstance(event, StreamDone | StreamFailed | ExtraFields)
            and getattr(event, "choice", 0) == 0
        ):
            return self._output.feed(event)
        return []

    def end(self) -> list[ItemEvent]:
        happenings = self._output.end(cut=self._reason in objects.REASONS)
        response = self.response()
        return [*happenings, (f"response.{response['status']}", {"response": response})]

    def fail(self, error: QproxyError) -> list[ItemEvent]:
        response = objects.response_object(
            self._turn, self._request.echo, "failed", self._output.snapshot(), error=error
        )
        return [("response.failed", {"response": response}), error_event(error)]

    def cancel(self) -> list[ItemEvent]:
        """Return the event of a cancelled response, for which OpenAI has no type of its own."""
        response = objects.response_object(
            self._turn, self._request.echo, "cancelled", self._output.snapshot()
        )
        return [("response.incomplete", {"response": response})]

    def response(self) -> dict[str, JSON]:
        """Return the finished response."""
        status = "incomplete" if self._reason in objects.REASONS else "completed"
        usage = self._usage
        if usage is None:  # clients need numbers; the ledger and a whole response's header mark them
            usage = objects.estimated_usage(self._turn.token_estimate, self._output.items)
        response = objects.response_object(
            self._turn,
            self._request.echo,
            status,
            self._output.items,
            usage=usage,
            reason=self._reason,
        )
        return {**response, **self._found}


class Encoder:
    """An encoder from events to server-sent events."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._builder = ResponseBuilder(turn)
        self._number = 0
        self._finished = False
        self.response: dict[str, JSON] | None = None
        """The response, once it has completed."""
        self.last_response: dict[str, JSON] | None = None
        """The response in the last of the events: completed, failed or cancelled."""
        self.log: FrameLog | None = None
        """A log that gets every frame."""

    def queue(self) -> list[bytes]:
        """Return the first frames of a response in the background, which `begin` follows."""
        return self._frames(self._builder.queue())

    def begin(self) -> list[bytes]:
        return self._frames(self._builder.begin())

    def feed(self, event: Event) -> list[bytes]:
        """Return the frames for an event."""
        if isinstance(event, StreamFailed):
            return self.fail(event.error)
        return [*self._started(), *self._frames(self._builder.feed(event))]

    def close(self) -> list[bytes]:
        """Return the frames that close the open item and the response; nothing after a failure."""
        if self._finished:
            return []
        self._finished = True
        frames = [*self._started(), *self._frames(self._builder.end())]
        self.response = self.last_response = self._builder.response()
        return frames

    def cancel(self) -> list[bytes]:
        """Return the frame that ends a cancelled response; nothing before the start and after the end."""
        if self._finished or not self._number:
            return []
        self._finished = True
        return self._last_frames(self._builder.cancel())

    def fail(self, error: QproxyError) -> list[bytes]:
        """Return the frames that report a failure of a started response."""
        self._finished = True
        return [*self._started(), *self._last_frames(self._builder.fail(error))]

    def error_event(self, error: QproxyError) -> bytes:
        """Return the frames that report a failure of a started response."""
        return b"".join(self.fail(error))

    def _last_frames(self, happenings: list[ItemEvent]) -> list[bytes]:
        self.last_response = happenings[0][1]["response"]
        return self._frames(happenings)

    def _started(self) -> list[bytes]:
        return [] if self._number else self._frames(self._builder.start())

    def _frames(self, happenings: Iterable[ItemEvent]) -> list[bytes]:
        frames = encode_events(happenings, self._number)
        self._number += len(frames)
        log = self.log
        if log is not None:
            log.frames += frames
            if len(log.frames) >= log.check_at and not log.measure():
                self.log = None
        return frames


def encode_events(happenings: Iterable[ItemEvent], number: int) -> list[bytes]:
    """Return a frame for each event; the first one has the sequence number `number`."""
    frames = []
    for kind, fields in happenings:
        data = {"type": kind, "sequence_number": number, **fields}
        frames.append(sse.encode(json_codec.dumps(data), kind))
        number += 1
    return frames


def error_event(error: QproxyError) -> ItemEvent:
    details = openai_errors.error_object(error)
    return "error", {**{key: details[key] for key in ("code", "message", "param")}, "error": details}


def queued_response(turn: Turn) -> dict[str, JSON]:
    """Return a response in the background before it is generated."""
    return objects.response_object(turn, request_of(turn).echo, "queued")


def response(turn: Turn, events: Iterable[Event]) -> dict[str, JSON]:
    """Return the response of some events. Raises the error of a `StreamFailed`."""
    progress = ResponseBuilder(turn)
    for event in events:
        if isinstance(event, StreamFailed):
            raise event.error
        progress.feed(event)
    progress.end()
    return progress.response()


def compaction_response(turn: Turn, events: Iterable[Event]) -> dict[str, JSON]:
    """Return a compaction alone: the client's own messages and the summary. Raises the error of a
    `StreamFailed`.

    OpenAPI `CompactResource`.
    """
    whole = response(turn, events)
    return {
        "id": whole["id"],
        "object": "response.compaction",
        "created_at": whole["created_at"],
        "output": [*request_of(turn).messages, *whole["output"]],
        "usage": whole["usage"],
    }
