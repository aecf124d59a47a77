"""The contract of `qproxy.wire` for tests: the checker of `qproxy check`, and the fold of a client."""

from qproxy.wire.conformance import violations


def check(events):
    """Raise AssertionError if the events violate the contract."""
    found = list(violations(events))
    assert not found, found


def fold(events):
    """Return what a client accumulates: per choice (text, reasoning, [(name, arguments)], reason)."""
    out: dict[int, dict] = {}
    for event in events:
        if not hasattr(event, "choice"):
            continue
        choice = out.setdefault(event.choice, {"text": "", "thought": "", "calls": [], "reason": None})
        kind = type(event).__name__
        if kind == "TextDelta":
            choice["text"] += event.text
        elif kind == "ReasoningDelta":
            choice["thought"] += event.text
        elif kind == "ToolCallStart":
            choice["calls"].append([event.id, event.name, ""])
        elif kind == "ToolCallArgumentsDelta":
            choice["calls"][event.index][2] += event.text
        elif kind == "ChoiceFinished":
            choice["reason"] = event.reason
    return out
