"""What happened: one line a request, and counts.

Nothing here holds a prompt, an answer, a key or a token: a `Record` has names, numbers and codes only.
Counts live in `Counts`; whoever wants to export them reads `Counts.statistics()`.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from qproxy.wire.events import Usage

log = logging.getLogger("qproxy.request")


@dataclass(slots=True)
class Story:
    """What happened to one request, for the log, the metrics and the response's headers."""

    model: str = ""
    served_model: str = ""
    account: str | None = None
    tries: int = 0
    upstream_status: int | None = None
    upstream_request_id: str | None = None
    rules: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repairs: Counter[str] = field(default_factory=Counter)
    usage: Usage | None = None
    upstream_seconds: float = 0.0
    """Time spent waiting for the upstream."""
    tools: list[tuple[str, bool, float]] = field(default_factory=list)
    """Calls that this server ran: the tool, whether it went well, seconds."""
    tool_seconds: float = 0.0
    """Time spent waiting for them."""


@dataclass(slots=True)
class Record:
    """One request of a client, from its first byte to its last."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    error: str | None = None
    """The code (or type) of the error that was answered."""
    stream: bool = False
    outcome: str = "client_left"
    """ok, error, failed (an error after the first byte), client_left."""
    first_byte: float | None = None
    """Seconds from the start to the answer's head."""
    finish: str | None = None
    pieces: int = 0
    """Events of the answer so far: about as many as tokens."""
    story: Story = field(default_factory=Story)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def overhead(self) -> float:
        """Seconds spent here rather than waiting for the upstream or for tools."""
        return max(0.0, self.seconds - self.story.upstream_seconds - self.story.tool_seconds)

    def fields(self) -> dict[str, Any]:
        """The record as flat, loggable values; what is not known is left out."""
        story, usage = self.story, self.story.usage
        values: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "model": story.model or None,
            "served_model": story.served_model if story.served_model != story.model else None,
            "account": story.account,
            "stream": self.stream,
            "finish": self.finish,
            "tries": story.tries if story.tries > 1 else None,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "first_byte_ms": None if self.first_byte is None else round(self.first_byte * 1000, 1),
            "total_ms": round(self.seconds * 1000, 1),
            "upstream_request_id": story.upstream_request_id,
            "rules": ",".join(story.rules) or None,
            "tools": ",".join(f"{name}:{'ok' if ok else 'failed'}" for name, ok, _ in story.tools) or None,
            "repairs": ",".join(f"{kind}:{count}" for kind, count in story.repairs.items()) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


class Counts:
    """What has happened since the start."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.rules: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.in_flight = 0

    def finished(self, record: Record) -> None:
        """Count a request and write its line."""
        self.outcomes[record.outcome] += 1
        self.statuses[record.status] += 1
        self.rules.update(record.story.rules)
        self.repairs.update(record.story.repairs)
        if log.isEnabledFor(logging.INFO):
            log.info("%s", record.path, extra={"fields": record.fields()})


class Formatter(logging.Formatter):
    """One line a record: JSON, or `key=value` for people."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        head = {"time": when, "level": record.levelname.lower(), "logger": record.name}
        if fields is None:
            fields = {"message": record.getMessage()}
            if record.exc_info:
                fields["traceback"] = self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps({**head, **fields}, ensure_ascii=False, default=str)
        words = (f"{name}={value}" for name, value in fields.items() if name not in ("message", "traceback"))
        tail = f"\n{fields['traceback']}" if "traceback" in fields else ""
        return " ".join([when[11:], head["level"], fields.get("message", ""), *words]).strip() + tail
