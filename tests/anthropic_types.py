"""Checks responses to Anthropic's clients against the official SDK's own types, strictly.

As in `openai_types`, every value has exactly the declared type, and every literal and key is declared.
`frames` parses a stream like the SDK, but raises for anything that the SDK would skip.
"""

import json

from anthropic.types import ErrorResponse, Message, RawMessageStreamEvent

from tests.openai_types import judge


def judge_message(body):
    """Return a whole response as the SDK's `Message`."""
    return judge(Message, body)


def judge_error(body):
    """Return an error's body as the SDK's `ErrorResponse`."""
    return judge(ErrorResponse, body)


def frames(raw):
    """Return (name, data) of each event; raise AssertionError for anything but an event of two lines, or a
    comment."""
    text = raw.decode()
    assert text == "" or text.endswith("\n\n")
    out = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if not block or block.startswith(": "):
            continue
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        out.append((name.removeprefix("event: "), data.removeprefix("data: ")))
    return out


def judge_stream(raw):
    """Return the events of a stream, each checked by the SDK's types; pings and errors by name."""
    found = frames(raw)
    for name, data in found:
        body = json.loads(data)
        assert body["type"] == name
        if name == "error":
            judge_error(body)
        elif name != "ping":
            judge(RawMessageStreamEvent, body)
    return found
