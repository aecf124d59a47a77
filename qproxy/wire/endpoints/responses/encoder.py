"""The answer of `/v1/responses`: events in, server-sent events or one whole response out.

Both go through `Progress`, which knows what happens; the stream writes it down, numbered without a gap, and the
whole response is what it has come to.  A stream ends with `response.completed`, `response.incomplete` or
`response.failed`; there is no `[DONE]`.

After `response.failed` comes one `error` event.  Its fields stand in it flat, as OpenAI documents them, and once more
under `error`, as OpenAI sends them: that is what makes the official clients raise.

OpenAPI `ResponseStreamEvent`.
"""

from __future__ import annotations

from collections.abc import Iterable

from qproxy.wire import json_codec as jsontext
from qproxy.wire import sse
from qproxy.wire.endpoints.responses import objects
from qproxy.wire.endpoints.responses.output import Output
from qproxy.wire.endpoints.responses.output_items import Happening
from qproxy.wire.endpoints.responses.request import asked
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON, Done, Event, Failed, Finish, SearchInfo, Turn, Usage


class Progress:
    """How far the response to a turn has come."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._asked = asked(turn)
        self._output = Output(turn.id, self._asked)
        self._usage = Usage()
        self._reason = "stop"
        self._found: dict[str, JSON] = {}
        """`search_info`, where the model's server has searched."""

    def begin(self) -> list[Happening]:
        response = objects.response(self._turn, self._asked.echo, "in_progress")
        return [
            ("response.created", {"response": response}),
            ("response.in_progress", {"response": response}),
        ]

    def feed(self, event: Event) -> list[Happening]:
        """What happens because of an event; of further choices, which nobody can ask for here, nothing."""
        if isinstance(event, Usage):
            self._usage = event
        elif isinstance(event, Finish):
            self._reason = event.reason
        elif isinstance(event, SearchInfo):
            self._found = {"search_info": event.info}
        elif not isinstance(event, Done | Failed) and getattr(event, "choice", 0) == 0:
            return self._output.feed(event)
        return []

    def end(self) -> list[Happening]:
        happenings = self._output.end(cut=self._reason in objects.REASONS)
        response = self.response()
        return [*happenings, (f"response.{response['status']}", {"response": response})]

    def fail(self, error: QproxyError) -> list[Happening]:
        response = objects.response(
            self._turn, self._asked.echo, "failed", self._output.so_far(), error=error
        )
        details = error.body()["error"]
        flat = {key: details[key] for key in ("code", "message", "param")}
        return [("response.failed", {"response": response}), ("error", {**flat, "error": details})]

    def response(self) -> dict[str, JSON]:
        """The response that is over."""
        status = "incomplete" if self._reason in objects.REASONS else "completed"
        response = objects.response(
            self._turn,
            self._asked.echo,
            status,
            self._output.items,
            usage=self._usage,
            reason=self._reason,
        )
        return {**response, **self._found}


class Encoder:
    """Events in, server-sent events out."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        self._progress = Progress(turn)
        self._number = 0
        self._over = False
        self.response: dict[str, JSON] | None = None
        """The response, once it has ended well."""

    def feed(self, event: Event) -> list[bytes]:
        """The frames that say `event`."""
        if isinstance(event, Failed):
            return [self.failure(event.error)]
        return [*self._begun(), *self._frames(self._progress.feed(event))]

    def close(self) -> list[bytes]:
        """The end of what is open, and of the response; nothing after a failure."""
        if self._over:
            return []
        self._over = True
        frames = [*self._begun(), *self._frames(self._progress.end())]
        self.response = self._progress.response()
        return frames

    def failure(self, error: QproxyError) -> bytes:
        """The frames that say that a response which has begun cannot go on."""
        self._over = True
        return b"".join([*self._begun(), *self._frames(self._progress.fail(error))])

    def _begun(self) -> list[bytes]:
        return [] if self._number else self._frames(self._progress.begin())

    def _frames(self, happenings: Iterable[Happening]) -> list[bytes]:
        frames = []
        for kind, fields in happenings:
            data = {"type": kind, "sequence_number": self._number, **fields}
            frames.append(sse.encode(jsontext.dumps(data), kind))
            self._number += 1
        return frames


def whole(turn: Turn, events: Iterable[Event]) -> dict[str, JSON]:
    """The response that the events add up to; raises the error of a `Failed`."""
    progress = Progress(turn)
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        progress.feed(event)
    progress.end()
    return progress.response()
