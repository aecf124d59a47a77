"""Upstream bytes through all of `wire`, as a client receives them: decoded, repaired, encoded, and read
strictly.

`same` plays a response whole, byte by byte and at seeded cuts, streamed and as a whole response, and fails
unless all results are equal. Cuts end at the decoder of server-sent events: the stages behind it see one
event after the other, at any cut, or all of them in a row.
"""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

from qproxy.wire import sse, tool_adapter, tool_calls
from qproxy.wire.conformance import anthropic as messages_contract
from qproxy.wire.dialects import DIALECTS, UpstreamTarget
from qproxy.wire.endpoints import anthropic, chat
from qproxy.wire.endpoints.anthropic.message import STOP_REASONS
from qproxy.wire.endpoints.anthropic.request import AnthropicRequest
from qproxy.wire.errors import QproxyError
from qproxy.wire.pipeline import Pipeline
from tests.anthropic_types import frames
from tests.wire.strict_reader import read_stream, read_whole

PROFILE = tool_calls.ModelProfile()
TARGET = UpstreamTarget("http://h/v1", "qwen")


def function(name, properties=None, **more):
    """Return a declared tool."""
    schema = {"type": "object", "properties": properties or {}, **more}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TEXT = {"type": "string"}
TOOLS = [
    function("get_weather", {"city": TEXT, "unit": TEXT, "days": {"type": "integer"}}),
    function("write_file", {"path": TEXT, "content": TEXT}),
    function("write", {"content": TEXT}),
    function("run_code", {"code": TEXT, "timeout": {"type": "integer"}}),
    function("now"),
]
BODY = {"model": "qwen", "messages": [{"role": "user", "content": "x"}], "tools": TOOLS}


def chunk(delta=None, finish=None, index=0, **extra):
    """Return one chunk of a stream, as data."""
    return {"id": "up", "choices": [{"index": index, "delta": delta or {}, "finish_reason": finish}], **extra}


def texts(*parts, index=0):
    return [chunk({"content": part}, index=index) for part in parts]


def thought(*texts, key="reasoning_content"):
    return [chunk({key: text}) for text in texts]


def entry(index=None, id=None, name=None, args=None):
    """Return a `tool_calls` entry with only the given keys; "-" stands for null."""
    made: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    for target, key, value in (
        (made, "index", index),
        (made, "id", id),
        (inner, "name", name),
        (inner, "arguments", args),
    ):
        if value is not None:
            target[key] = None if value == "-" else value
    if inner:
        made["function"] = inner
    return made


def calls(*entries, **delta):
    """Return a chunk with these entries."""
    return chunk({**delta, "tool_calls": list(entries)})


def call(*arguments, **options):
    """Return a chunk with one entry."""
    return calls(entry(*arguments, **options))


DONE = "[DONE]"


def stream(*items):
    """Return server-sent events of chunks (or lists of them), strings and raw bytes."""
    out = b""
    for item in items:
        if isinstance(item, list):
            out += stream(*item)
        elif isinstance(item, bytes):
            out += item
        else:
            text = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            out += f"data: {text}\n\n".encode()
    return out


def cut(raw, spots):
    edges = [0, *sorted({spot % max(1, len(raw)) for spot in spots} - {0}), len(raw)]
    return [raw[a:b] for a, b in pairwise(edges)]


def decoded(body, **more):
    return chat.decode(
        {**BODY, **body, **more}, id="chatcmpl-1", created=7, default_model=None, max_messages=10_000
    )


def server_sent(pieces):
    """Return the server-sent events of a response's bytes in these parts, and those of its end."""
    decoder = sse.Decoder()
    return [event for piece in pieces for event in decoder.feed(piece)], list(decoder.close())


class Recorded:
    """A stage that forwards its items, and then those of the end."""

    def __init__(self, last):
        self._last = last

    def feed(self, item):
        return [item]

    def close(self):
        return self._last


def events(pieces, turn, *, profile=PROFILE, repairs=None, dialect="compatible", first=None):
    """Return the events that a response's bytes, in these parts, decode to; or the parts that the stage
    `first` reads."""
    sent, undo = tool_adapter.adapt_tools(turn, names=True)
    stages: list[Any] = [
        first or sse.Decoder(),
        DIALECTS[dialect].decoder(TARGET),
        tool_calls.build_pipeline(sent, profile, repairs),
    ]
    chain = Pipeline(*stages, *([undo] if undo is not None else []))
    out = [event for piece in pieces for event in chain.feed(piece)]
    return out + chain.close()


def play(pieces, *, body=None, **options):
    """Return (choices, error) as a client of a stream accumulates them."""
    turn = decoded(body or {}, stream=True)
    encoder = chat.Encoder(turn)
    out = [part for event in events(pieces, turn, **options) for part in encoder.feed(event)]
    out += encoder.close()
    usage = turn.include_usage
    return read_stream(b"".join(out), usage=usage, legacy=turn.legacy_functions)


def play_whole(raw, *, body=None, **options):
    turn = decoded(body or {})
    try:
        answer = chat.response(turn, events([raw], turn, **options))
    except QproxyError as error:
        return None, {"message": error.message}
    return read_whole(json.loads(json.dumps(answer)), legacy=turn.legacy_functions), None


def as_message(raw, *, body=None, **options):
    """Return what a client of Anthropic's API accumulates of the same response; its stream keeps the
    grammar."""
    turn = replace(decoded(body or {}, stream=True), endpoint_state=AnthropicRequest())
    encoder = anthropic.Encoder(turn)
    out = [part for event in events([raw], turn, **options) for part in encoder.feed(event)]
    parsed = messages_contract.check_stream(frames(b"".join([*out, *encoder.close()])))
    broken = {violation.rule for violation in parsed.violations}
    assert broken <= {"tool-input"}, parsed.violations  # a model's output may be no JSON
    return parsed


def assert_same_message(parsed, choices, error):
    """Assert that both APIs have the same first choice, or that the response failed in both."""
    assert (parsed.error is None) == (error is None)
    if error is not None or 0 not in choices:
        return
    blocks = parsed.message["content"]
    message_parts = {
        kind: "".join(one[kind] for one in blocks if one["type"] == kind) for kind in ("text", "thinking")
    }
    assert (message_parts["text"], message_parts["thinking"]) == (choices[0]["text"], choices[0]["thought"])
    made = [block["name"] for block in blocks if block["type"] == "tool_use"]
    assert made == [name for name, _ in choices[0]["calls"]]
    reason = "tool_calls" if choices[0]["reason"] == "function_call" else choices[0]["reason"]
    assert parsed.message["stop_reason"] == STOP_REASONS[reason]


def same(*items, repairs=None, **options):
    """Return (choices, error), equal at any cut, streamed and whole."""
    raw = stream(*items)
    counted: Counter[str] = Counter()
    first = play([raw], repairs=counted, **options)
    if repairs is not None:
        repairs.update(counted)
    chance = random.Random(len(raw))
    several = [chance.sample(range(len(raw)), min(len(raw), size)) for size in (1, 3, 9, 40)]
    whole, last = server_sent([raw])
    for pieces in ([raw[at : at + 1] for at in range(len(raw))], *(cut(raw, spots) for spots in several)):
        assert server_sent(pieces) == (whole, last)
    again: Counter[str] = Counter()
    assert play(whole, first=Recorded(last), repairs=again, **options) == first
    assert again == counted
    response, failure = play_whole(raw, **options)
    assert_same_message(as_message(raw, **options), *first)
    if first[1] is None:
        assert response == first[0]
    else:
        assert failure is not None
    return first


def meaning(*items, **options):
    """Return (text, reasoning, calls, finish reason) of the only choice of a successful response."""
    choices, error = same(*items, **options)
    assert error is None, error
    (choice,) = choices.values()
    return choice["text"], choice["thought"], [tuple(call) for call in choice["calls"]], choice["reason"]
