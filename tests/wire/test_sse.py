"""Server-sent events: the standard, and servers that deviate from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import sse
from qproxy.wire.errors import UpstreamError
from qproxy.wire.sse import ServerSentEvent
from tests.examples import examples

E = ServerSentEvent
CASES: dict[str, tuple[bytes, list[ServerSentEvent]]] = {
    "one event": (b"data: x\n\n", [E("x")]),
    "no space after the colon": (b"data:x\n\n", [E("x")]),
    "only one space is dropped": (b"data:  x\n\n", [E(" x")]),
    "crlf": (b"data: x\r\n\r\ndata: y\r\n\r\n", [E("x"), E("y")]),
    "cr": (b"data: x\r\rdata: y\r\r", [E("x"), E("y")]),
    "mixed line ends": (b"data: x\r\n\ndata: y\n\r\n", [E("x"), E("y")]),
    "byte-order mark": (b"\xef\xbb\xbfdata: x\n\n", [E("x")]),
    "only one byte-order mark": (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: y\n\n", [E("y")]),
    "several data lines": (b"data: a\ndata: b\n\n", [E("a\nb")]),
    "json over two lines": (b'data: {"a":\ndata: 1}\n\n', [E('{"a":\n1}')]),
    "two whole json lines": (b'data: {"a":1}\ndata: {"b":2}\n\n', [E('{"a":1}'), E('{"b":2}')]),
    "done without a blank line before": (b'data: {"a":1}\ndata: [DONE]\n\n', [E('{"a":1}'), E("[DONE]")]),
    "comment": (b": ping\n\ndata: x\n\n", [E("x")]),
    "empty data is nothing": (b"data:\n\ndata\n\n", []),
    "id and retry": (b"id: 1\nretry: 5\ndata: x\n\n", [E("x")]),
    "unknown field": (b"smell: x\ndata: y\n\n", [E("y")]),
    "named": (b"event: error\ndata: x\n\ndata: y\n\n", [E("x", "error"), E("y")]),
    "dashscope framing": (
        b'id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"a":1}\n\n',
        [E('{"a":1}', "result", 200)],
    ),
    "dashscope error": (
        b'id:1\nevent:error\n:HTTP_STATUS/429\ndata:{"code":"x"}\n\n',
        [E('{"code":"x"}', "error", 429)],
    ),
    "doubled prefix": (b"data: data: {}\n\n", [E("{}")]),
    "last event unfinished but whole": (b'data: {"a":1}', [E('{"a":1}')]),
    "done without a line end": (b"data: [DONE]", [E("[DONE]")]),
    "last event cut": (b'data: x\n\ndata: {"a":', [E("x")]),
    "unfinished words are discarded": (b"data: x\n", []),
    "line separators of unicode are text": ("data: a\u2028b\x85c\x0bd\x0ce\n\n".encode(),
        [E("a\u2028b\x85c\x0bd\x0ce")]),
    "characters of several bytes": ("data: 杭州🌧\n\n".encode(), [E("杭州🌧")]),
    "broken utf-8": (b"data: \xff\n\n", [E("\ufffd")]),
    "bare json body": (b'{"code":"x","message":"y"}', [E('{"code":"x","message":"y"}', "bare")]),
    "bare pretty json body": (b'{\n  "a": 1\n}\n', [E('{\n  "a": 1\n}', "bare")]),
    "html is nothing": (b"<html>\n</html>\n", []),
    "data with colons": (b"data: a:b: c\n\n", [E("a:b: c")]),
    "nothing": (b"", []),
}  # fmt: skip


def run(*pieces: bytes) -> list[ServerSentEvent]:
    decoder = sse.Decoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return events + decoder.close()


@pytest.mark.parametrize(("data", "events"), CASES.values(), ids=CASES.keys())
def test_whole_and_byte_by_byte(data, events):
    """The events do not depend on how the bytes are split."""
    assert run(data) == events
    assert run(*(data[i : i + 1] for i in range(len(data)))) == events


@given(st.lists(st.sampled_from([data for data, _ in CASES.values()]), min_size=1, max_size=3), st.data())
@examples(150)
def test_any_split(parts, data):
    """Any cut gives the events of the whole."""
    body = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert run(*pieces) == run(body)


def test_a_lone_cr_ends_an_event_at_once():
    """The event of a CR CR is emitted without waiting for the next byte."""
    assert sse.Decoder().feed(b"data: x\r\r") == [E("x")]


def test_a_long_line_is_joined_once():
    """A line in many parts is joined once."""
    decoder = sse.Decoder()
    assert decoder.feed(b"data: ") == []
    for _ in range(1000):
        assert decoder.feed(b"x" * 1000) == []
    assert [len(event.data) for event in decoder.feed(b"\n\n")] == [1_000_000]


def test_an_endless_event_is_rejected(monkeypatch):
    """An event without end raises an error at a bound."""
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    with pytest.raises(UpstreamError):
        sse.Decoder().feed(b"data: " + b"x" * 200)


def test_encoded_events_are_decoded():
    """The decoder reads the output of `encode`; a comment is not an event."""
    assert run(sse.encode(b"{}"), sse.comment("keep-alive"), sse.encode(b"1", "named")) == [
        E("{}"),
        E("1", "named"),
    ]
