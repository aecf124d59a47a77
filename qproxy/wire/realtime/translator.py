"""One session, both ways: the text of one event in, the events to send out, one by one.

Lazily, so that the sender may wait between two. A client's mistake is an `error` event for the client, never
an exception.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime import session_config
from qproxy.wire.realtime.client_events import ClientEventTranslator
from qproxy.wire.realtime.server_events import ServerEventTranslator
from qproxy.wire.realtime.session import EventIds, SessionUsage, ToClient, TranslatedEvent, error_event

MAX_DEPTH = 128
MAX_VALUES = 20_000
"""Maximum values of a large event: it is audio or an image, with little around it, and is read in one
step."""


class SessionTranslator:
    """A translator for one session."""

    def __init__(
        self,
        model: str,
        *,
        modern: bool,
        transcriber: str = "",
        voices: Mapping[str, str] | None = None,
        strict: bool = False,
        event_prefix: str = "event_q",
    ) -> None:
        self.settings = session_config.SessionSettings(model, modern, transcriber)
        self.usage = SessionUsage()
        self._ids = EventIds(event_prefix)
        self._client_events = ClientEventTranslator(self.settings, self.usage, voices or {}, strict=strict)
        self._server_events = ServerEventTranslator(self.settings, self.usage, self._ids)

    def __repr__(self) -> str:
        return f"<Translation for {self.settings.model}, {self.usage.responses} responses>"

    def from_client(self, text: str | bytes) -> Iterator[TranslatedEvent]:
        """Yield the events to send for a client event."""
        event: JSON = None
        try:
            event = _parse_event(text)
            yield from self._client_events.translate(event)
        except QproxyError as error:
            cause = event.get("event_id") if isinstance(event, dict) else None
            yield ToClient(self.error(error, cause if isinstance(cause, str) else None))

    def from_upstream(self, text: str | bytes) -> Iterator[ToClient]:
        """Yield the events to send for an upstream event."""
        try:
            event = json_codec.loads(text, MAX_VALUES)
        except ValueError:
            event = None
        known = isinstance(event, dict) and isinstance(event.get("type"), str)
        if not known or json_codec.exceeds_depth(event, MAX_DEPTH):
            message = "The upstream sent something that is not an event."
            yield ToClient(self.error(QproxyError(message, status=502, code="upstream_invalid_response")))
            return
        for out in self._server_events.translate(event):
            yield ToClient(out)

    def error(self, error: QproxyError, cause: str | None = None) -> dict[str, JSON]:
        """Return a QproxyError as an event; `cause` is the client event that it is about."""
        return error_event(error, self._ids.new(), cause)


def _parse_event(text: str | bytes) -> dict[str, Any]:
    if not isinstance(text, str):
        raise RequestError("Events must be JSON in text frames, not binary.", code="invalid_event")
    try:
        event = json_codec.loads(text, MAX_VALUES)
    except ValueError as error:
        raise RequestError(f"The event is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise RequestError("An event must be an object with a 'type'.", param="type", code="invalid_event")
    if json_codec.exceeds_depth(event, MAX_DEPTH):
        raise RequestError(f"The event is nested more than {MAX_DEPTH} levels deep.", code="invalid_value")
    return event
