"""Translate each of Qwen's events for the client.

Token counts, transcriptions, items and errors get OpenAI's shape, and the client's own names for its model
and voice; a repeated event is sent once. Unknown events pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qproxy.wire import storable
from qproxy.wire.events import JSON, Usage
from qproxy.wire.realtime import event_names, session_config
from qproxy.wire.realtime.session import EventIds, SessionUsage, remember


class ServerEventTranslator:
    """A translator of one session's server events."""

    def __init__(self, message: session_config.SessionSettings, seen: SessionUsage, ids: EventIds) -> None:
        self._settings = message
        self._usage = seen
        self._ids = ids
        self._events: dict[str, None] = {}
        self._input_samples: dict[str, str] = {}
        """The certain part of a transcription, by item."""
        self._response_started = 0.0
        """The start of the current speech, in the server's milliseconds."""
        self._spoken_items: dict[str, float] = {}
        """Seconds of speech, by item."""
        self._calls: dict[str, str] = {}
        """Names of functions, by item."""
        self._open: dict[str, JSON] = {}
        """Items without their end event (GA clients), and the item before each."""

    def translate(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events for the client."""
        identity = event.get("event_id")
        if not isinstance(identity, str) or not identity:
            event["event_id"] = self._ids.new()
        elif identity in self._events:
            return
        else:
            remember(self._events, identity, None)
        event_names.to_beta(event)
        for out in self._translate(event):
            if self._settings.is_ga:
                event_names.to_ga(out)
            yield out

    def _translate(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield a beta event, and the events that the client gets because of it."""
        kind = event["type"]
        if kind in ("session.created", "session.updated"):
            session = event.get("session")
            event["session"] = session_config.to_client_session(
                session if isinstance(session, dict) else {}, self._settings
            )
        elif kind == "session.finished":
            self._usage.finished = True
            return
        elif kind == "error":
            self._usage.errors += 1
            event["error"] = _error_shape(event.get("error"))
        elif kind == "conversation.item.input_audio_transcription.text":
            yield from self._partial(event)
            return
        elif kind.startswith("conversation.item.input_audio_transcription."):
            identity = str(event.get("item_id"))
            self._input_samples.pop(identity, None)
            if kind.endswith(".completed"):
                event.setdefault(
                    "usage", {"type": "duration", "seconds": self._spoken_items.pop(identity, 0.0)}
                )
        elif kind.startswith("input_audio_buffer."):
            self._track_speech(event)
        elif kind == "response.function_call_arguments.done":
            event.setdefault("name", self._calls.get(str(event.get("item_id")), ""))
        elif kind in ("response.created", "response.done"):
            self._count_response(event)
        yield from self._items(event)

    def _items(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Add an item's begin or end event for a GA client; Qwen sends only one of the two."""
        kind, item = event["type"], event.get("item")
        if not isinstance(item, dict):
            yield event
            return
        identity = str(item.get("id"))
        if item.get("type") == "function_call" and isinstance(item.get("name"), str):
            remember(self._calls, identity, item["name"])
        if kind == "conversation.item.done":
            if self._settings.is_ga and self._open.pop(identity, ...) is not ...:
                yield event
            return
        if not self._settings.is_ga or kind not in ("conversation.item.created", "response.output_item.done"):
            yield event
            return
        if kind == "conversation.item.created":
            yield event
            remember(self._open, identity, event.get("previous_item_id"))
        whole = kind == "response.output_item.done" or item.get("status") != "in_progress"
        if whole and identity in self._open:
            yield {
                "event_id": self._ids.new(),
                "type": "conversation.item.done",
                "previous_item_id": self._open.pop(identity),
                "item": item,
            }
        if kind == "response.output_item.done":
            yield event

    def _partial(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the new part of a transcription; Qwen repeats the certain part."""
        identity, text = str(event.get("item_id")), event.get("text")
        before = self._input_samples.get(identity, "")
        if isinstance(text, str) and len(text) > len(before) and text.startswith(before):
            remember(self._input_samples, identity, text)
            kept = {key: value for key, value in event.items() if key not in ("text", "stash")}
            kind = "conversation.item.input_audio_transcription.delta"
            yield {"content_index": 0, **kept, "type": kind, "delta": text[len(before) :]}

    def _track_speech(self, event: dict[str, Any]) -> None:
        """Track the length of each piece of speech: a transcription's usage is in seconds."""
        kind, identity = event["type"].rpartition(".")[2], str(event.get("item_id"))
        if kind == "speech_started":
            self._response_started = _number(event.get("audio_start_ms"))
        elif kind == "speech_stopped":
            spoken = max(0.0, _number(event.get("audio_end_ms")) - self._response_started) / 1000
            remember(self._spoken_items, identity, spoken)
        elif kind == "committed":
            remember(
                self._spoken_items, identity, self._spoken_items.get(identity, self._usage.pending_events)
            )
            self._usage.pending_events = 0.0

    def _count_response(self, event: dict[str, Any]) -> None:
        response = event.get("response")
        if not isinstance(response, dict):
            return
        if "voice" in response and self._settings.voice:
            response["voice"] = self._settings.voice
        response.setdefault("object", "realtime.response")
        if event["type"] == "response.done":
            self._usage.responses += 1
            usage = response.get("usage")
            if isinstance(usage, dict):
                self._usage.usage = _item_added(self._usage.usage, usage)


def _number(value: JSON) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e12 else 0.0


def _error_shape(error: JSON) -> dict[str, JSON]:
    """Return a server's error with every key that OpenAI's has."""
    known = error if isinstance(error, dict) else {"message": error if isinstance(error, str) else ""}
    message = known.get("message")
    return {
        **known,
        "type": known.get("type") if isinstance(known.get("type"), str) else "server_error",
        "message": message if isinstance(message, str) and message else "The upstream reported an error.",
        **{
            key: known[key] if isinstance(known.get(key), str) else None
            for key in ("code", "param", "event_id")
        },
    }


def _item_added(before: Usage | None, usage: Mapping[str, JSON]) -> Usage:
    count = storable.parse_count
    prompt, completion = count(usage.get("input_tokens")), count(usage.get("output_tokens"))
    total = before or Usage(0, 0, 0)
    return Usage(
        total.prompt_tokens + prompt,
        total.completion_tokens + completion,
        total.total_tokens + (count(usage.get("total_tokens")) or prompt + completion),
    )
