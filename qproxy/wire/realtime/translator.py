"""One session, both ways: the text of one event in, what goes out for it, one by one.

Lazily, so who sends may wait between two.  A client's mistake is an `error` event for the client, never an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qproxy.wire import json_codec as jsontext
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime import session_config as settings
from qproxy.wire.realtime.client_events import Hearing
from qproxy.wire.realtime.server_events import Telling
from qproxy.wire.realtime.session import Ids, Out, Seen, ToClient, error_event

MAX_DEPTH = 128
MAX_VALUES = 20_000
"""Of a large event: it is sound or an image, with little around it, and is read in one go."""


class Translation:
    """Of one session."""

    def __init__(
        self,
        model: str,
        *,
        modern: bool,
        voices: Mapping[str, str] | None = None,
        strict: bool = False,
        event_prefix: str = "event_q",
    ) -> None:
        self.told = settings.Told(model, modern)
        self.seen = Seen()
        self._ids = Ids(event_prefix)
        self._hearing = Hearing(self.told, self.seen, voices or {}, strict=strict)
        self._telling = Telling(self.told, self.seen, self._ids)

    def __repr__(self) -> str:
        return f"<Translation for {self.told.model}, {self.seen.responses} responses>"

    def from_client(self, text: str | bytes) -> Iterator[Out]:
        """What goes out for an event of the client."""
        event: JSON = None
        try:
            event = _read(text)
            yield from self._hearing.said(event)
        except QproxyError as error:
            cause = event.get("event_id") if isinstance(event, dict) else None
            yield ToClient(self.error(error, cause if isinstance(cause, str) else None))

    def from_qwen(self, text: str | bytes) -> Iterator[ToClient]:
        """What goes out for an event of the model's server."""
        try:
            event = jsontext.loads(text, MAX_VALUES)
        except ValueError:
            event = None
        known = isinstance(event, dict) and isinstance(event.get("type"), str)
        if not known or jsontext.deeper_than(event, MAX_DEPTH):
            message = "The model's server said something that is no event."
            yield ToClient(self.error(QproxyError(message, status=502, code="upstream_invalid_response")))
            return
        for out in self._telling.told(event):
            yield ToClient(out)

    def error(self, error: QproxyError, cause: str | None = None) -> dict[str, JSON]:
        """An error of ours as an event; `cause` is the client's event that it is about."""
        return error_event(error, self._ids.new(), cause)


def _read(text: str | bytes) -> dict[str, Any]:
    if not isinstance(text, str):
        raise RequestError("Events are JSON in text frames; this was a binary one.", code="invalid_event")
    try:
        event = jsontext.loads(text, MAX_VALUES)
    except ValueError as error:
        raise RequestError(f"The event is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise RequestError("An event is an object with a 'type'.", param="type", code="invalid_event")
    if jsontext.deeper_than(event, MAX_DEPTH):
        raise RequestError(f"The event nests more than {MAX_DEPTH} levels deep.", code="invalid_value")
    return event
