"""The parts of a session: translated events, usage, and errors as events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.wire.endpoints import openai_errors
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON, Usage

MAX_REMEMBERED = 512
"""Maximum number of ids kept to detect events sent twice, or in two pieces."""


@dataclass(frozen=True, slots=True)
class ToUpstream:
    """An event for the upstream."""

    event: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class ToClient:
    """An event for the client."""

    event: dict[str, JSON]


TranslatedEvent: TypeAlias = ToUpstream | ToClient


@dataclass(slots=True)
class SessionUsage:
    """The usage of a session so far."""

    responses: int = 0
    usage: Usage | None = None
    errors: int = 0
    finished: bool = False
    """Whether the server has finished the session."""
    ignored: list[str] = field(default_factory=list)
    pending_events: float = 0.0
    """Seconds of audio since the last commit."""

    @property
    def tokens(self) -> int:
        """Return input and output tokens, as far as reported."""
        return 0 if self.usage is None else self.usage.prompt_tokens + self.usage.completion_tokens


class EventIds:
    """A source of ids for qproxy's own events: a prefix and a count."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def error_event(error: QproxyError, event_id: str, cause: str | None = None) -> dict[str, JSON]:
    """Return a QproxyError as an event; `cause` is the client event that it is about."""
    return {
        "type": "error",
        "event_id": event_id,
        "error": {**openai_errors.error_object(error), "event_id": cause},
    }


def remember(memory: dict[str, Any], key: str, value: Any) -> None:
    """Store a value, and drop the oldest one beyond MAX_REMEMBERED."""
    memory[key] = value
    if len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]
