"""A judge of what we send to Anthropic's clients: the official SDK's own types, strictly.

As `openai_types`: every value has exactly the declared type, every literal is a declared one, every key is
declared. `frames` reads a stream as the SDK does, but refuses what it would skip.
"""

import json

from anthropic.types import ErrorResponse, Message, RawMessageStreamEvent

from tests.openai_types import judge


def judge_message(body):
    """A whole answer as the SDK's `Message`."""
    return judge(Message, body)


def judge_error(body):
    """An error's body as the SDK's `ErrorResponse`."""
    return judge(ErrorResponse, body)


def frames(raw):
    """(name, data) of each event; AssertionError for anything but an event of two lines, or a comment."""
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
    """The events of a stream, each judged by the SDK's types; the pings and the errors it reads by name."""
    found = frames(raw)
    for name, data in found:
        body = json.loads(data)
        assert body["type"] == name
        if name == "error":
            judge_error(body)
        elif name != "ping":
            judge(RawMessageStreamEvent, body)
    return found
