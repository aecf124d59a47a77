"""What a session is made of: events on their way out, what has been seen so far, and errors as events."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qproxy.wire.endpoints import openai_errors
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import JSON, Usage

MAX_REMEMBERED = 512
"""Ids of events and items that are kept in mind: of a server that says things twice, or in two pieces."""


@dataclass(frozen=True, slots=True)
class ToUpstream:
    """An event for the model's server."""

    event: dict[str, JSON]


@dataclass(frozen=True, slots=True)
class ToClient:
    """An event for the client."""

    event: dict[str, JSON]


TranslatedEvent: TypeAlias = ToUpstream | ToClient


@dataclass(slots=True)
class SessionUsage:
    """What a session has come to, for those who count."""

    responses: int = 0
    usage: Usage | None = None
    errors: int = 0
    finished: bool = False
    """The server has said its last word."""
    ignored: list[str] = field(default_factory=list)
    pending_events: float = 0.0
    """Seconds of sound that went in since the last commit."""

    @property
    def tokens(self) -> int:
        """In and out, as far as the server has told."""
        return 0 if self.usage is None else self.usage.prompt_tokens + self.usage.completion_tokens


class EventIds:
    """Of events of our own: a prefix and a count."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._count = 0

    def new(self) -> str:
        self._count += 1
        return f"{self._prefix}{self._count}"


def error_event(error: QproxyError, event_id: str, cause: str | None = None) -> dict[str, JSON]:
    """An error of ours as an event; `cause` is the client's event that it is about."""
    return {
        "type": "error",
        "event_id": event_id,
        "error": {**openai_errors.error_object(error), "event_id": cause},
    }


def remember(memory: dict[str, Any], key: str, value: Any) -> None:
    """Remember this, and forget the oldest where there is too much."""
    memory[key] = value
    if len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]
