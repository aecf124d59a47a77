"""What happened to one request, as names, numbers and codes.

Nothing here holds a prompt, an answer, a key or a token, so a record may be logged, counted and kept.  The log line,
the metrics and the ledger are three readings of the same finished `RequestRecord`; none of them is told anything else.

`RelayRecord` is what the relay knows (accounts, tries, tokens), `RequestRecord` what the server knows around it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Usage
from qproxy.wire.http_request import Headers

MAX_NAME_LENGTH = 200
"""Characters of a path or a model's name that are worth keeping: a client may send any."""
SHUTTING_DOWN = "shutting_down"
"""The code of the error with which requests end that outlast a stopping server's patience."""


class FailedAttempt(NamedTuple):
    """A try that failed."""

    account: str
    code: str
    """The code, or where there is none the type, of the error."""


class ToolRunRecord(NamedTuple):
    """A tool that this server ran for the request."""

    name: str
    ok: bool
    seconds: float


class TraceProtocol(Protocol):
    """A trace of the request while it runs (`telemetry.tracing`)."""

    def start_attempt(self, account: str, model: str, url: str) -> Headers:
        """A try begins; the header fields that carry the trace on to its server."""
        ...

    def end_attempt(self, error: str) -> None:
        """The try failed with this code."""
        ...

    def end(self, record: RequestRecord) -> None:
        """The request is over, and with it the try that served it."""
        ...


class TracerProtocol(Protocol):
    """`telemetry.tracing.OtelTracer`, where traces are wanted."""

    def start(self, record: RequestRecord, header: Callable[[str], str | None]) -> TraceProtocol:
        """The trace of a request that has just begun, under the client's own span if its header fields name one."""
        ...


@dataclass(slots=True)
class RelayRecord:
    """What happened to one request, for the log, the metrics and the response's headers."""

    model: str = ""
    served_model: str = ""
    account: str | None = None
    attempts: int = 0
    rounds: int = 1
    """In which this server's tools ran, and the last one; each takes a try at least."""
    failures: list[FailedAttempt] = field(default_factory=list)
    upstream_status: int | None = None
    upstream_request_id: str | None = None
    rules: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    rule_notes: tuple[str, ...] = ()
    model_notes: tuple[str, ...] = ()
    """Which retired model another one stands for."""
    repairs: Counter[str] = field(default_factory=Counter)
    usage: Usage | None = None
    upstream_seconds: float = 0.0
    """Time spent waiting for the upstream, pauses before another try included."""
    tool_seconds: float = 0.0
    """Time spent waiting for tools."""
    trace: TraceProtocol | None = field(default=None, repr=False)
    trace_headers: Headers = field(default=(), repr=False)
    """Header fields of the trace for the try under way."""

    @property
    def retries(self) -> int:
        """Tries after one that failed."""
        return max(0, self.attempts - self.rounds)

    def attempt_started(self, account: str, model: str, url: str) -> None:
        """A request is about to go to an account's server."""
        if self.trace is not None:
            self.trace_headers = self.trace.start_attempt(account, model, url)

    def attempt_failed(self, account: str, error: QproxyError) -> None:
        """It did not bring an answer."""
        code = error.code or error.type
        self.failures.append(FailedAttempt(account, code))
        if self.trace is not None:
            self.trace.end_attempt(code)


@dataclass(slots=True)
class RequestRecord:
    """One request of a client, from its first byte to its last."""

    id: str
    method: str
    path: str
    endpoint: str = ""
    """The route that it took (`/chat/completions`), with or without /v1; empty for an unknown one."""
    operation: str = ""
    """What the route asks of a model, by OpenTelemetry's name (`chat`), else `endpoint` once more."""
    key: str | None = None
    """The name, else the id, of the client's key."""
    client: str | None = None
    """The address that the request came from (`addresses`)."""
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None
    status: int = 0
    error: str | None = None
    """The code (or type) of the error that was answered."""
    stream: bool = False
    outcome: str = "client_disconnected"
    """ok, error, internal_error (an error of ours after the first byte), upstream_truncated (one of the upstream's), client_disconnected,
    shutting_down."""
    first_byte: float | None = None
    """Seconds from the start to the answer's head, which goes out with the first event."""
    response_started: float | None = None
    """Seconds from the start to the answer's end."""
    finish_reason: str | None = None
    chunks: int = 0
    """Events of the answer so far: about as many as tokens."""
    prompt_estimate: int = 0
    """Tokens of the prompt, guessed where the upstream tells none."""
    tools: list[ToolRunRecord] = field(default_factory=list)
    relay: RelayRecord = field(default_factory=RelayRecord)

    def fail(self, error: QproxyError, outcome: str) -> None:
        """Note the error that the request ends with; the server's own end is an outcome by itself."""
        self.error = error.code or error.type
        self.outcome = SHUTTING_DOWN if error.code == SHUTTING_DOWN else outcome

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.ended_at is None else self.ended_at) - self.started_at

    @property
    def overhead_seconds(self) -> float:
        """Seconds spent here rather than waiting for the upstream or for tools."""
        return max(0.0, self.seconds - self.relay.upstream_seconds - self.relay.tool_seconds)

    def tokens(self) -> tuple[int, int]:
        """Tokens in and out: those that the upstream told, else a guess at what a client that left has got."""
        usage = self.relay.usage
        if usage is not None:
            return usage.prompt_tokens, usage.completion_tokens
        return (self.prompt_estimate, self.chunks) if self.first_byte is not None else (0, 0)

    def seconds_per_token(self) -> float | None:
        """Of the answer's tokens after the first; None where that says nothing."""
        usage = self.relay.usage
        if (
            self.response_started is None
            or self.first_byte is None
            or usage is None
            or usage.completion_tokens < 2
        ):
            return None
        return (self.response_started - self.first_byte) / (usage.completion_tokens - 1)

    def tool_counts(self) -> str | None:
        """How often each tool ran (`name:2,name!:1`, `!` for runs that failed); None where none did."""
        if not self.tools:
            return None
        return format_counts(Counter(tool.name if tool.ok else f"{tool.name}!" for tool in self.tools))

    def to_json(self) -> dict[str, Any]:
        """The record as flat, loggable values; what is not known is left out."""
        record, usage = self.relay, self.relay.usage
        values: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:MAX_NAME_LENGTH],
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "client": self.client,
            "key": self.key,
            "model": record.model[:MAX_NAME_LENGTH] or None,
            "served_model": record.served_model[:MAX_NAME_LENGTH]
            if record.served_model not in ("", record.model)
            else None,
            "account": record.account,
            "stream": self.stream,
            "finish_reason": self.finish_reason,
            "attempts": record.attempts if record.retries else None,
            "rounds": record.rounds if record.rounds > 1 else None,
            "failures": ",".join(f"{account}:{code}" for account, code in record.failures) or None,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "first_byte_ms": to_milliseconds(self.first_byte),
            "total_ms": to_milliseconds(self.seconds),
            "overhead_ms": to_milliseconds(self.overhead_seconds) if record.attempts else None,
            "upstream_status": record.upstream_status if record.upstream_status != 200 else None,
            "upstream_request_id": record.upstream_request_id,
            "ignored": ",".join(record.ignored) or None,
            "rules": ",".join(record.rules) or None,
            "repairs": format_counts(record.repairs),
            "tools": self.tool_counts(),
        }
        return {name: value for name, value in values.items() if value is not None}


def to_milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def format_counts(counts: Counter[str]) -> str | None:
    """`kind:2,other:1`, or None for none."""
    return ",".join(f"{kind}:{count}" for kind, count in counts.items()) or None
