"""What happened to one request, as names, numbers and codes.

Nothing here holds a prompt, an answer, a key or a token, so a record may be logged, counted and kept.  The log line,
the metrics and the ledger are three readings of the same finished `Record`; none of them is told anything else.

`Story` is what the relay knows (accounts, tries, tokens), `Record` what the server knows around it.
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

LONGEST_NAME = 200
"""Characters of a path or a model's name that are worth keeping: a client may send any."""
SHUTTING_DOWN = "shutting_down"
"""The code of the error with which requests end that outlast a stopping server's patience."""


class Failure(NamedTuple):
    """A try that failed."""

    account: str
    code: str
    """The code, or where there is none the type, of the error."""


class ToolRun(NamedTuple):
    """A tool that this server ran for the request."""

    name: str
    ok: bool
    seconds: float


class Trace(Protocol):
    """A trace of the request while it runs (`observe.tracing`)."""

    def begin_try(self, account: str, model: str, url: str) -> Headers:
        """A try begins; the header fields that carry the trace on to its server."""
        ...

    def end_try(self, error: str) -> None:
        """The try failed with this code."""
        ...

    def end(self, record: Record) -> None:
        """The request is over, and with it the try that served it."""
        ...


class BeginsTraces(Protocol):
    """`observe.tracing.Tracer`, where traces are wanted."""

    def begin(self, record: Record, header: Callable[[str], str | None]) -> Trace:
        """The trace of a request that has just begun, under the client's own span if its header fields name one."""
        ...


@dataclass(slots=True)
class Story:
    """What happened to one request, for the log, the metrics and the response's headers."""

    model: str = ""
    served_model: str = ""
    account: str | None = None
    tries: int = 0
    rounds: int = 1
    """In which this server's tools ran, and the last one; each takes a try at least."""
    failures: list[Failure] = field(default_factory=list)
    upstream_status: int | None = None
    upstream_request_id: str | None = None
    rules: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    repairs: Counter[str] = field(default_factory=Counter)
    usage: Usage | None = None
    upstream_seconds: float = 0.0
    """Time spent waiting for the upstream, pauses before another try included."""
    tool_seconds: float = 0.0
    """Time spent waiting for tools."""
    trace: Trace | None = field(default=None, repr=False)
    carried: Headers = field(default=(), repr=False)
    """Header fields of the trace for the try under way."""

    @property
    def retries(self) -> int:
        """Tries after one that failed."""
        return max(0, self.tries - self.rounds)

    def began_try(self, account: str, model: str, url: str) -> None:
        """A request is about to go to an account's server."""
        if self.trace is not None:
            self.carried = self.trace.begin_try(account, model, url)

    def failed_try(self, account: str, error: QproxyError) -> None:
        """It did not bring an answer."""
        code = error.code or error.type
        self.failures.append(Failure(account, code))
        if self.trace is not None:
            self.trace.end_try(code)


@dataclass(slots=True)
class Record:
    """One request of a client, from its first byte to its last."""

    id: str
    method: str
    path: str
    endpoint: str = ""
    """The route that it took (`/chat/completions`), with or without /v1; empty for an unknown one."""
    key: str | None = None
    """The name, else the id, of the client's key."""
    client: str | None = None
    """The address that the request came from (`addresses`)."""
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    status: int = 0
    error: str | None = None
    """The code (or type) of the error that was answered."""
    stream: bool = False
    outcome: str = "client_left"
    """ok, error, failed (an error of ours after the first byte), upstream_cut (one of the upstream's), client_left,
    shutting_down."""
    first_byte: float | None = None
    """Seconds from the start to the answer's head, which goes out with the first event."""
    answered: float | None = None
    """Seconds from the start to the answer's end."""
    finish: str | None = None
    pieces: int = 0
    """Events of the answer so far: about as many as tokens."""
    prompt_estimate: int = 0
    """Tokens of the prompt, guessed where the upstream tells none."""
    tools: list[ToolRun] = field(default_factory=list)
    story: Story = field(default_factory=Story)

    def fail(self, error: QproxyError, outcome: str) -> None:
        """Note the error that the request ends with; the server's own end is an outcome by itself."""
        self.error = error.code or error.type
        self.outcome = SHUTTING_DOWN if error.code == SHUTTING_DOWN else outcome

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.ended is None else self.ended) - self.began

    @property
    def overhead(self) -> float:
        """Seconds spent here rather than waiting for the upstream or for tools."""
        return max(0.0, self.seconds - self.story.upstream_seconds - self.story.tool_seconds)

    def tokens(self) -> tuple[int, int]:
        """Tokens in and out: those that the upstream told, else a guess at what a client that left has got."""
        usage = self.story.usage
        if usage is not None:
            return usage.prompt_tokens, usage.completion_tokens
        return (self.prompt_estimate, self.pieces) if self.first_byte is not None else (0, 0)

    def seconds_per_token(self) -> float | None:
        """Of the answer's tokens after the first; None where that says nothing."""
        usage = self.story.usage
        if self.answered is None or self.first_byte is None or usage is None or usage.completion_tokens < 2:
            return None
        return (self.answered - self.first_byte) / (usage.completion_tokens - 1)

    def tool_counts(self) -> str | None:
        """How often each tool ran (`name:2,name!:1`, `!` for runs that failed); None where none did."""
        if not self.tools:
            return None
        return counted(Counter(tool.name if tool.ok else f"{tool.name}!" for tool in self.tools))

    def fields(self) -> dict[str, Any]:
        """The record as flat, loggable values; what is not known is left out."""
        story, usage = self.story, self.story.usage
        values: dict[str, Any] = {
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:LONGEST_NAME],
            "status": self.status,
            "outcome": self.outcome,
            "error": self.error,
            "client": self.client,
            "key": self.key,
            "model": story.model[:LONGEST_NAME] or None,
            "served_model": story.served_model[:LONGEST_NAME]
            if story.served_model not in ("", story.model)
            else None,
            "account": story.account,
            "stream": self.stream,
            "finish": self.finish,
            "tries": story.tries if story.retries else None,
            "rounds": story.rounds if story.rounds > 1 else None,
            "failures": ",".join(f"{account}:{code}" for account, code in story.failures) or None,
            "prompt_tokens": usage.prompt_tokens if usage else None,
            "completion_tokens": usage.completion_tokens if usage else None,
            "first_byte_ms": milliseconds(self.first_byte),
            "total_ms": milliseconds(self.seconds),
            "overhead_ms": milliseconds(self.overhead) if story.tries else None,
            "upstream_status": story.upstream_status if story.upstream_status != 200 else None,
            "upstream_request_id": story.upstream_request_id,
            "ignored": ",".join(story.ignored) or None,
            "rules": ",".join(story.rules) or None,
            "repairs": counted(story.repairs),
            "tools": self.tool_counts(),
        }
        return {name: value for name, value in values.items() if value is not None}


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def counted(counts: Counter[str]) -> str | None:
    """`kind:2,other:1`, or None for none."""
    return ",".join(f"{kind}:{count}" for kind, count in counts.items()) or None
