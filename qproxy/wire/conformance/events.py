"""The rules for every stream of events that leaves `tool_calls`: the contract in `qproxy.wire`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qproxy.wire.conformance.rules import Violation
from qproxy.wire.events import (
    ChoiceFinished,
    Event,
    RawToolCallDelta,
    StreamFailed,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Usage,
)

REASONS = frozenset(("stop", "length", "tool_calls", "content_filter"))


def violations(events: Iterable[Event]) -> Iterator[Violation]:
    """Yield every violation of the contract, in order."""
    calls: dict[int, list[ToolCallStart]] = {}
    finished: set[int] = set()
    failed = False
    for event in events:
        if failed:
            yield Violation("finish", "something follows a failure")
            return
        failed = isinstance(event, StreamFailed)
        if isinstance(event, RawToolCallDelta):
            yield Violation("call-index", "an upstream's raw delta was passed on")
        elif not isinstance(event, Usage) and hasattr(event, "choice"):
            if event.choice in finished:
                yield Violation("finish", "something follows a finish")
            yield from _choice_violations(event, calls.setdefault(event.choice, []))
            if isinstance(event, ChoiceFinished):
                finished.add(event.choice)
    if not failed:
        for choice in sorted(set(calls) - finished):
            yield Violation("finish", f"choice {choice} has no finish_reason")


def _choice_violations(event: Event, opened: list[ToolCallStart]) -> Iterator[Violation]:
    if isinstance(event, ToolCallStart):
        yield from _is_started(event, opened)
        opened.append(event)
    elif isinstance(event, ToolCallArgumentsDelta):
        if event.index != len(opened) - 1:
            yield Violation("call-order", f"a delta of call {event.index} after call {len(opened) - 1} began")
        if not event.text:
            yield Violation("arguments", "an empty piece")
    elif isinstance(event, ChoiceFinished):
        if event.reason not in REASONS:
            yield Violation("reason", f"finish_reason is {event.reason!r:.40}")
        if event.reason == "tool_calls" and not opened:
            yield Violation("reason", "finish_reason is tool_calls, but there are no calls")
        if event.reason == "stop" and opened:
            yield Violation("reason", "finish_reason is stop, but there are calls")


def _is_started(call: ToolCallStart, opened: list[ToolCallStart]) -> Iterator[Violation]:
    if call.index != len(opened):
        yield Violation("call-index", f"call {len(opened)} has the index {call.index}")
    if not call.name:
        yield Violation("call-name", f"call {len(opened)} begins without a name")
    if not call.id:
        yield Violation("call-id", f"call {len(opened)} begins without an id")
    elif call.id in {other.id for other in opened}:
        yield Violation("call-id", f"call {len(opened)} has the id of another")
