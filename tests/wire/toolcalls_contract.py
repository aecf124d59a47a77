"""The contract of `qproxy.wire` as a checker: what every stream of events must obey."""

from qproxy.wire.events import Arguments, Failed, Finish, ToolCall, ToolCallDelta, Usage

REASONS = {"stop", "length", "tool_calls", "content_filter"}


def check(events):
    """AssertionError when the events break the contract."""
    calls: dict[int, list[ToolCall]] = {}
    finished: dict[int, str] = {}
    for position, event in enumerate(events):
        assert not isinstance(event, ToolCallDelta), "an upstream's delta got through"
        if isinstance(event, Failed):
            assert position == len(events) - 1, "something follows a failure"
            return
        if isinstance(event, Usage) or not hasattr(event, "choice"):
            continue
        assert event.choice not in finished, "something follows a finish"
        opened = calls.setdefault(event.choice, [])
        if isinstance(event, ToolCall):
            assert event.index == len(opened), "indices are not dense"
            assert event.name, "a call has no name"
            assert event.id, "a call has no id"
            assert event.id not in {call.id for call in opened}, "an id is used twice"
            opened.append(event)
        elif isinstance(event, Arguments):
            assert event.index == len(opened) - 1, "calls are not one after the other"
            assert event.text, "an empty piece"
        elif isinstance(event, Finish):
            assert event.reason in REASONS
            if event.reason == "tool_calls":
                assert opened, "tool_calls without calls"
            if event.reason == "stop":
                assert not opened, "stop with calls"
            finished[event.choice] = event.reason
    assert set(calls) == set(finished), "a choice has no end"


def fold(events):
    """What a client adds up: per choice (text, thoughts, [(name, arguments)], reason)."""
    out: dict[int, dict] = {}
    for event in events:
        if not hasattr(event, "choice"):
            continue
        choice = out.setdefault(event.choice, {"text": "", "thought": "", "calls": [], "reason": None})
        kind = type(event).__name__
        if kind == "Text":
            choice["text"] += event.text
        elif kind == "Reasoning":
            choice["thought"] += event.text
        elif kind == "ToolCall":
            choice["calls"].append([event.id, event.name, ""])
        elif kind == "Arguments":
            choice["calls"][event.index][2] += event.text
        elif kind == "Finish":
            choice["reason"] = event.reason
    return out
