"""DashScope's native responses and every framing of server-sent events, from the upstream's bytes to the
client's."""

import json

import pytest

from qproxy.wire.endpoints import chat, responses
from tests.defaults import DECODE_LIMITS
from tests.wire.pipeline import DONE, call, chunk, cut, decoded, meaning, play, same, stream, texts
from tests.wire.pipeline import events as decode_events

NAME = "get_weather"
A, B = '{"city": "Paris"}', '{"city": "Rome"}'
PARIS, ROME = (NAME, A), (NAME, B)
COUNTS = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
HERMES = f'<tool_call>\n{{"name": "{NAME}", "arguments": {A}}}\n</tool_call>'


def native(content="", finish="null", **message):
    """Return the data of an event; each has usage."""
    choice = {"finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    return {"output": {"choices": [choice]}, "usage": COUNTS, "request_id": "r"}


def older(text, finish="null"):
    return {"output": {"text": text, "finish_reason": finish}, "usage": COUNTS, "request_id": "r"}


def entry(index, id, name, arguments):
    named = {} if name is None else {"name": name}
    return {"index": index, "id": id, "type": "function", "function": {**named, "arguments": arguments}}


def called(*entries, finish="null"):
    return native("", finish, tool_calls=list(entries))


def events(*items):
    """Return events in DashScope's framing: no spaces, the status in a comment, no end marker."""
    out = b""
    for number, item in enumerate(items):
        if isinstance(item, bytes):
            out += item
        else:
            data = json.dumps(item, ensure_ascii=False)
            out += f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{data}\n\n".encode()
    return out


def growing(make, text, *sizes):
    return [make(text[:size]) for size in sizes]


NATIVE = {
    "increments": ([native("He"), native("llo"), native("", "stop")], ("Hello", "", [], "stop")),
    "snapshots": ([*growing(native, "Hello you", 2, 5, 9), native("Hello you", "stop")],
        ("Hello you", "", [], "stop")),
    "older, increments": ([older("He"), older("llo"), older("", "stop")], ("Hello", "", [], "stop")),
    "older, snapshots": ([*growing(older, "Hello", 2, 5), older("Hello!", "stop")],
        ("Hello!", "", [], "stop")),
    "thoughts, snapshots": ([native(reasoning_content="h"), native(reasoning_content="hm"), native("A",
        reasoning_content="hm"), native("AB", "stop", reasoning_content="hm")], ("AB", "hm", [], "stop")),
    "a call": ([called(entry(0, "c1", NAME, "")), called(entry(0, "", None, '{"city": ')),
        called(entry(0, "", None, '"Paris"}')), called(entry(0, "", None, ""), finish="tool_calls")],
        ("", "", [PARIS], "tool_calls")),
    "calls interleaved": ([called(entry(0, "c1", NAME, "")), called(entry(1, "c2", NAME, "")),
        called(entry(0, "", None, A)), called(entry(1, "", None, B)), native("", "tool_calls")],
        ("", "", [PARIS, ROME], "tool_calls")),
    "calls, snapshots": ([*(called(entry(0, "c1", NAME, A[:k])) for k in (0, 5, 8, 17)),
        *(called(entry(0, "c1", NAME, A), entry(1, "c2", NAME, B[:k])) for k in (0, 9, 16)),
        called(entry(0, "c1", NAME, A), entry(1, "c2", NAME, B), finish="tool_calls")],
        ("", "", [PARIS, ROME], "tool_calls")),
    "calls, snapshots without ids": ([*(called(entry(0, "", NAME, A[:k])) for k in (0, 5, 8, 17)),
        called(entry(0, "", NAME, A), entry(1, "", NAME, B[:9])), called(entry(0, "", NAME, A),
            entry(1, "", NAME, B), finish="tool_calls")], ("", "", [PARIS, ROME], "tool_calls")),
    "arguments cut": ([called(entry(0, "c1", NAME, A[:8])), native("", "tool_calls")],
        ("", "", [(NAME, A[:8])], "length")),
    "calls in text": ([native(HERMES[:20]), native(HERMES[20:50]), native(HERMES[50:], "stop")],
        ("", "", [PARIS], "tool_calls")),
    "calls in text, snapshots": ([*growing(native, HERMES, 4, 20, 50), native(HERMES, "stop")],
        ("", "", [PARIS], "tool_calls")),
    "content in parts": ([native([{"text": "He"}]), native([{"text": "llo"}, {"text": "!"}]),
        native([], "stop")], ("Hello!", "", [], "stop")),
    "finish with payload": ([native("a"), native("b", "length")], ("ab", "", [], "length")),
    "no or empty reasons": ([native("a", None), native("b", ""), native("c", "stop")],
        ("abc", "", [], "stop")),
    "heartbeats": ([b":heartbeat\n\n", native("a"), b": ping\n\nevent: done\ndata: {}\n\n",
        native("b", "stop"), b":\n\n"], ("ab", "", [], "stop")),
    "an object as the reason": ([native("a"), native("b", {"type": "length", "length": 2})],
        ("ab", "", [], "length")),
    "an end mark": ([native("a"), native("b", "stop"), b"event: done\ndata: [DONE]\n\n"],
        ("ab", "", [], "stop")),
}  # fmt: skip


@pytest.mark.parametrize(("items", "expected"), NATIVE.values(), ids=NATIVE.keys())
@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_native(items, expected, dialect):
    """Native responses are decoded if they are expected, and detected otherwise."""
    assert meaning(events(*items), dialect=dialect) == expected
    assert meaning(events(*items).replace(b"\n", b"\r\n"), dialect=dialect) == expected


@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_each_requested_choice_must_end(dialect):
    """A native stream has no end marker: without the finish of one of two choices it is truncated."""

    def numbered(index, content, finish="null"):
        item = native(content, finish)
        item["output"]["choices"][0]["index"] = index
        return item

    sent = [numbered(0, "a"), numbered(0, "", "stop")]
    assert play([events(*sent)], body={"n": 1}, dialect=dialect)[1] is None
    assert play([events(*sent)], body={"n": 2}, dialect=dialect)[1] is not None
    both = [*sent, numbered(1, "b", "stop")]
    choices, error = play([events(*both)], body={"n": 2}, dialect=dialect)
    assert ([choice["text"] for choice in choices.values()], error) == (["a", "b"], None)


FOUND = {
    "search_results": [{"index": 1, "title": "Weather", "url": "https://example.com", "site_name": "Example"}]
}
MORE = {
    "search_results": [*FOUND["search_results"], {"index": 2, "title": "More", "url": "https://example.org"}]
}


def searched(found, item):
    return {**item, "output": {**item["output"], "search_info": found}}


SEARCHES = {
    "in the first event": ([searched(FOUND, native()), native("a"), native("b", "stop")], [FOUND]),
    "in every event": ([searched(FOUND, native(text)) for text in "ab"] + [searched(FOUND,
        native("", "stop"))], [FOUND]),
    "growing": ([searched(FOUND, native("a")), searched(MORE, native("b", "stop"))], [FOUND, MORE]),
    "behind the text": ([native("a"), native("b"), searched(FOUND, native("", "stop"))], [FOUND]),
    "behind the end": ([native("a"), native("b", "stop"), {"output": {"choices": [], "search_info": FOUND}}],
        [FOUND]),
    "in the older format": ([searched(FOUND, older("a")), older("b", "stop")], [FOUND]),
    "nothing": ([searched({}, native("a")), searched(None, native("b")), searched("x", native("", "stop"))],
        []),
}  # fmt: skip


@pytest.mark.parametrize(("items", "expected"), SEARCHES.values(), ids=SEARCHES.keys())
@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_search_results_reach_the_client(items, expected, dialect):
    """Search results are sent once, under their own name, in a chunk or response that keeps OpenAI's
    contract; in a whole one, last."""
    raw = events(*items)
    assert meaning(raw, dialect=dialect) == ("ab", "", [], "stop")
    turn = decoded({"stream_options": {"include_usage": True}}, stream=True)
    encoder = chat.Encoder(turn)
    answer = decode_events([raw], turn, dialect=dialect)
    out = b"".join([*(part for event in answer for part in encoder.feed(event)), *encoder.close()])
    frames = [json.loads(line.removeprefix("data: ")) for line in out.decode().split("\n\n")[:-2]]
    assert [frame["search_info"] for frame in frames if "search_info" in frame] == expected
    for whole in (chat.response(turn, answer), responses_of(answer)):
        assert whole.get("search_info") == (expected[-1] if expected else None)


def responses_of(answer):
    """Return the response that events add up to: that of a stream's last event, equal to the whole one."""
    turn = responses.decode(
        {"model": "m", "input": "hi", "stream": True},
        id="resp_1",
        created=7,
        **DECODE_LIMITS,
    )
    encoder = responses.Encoder(turn)
    frames = [part for event in answer for part in encoder.feed(event)] + encoder.close()
    last = json.loads(frames[-1].split(b"data: ")[1])["response"]
    assert last == json.loads(json.dumps(responses.response(turn, answer)))
    return last


BROKEN = {
    "the end of the bytes": [native("a")],
    "an error event": [native("a"),
        b'id:3\nevent:error\n:HTTP_STATUS/429\ndata:{"code":"Throttling","message":"slow","request_id":"r"}\n\n'],
    "an error without a name": [native("a"),
        b'data:{"code":"Throttling","message":"slow","request_id":"r"}\n\n'],
}  # fmt: skip


@pytest.mark.parametrize("items", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("dialect", ["dashscope", "compatible"])
def test_native_failures(items, dialect):
    """A native stream that is truncated, or ends in an error, ends in an error."""
    choices, error = same(events(*items), dialect=dialect)
    assert error is not None
    assert choices[0]["text"] == "a"


SAYS = "a\u2028b\u0085c\x0bd\x0ce\x1cf 🌊"
ITEMS = [chunk({"role": "assistant", "content": ""}), *texts(SAYS[:7], SAYS[7:]), chunk(None, "stop")]
BYTES = stream(ITEMS)
RAW = stream(ITEMS, DONE)
PRETTY = b"".join(
    b"".join(b"data: %b\n" % line for line in json.dumps(item, indent=1).encode().split(b"\n")) + b"\n"
    for item in ITEMS
)
SPELLINGS = {
    "as it is": RAW,
    "a byte-order mark": b"\xef\xbb\xbf" + RAW,
    "CRLF": RAW.replace(b"\n", b"\r\n"),
    "CR": RAW.replace(b"\n", b"\r"),
    "no space": RAW.replace(b"data: ", b"data:"),
    "comments": RAW.replace(b"data: ", b": x\ndata: "),
    "other fields": RAW.replace(b"data: ", b"id: a\x00b\nretry: x\nevent: message\nfoo: bar\ndata: "),
    "no end mark": BYTES,
    "no last blank line": BYTES[:-2],
    "an end mark without line end": BYTES + b"data: [DONE]",
    "an end mark with one line end": BYTES + b"data: [DONE]\n",
    "an end mark in blanks": BYTES + b"data:  [DONE] \n\n",
    "two end marks": RAW + b"data: [DONE]\n\n",
    "text after the end mark": RAW + stream(texts("late")),
    "no blank lines": RAW.replace(b"\n\n", b"\n"),
    "data: data:": RAW.replace(b"data: ", b"data: data: "),
    "data:data:": RAW.replace(b"data: ", b"data:data:"),
    "several lines an event": PRETTY + b"data: [DONE]\n\n",
    "named pings": RAW.replace(b"data: ", b'event: ping\ndata: {"type": "ping"}\n\ndata: '),
    "pings in words": b"event: ping\ndata: ping\n\n" + RAW,
    "empty data": RAW.replace(b"data: ", b"data:\n\ndata: "),
    "names alone": RAW.replace(b"data: ", b"event: x\n\ndata: "),
    "chunks without choices": stream({"choices": []}) + RAW,
    "error: null": stream([{**item, "error": None} for item in ITEMS], DONE),
}


@pytest.mark.parametrize("raw", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_framing(raw):
    """The response is the same for every framing of the events; only CR and LF end lines."""
    assert meaning(raw) == (SAYS, "", [], "stop")


def test_surrogates_split_across_text_deltas_are_joined():
    """A character split into two escapes, one in each delta, arrives whole, even if each chunk has a finish
    reason."""
    for reason in ("null", '""'):
        half = '{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":%s}]}'
        items = [half % ("a\\ud83c", reason), half % ("\\udf0ab", reason), chunk(None, "stop"), DONE]
        assert meaning(*items) == ("a🌊b", "", [], "stop")


def test_a_megabyte_in_one_line():
    """A whole file in one argument arrives complete, whole and in chunks of 64 KiB."""
    arguments = json.dumps({"content": "z" * (1 << 20)})
    raw = stream(call(0, "x", "write_file", arguments), chunk(None, "tool_calls"), DONE)
    for pieces in ([raw], cut(raw, range(0, len(raw), 65537))):
        choices, error = play(pieces)
        assert (choices[0]["calls"], error) == ([["write_file", arguments]], None)
