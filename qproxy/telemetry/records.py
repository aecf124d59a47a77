"""The record of one request: names, numbers and codes.

A record contains no prompt, response, key or token, so it may be logged, counted and stored. The log line,
the metrics and the ledger all derive from the same finished `RequestRecord`.

`RelayRecord` is filled in by the relay (accounts, attempts, tokens), `RequestRecord` by the server.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from qproxy.telemetry.response_tokens import ResponseTokens
from qproxy.wire import storable
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import Usage
from qproxy.wire.http_request import Headers

MAX_NAME_LENGTH = 200
"""Maximum characters of a path or a model's name in a record: clients choose them."""
MAX_MESSAGE_LENGTH = 500
"""Maximum characters of an error's message in a record: upstreams write them."""
SHUTTING_DOWN = "shutting_down"
"""Error code of requests that are still running at the shutdown timeout."""


class FailedAttempt(NamedTuple):
    """A failed attempt."""

    account: str
    code: str
    """The error's code, or its type if there is none."""
    message: str = ""


class ToolRunRecord(NamedTuple):
    """A run of a tool by the server."""

    name: str
    ok: bool
    seconds: float


class TraceProtocol(Protocol):
    """A trace of a running request (`telemetry.tracing`)."""

    def start_attempt(self, account: str, model: str, url: str) -> Headers:
        """Start the span of an attempt; return the headers that propagate the trace."""
        ...

    def end_attempt(self, error: str) -> None:
        """End the attempt's span with this error code."""
        ...

    def end(self, record: RequestRecord) -> None:
        """End the spans of the request and of its last attempt."""
        ...


class TracerProtocol(Protocol):
    """The interface of `telemetry.tracing.OtelTracer`."""

    def start(self, record: RequestRecord, header: Callable[[str], str | None]) -> TraceProtocol:
        """Start a trace, under the client's span if the request's headers have one."""
        ...


@dataclass(slots=True)
class RelayRecord:
    """The relay's record of one request, for the log, the metrics and response headers."""

    client: str = field(default="", repr=False)
    """Digest of the client's key; "" without one."""
    model: str = ""
    served_model: str = ""
    account: str | None = None
    attempts: int = 0
    rounds: int = 1
    """Rounds in which the server's tools ran, and the last one; each takes at least one attempt."""
    failures: list[FailedAttempt] = field(default_factory=list)
    upstream_status: int | None = None
    upstream_request_id: str | None = None
    rules: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    rule_notes: tuple[str, ...] = ()
    model_notes: tuple[str, ...] = ()
    """Which retired model another one stands for."""
    cache_moves: int = 0
    """Times that another account served than the one whose prompt cache had the beginning of the prompt."""
    fallback: str = ""
    """Why a fallback model serves the request (`config.fallbacks.CAUSES`); "" if its own does."""
    service_tier: str = ""
    """The tier that served the request: "flex", or "" for the usual one."""
    permits_model: Callable[[str], bool] | None = field(default=None, repr=False)
    """Whether the client may use a model; None permits no fallback."""
    repairs: Counter[str] = field(default_factory=Counter)
    usage: Usage | None = None
    """The tokens of the whole response that upstreams reported."""
    units: dict[str, float] = field(default_factory=dict)
    """What was used beside tokens, by `ledger.units.UNITS`."""
    responses: list[ResponseTokens] = field(default_factory=list)
    """The upstream responses that have started, one for each round or prompt."""
    upstream_seconds: float = 0.0
    """Seconds spent waiting for upstreams, including backoff."""
    tool_seconds: float = 0.0
    """Seconds spent waiting for tools."""
    trace: TraceProtocol | None = field(default=None, repr=False)
    trace_headers: Headers = field(default=(), repr=False)
    """Trace headers of the current attempt."""

    @property
    def retries(self) -> int:
        """Return the number of attempts after a failed one."""
        return max(0, self.attempts - self.rounds)

    @property
    def reported_attempts(self) -> int:
        """Return 1 and the retries: the attempts without those that further rounds of tools took."""
        return self.retries + 1 if self.attempts else 0

    def attempt_started(self, account: str, model: str, url: str) -> None:
        """Record the start of an attempt."""
        if self.trace is not None:
            self.trace_headers = self.trace.start_attempt(account, model, url)

    def attempt_failed(self, account: str, error: QproxyError) -> None:
        """Record a failed attempt."""
        code = error.code or error.type
        self.failures.append(FailedAttempt(account, code, error.message[:MAX_MESSAGE_LENGTH]))
        if self.trace is not None:
            self.trace.end_attempt(code)


@dataclass(slots=True)
class RequestRecord:
    """The record of one client request."""

    id: str
    method: str
    path: str
    endpoint: str = ""
    """The route without /v1 (`/chat/completions`); empty for an unknown one."""
    operation: str = ""
    """OpenTelemetry's name of the operation (`chat`), otherwise `endpoint`."""
    key: str | None = None
    """The name of the client's key, or its id."""
    client: str | None = None
    """The client's address (`access.client_address`)."""
    started_at: float = field(default_factory=time.perf_counter)
    ended_at: float | None = None
    status: int = 0
    error: str | None = None
    """The code (or type) of the error that was returned."""
    message: str | None = None
    """The message of that error, redacted once the request has finished."""
    uses_model: bool = False
    """Whether the route sends requests to a model."""
    requested_model: str = ""
    """The model that the body names, before anything is checked."""
    stream: bool = False
    outcome: str = "client_disconnected"
    """ok, error, internal_error or upstream_truncated (after the first byte, by qproxy or the upstream),
    client_disconnected, shutting_down."""
    first_byte: float | None = None
    """Seconds from the start to the response's head, which is sent with the first event."""
    response_started: float | None = None
    """Seconds from the start to the end of the response."""
    finish_reason: str | None = None
    chunks: int = 0
    """Events of the response so far."""
    tools: list[ToolRunRecord] = field(default_factory=list)
    relay: RelayRecord = field(default_factory=RelayRecord)

    def fail(self, error: QproxyError, outcome: str) -> None:
        """Record the final error; a shutdown is an outcome of its own."""
        self.note_error(error)
        self.outcome = SHUTTING_DOWN if error.code == SHUTTING_DOWN else outcome

    def note_error(self, error: QproxyError) -> None:
        """Record an error, and the model that a request which was rejected early has named."""
        self.error, self.message = error.code or error.type, error.message[:MAX_MESSAGE_LENGTH]
        self.relay.model = self.relay.model or storable.storable_text(self.requested_model)

    def redact(self, hide: Callable[[str], str]) -> None:
        """Hide the secrets in the messages of errors."""
        if self.message is not None:
            self.message = hide(self.message)
        if self.relay.failures:
            self.relay.failures = [
                failure._replace(message=hide(failure.message)) for failure in self.relay.failures
            ]

    @property
    def is_rejected(self) -> bool:
        """Return whether a request to a model was rejected before it reached one, other than for its key."""
        return self.uses_model and self.error is not None and self.status != 401

    def causes(self) -> str | None:
        """Return each failed attempt with its message, one a line; None without a message."""
        if not any(failure.message for failure in self.relay.failures):
            return None
        lines = (": ".join(filter(None, failure)) for failure in self.relay.failures)
        return "\n".join(" ".join(line.split()) for line in lines)

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.ended_at is None else self.ended_at) - self.started_at

    @property
    def overhead_seconds(self) -> float:
        """Return the seconds not spent waiting for upstreams or tools."""
        return max(0.0, self.seconds - self.relay.upstream_seconds - self.relay.tool_seconds)

    def tokens(self) -> tuple[int, int]:
        """Return tokens in and out, as reported or else estimated from the text."""
        if self.is_estimated:
            responses = self.relay.responses
            return sum(part.prompt for part in responses), sum(part.completion for part in responses)
        usage = self.relay.usage
        return (0, 0) if usage is None else (usage.prompt_tokens, usage.completion_tokens)

    @property
    def is_estimated(self) -> bool:
        """Return whether an upstream did not report its tokens, or not all of them."""
        return any(part.is_estimated for part in self.relay.responses)

    def seconds_per_token(self) -> float | None:
        """Return the seconds per output token after the first, None if unknown."""
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
        """Return the runs of each tool (`name:2,name!:1`, `!` for failed ones), None without any."""
        if not self.tools:
            return None
        return format_counts(Counter(tool.name if tool.ok else f"{tool.name}!" for tool in self.tools))

    def to_json(self) -> dict[str, Any]:
        """Return the record as flat values, without unknown ones."""
        record = self.relay
        prompt, completion = self.tokens()
        counted = record.usage is not None or bool(record.responses)
        values: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:MAX_NAME_LENGTH],
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "message": self.message,
            "client": self.client,
            "key": self.key,
            "model": record.model[:MAX_NAME_LENGTH] or None,
            "served_model": record.served_model[:MAX_NAME_LENGTH]
            if record.served_model not in ("", record.model)
            else None,
            "fallback": record.fallback or None,
            "tier": record.service_tier or None,
            "account": record.account,
            "stream": self.stream,
            "finish_reason": self.finish_reason,
            "attempts": record.reported_attempts if record.retries else None,
            "rounds": record.rounds if record.rounds > 1 else None,
            "failures": ",".join(f"{failed.account}:{failed.code}" for failed in record.failures) or None,
            "causes": self.causes(),
            "prompt_tokens": prompt if counted else None,
            "completion_tokens": completion if counted else None,
            "tokens_estimated": self.is_estimated or None,
            **record.units,
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
    """Return `kind:2,other:1`, or None if there are none."""
    return ",".join(f"{kind}:{count}" for kind, count in counts.items()) or None
