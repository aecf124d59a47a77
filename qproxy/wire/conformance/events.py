"""What every stream of events must obey once it has left `toolcalls`: the promise written down in `qproxy.wire`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qproxy.wire.conformance.rules import Breach
from qproxy.wire.events import Arguments, Event, Failed, Finish, ToolCall, ToolCallDelta, Usage

REASONS = frozenset(("stop", "length", "tool_calls", "content_filter"))


def breaches(events: Iterable[Event]) -> Iterator[Breach]:
    """Every breach of the contract, in order."""
    calls: dict[int, list[ToolCall]] = {}
    finished: set[int] = set()
    failed = False
    for event in events:
        if failed:
            yield Breach("finish", "something follows a failure")
            return
        failed = isinstance(event, Failed)
        if isinstance(event, ToolCallDelta):
            yield Breach("call-index", "an upstream's delta got through")
        elif not isinstance(event, Usage) and hasattr(event, "choice"):
            if event.choice in finished:
                yield Breach("finish", "something follows a finish")
            yield from _of_a_choice(event, calls.setdefault(event.choice, []))
            if isinstance(event, Finish):
                finished.add(event.choice)
    if not failed:
        for choice in sorted(set(calls) - finished):
            yield Breach("finish", f"choice {choice} has no finish_reason")


def _of_a_choice(event: Event, opened: list[ToolCall]) -> Iterator[Breach]:
    if isinstance(event, ToolCall):
        yield from _begun(event, opened)
        opened.append(event)
    elif isinstance(event, Arguments):
        if event.index != len(opened) - 1:
            yield Breach(
                "call-order", f"a piece of call {event.index} after call {len(opened) - 1} has begun"
            )
        if not event.text:
            yield Breach("arguments", "an empty piece")
    elif isinstance(event, Finish):
        if event.reason not in REASONS:
            yield Breach("reason", f"finish_reason is {event.reason!r:.40}")
        if event.reason == "tool_calls" and not opened:
            yield Breach("reason", "finish_reason is tool_calls, and there are no calls")
        if event.reason == "stop" and opened:
            yield Breach("reason", "finish_reason is stop, though there are calls")


def _begun(call: ToolCall, opened: list[ToolCall]) -> Iterator[Breach]:
    if call.index != len(opened):
        yield Breach("call-index", f"call {len(opened)} has the index {call.index}")
    if not call.name:
        yield Breach("call-name", f"call {len(opened)} begins without a name")
    if not call.id:
        yield Breach("call-id", f"call {len(opened)} begins without an id")
    elif call.id in {other.id for other in opened}:
        yield Breach("call-id", f"call {len(opened)} has the id of another")
