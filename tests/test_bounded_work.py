"""No event of a client or an upstream blocks the loop: long work is done in slices, or in a thread, and is
linear in its input."""

import json
import sys
import threading
from collections import Counter
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy.relay.event_stream import MAX_EVENTS, SLICE, UpstreamEventStream
from qproxy.telemetry import RelayRecord, ResponseTokens
from qproxy.wire import json_codec, raw_json, sse, tool_calls
from qproxy.wire.events import ChoiceFinished, RawToolCallDelta, ReasoningDelta, TextDelta, Turn
from qproxy.wire.pipeline import Pipeline
from qproxy.wire.realtime.translator import MAX_VALUES, SessionTranslator
from qproxy.wire.token_ratios import TokenEstimate
from qproxy.wire.tool_calls import ModelProfile
from tests.helpers import HELLO, served, world
from tests.realtime_client import UPGRADE

MIB = 1024 * 1024
SCHEMA = {"type": "object", "properties": {"a": {"type": "number"}}}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


class Source:
    """An upstream's body in these reads."""

    def __init__(self, *reads):
        self._reads = list(reads)

    def interrupt(self):
        pass

    async def receive(self, until):
        await trio.lowlevel.checkpoint()
        return self._reads.pop(0) if self._reads else b""


class Recorder:
    """A stage that records its input, the thread, and the count of other tasks' turns."""

    def __init__(self):
        self.turns = 0
        self.fed = []

    def feed(self, item):
        size = len(item) if isinstance(item, bytes) else len(item.data)
        self.fed.append((self.turns, size, threading.current_thread() is threading.main_thread()))
        return [TextDelta("x")] if isinstance(item, sse.ServerSentEvent) else []

    def close(self):
        return []

    async def count_turns(self, task_status=trio.TASK_STATUS_IGNORED):
        """Count the turns of a task that is always ready."""
        task_status.started()
        while True:
            self.turns += 1
            await trio.lowlevel.checkpoint()


async def read_events(recorder, front, *reads):
    """Return all events of a response with these reads, while another task is ready."""
    answer = UpstreamEventStream(
        RelayRecord(),
        ResponseTokens(TokenEstimate()),
        source=cast("Any", Source(*reads)),
        front=front,
        back=Pipeline(),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.count_turns)
        events = await answer.read_all()
        nursery.cancel_scope.cancel()
    return events


async def test_a_long_read_is_processed_in_slices():
    """After each slice of a read of any length the other tasks get their turn."""
    recorder = Recorder()
    await read_events(recorder, Pipeline(recorder), b"x" * MIB)
    assert sum(size for _, size, _ in recorder.fed) == MIB
    assert max(size for _, size, _ in recorder.fed) <= SLICE
    turns = [turn for turn, _, _ in recorder.fed]
    # Trio runs ready tasks in any order: other tasks ran at least between a slice and the next but one.
    assert all(later > earlier for earlier, later in zip(turns, turns[2:], strict=False))


async def test_a_short_read_is_one_slice():
    """A short read, like nearly every one, costs no extra checkpoint."""
    recorder = Recorder()
    await read_events(recorder, Pipeline(recorder), b"x" * SLICE)
    assert [size for _, size, _ in recorder.fed] == [SLICE]


async def test_a_long_event_has_a_thread():
    """An event beyond a slice is processed in a thread; a shorter one stays in the loop."""
    recorder = Recorder()
    long, short = b"data: %b\n\n" % (b"<" * MIB), b"data: short\n\n"
    events = await read_events(
        recorder,
        Pipeline(sse.Decoder(), recorder),
        short,
        *[long[at : at + 65536] for at in range(0, len(long), 65536)],
    )
    assert len(events) == 2
    assert [(size, in_main_thread) for _, size, in_main_thread in recorder.fed] == [(5, True), (MIB, False)]


async def test_many_events_are_delivered_in_batches():
    """The writer gets a bounded number of events at a time, and all of them in order."""
    count = 2 * MAX_EVENTS + 1
    answer = UpstreamEventStream(
        RelayRecord(), ResponseTokens(TokenEstimate()), source=None, front=Pipeline(), back=Pipeline()
    )
    answer.feed([TextDelta(str(number)) for number in range(count)], last=True)
    await answer.wait_started()
    given: list[Any] = [await answer.receive() for _ in range(4)]
    assert [len(events) for events in given] == [MAX_EVENTS, MAX_EVENTS, 1, 0]
    assert [event.text for events in given for event in events] == list(map(str, range(count)))


async def test_a_large_body_has_a_thread(monkeypatch):
    """A client's body is parsed in the loop while it is small."""
    in_main_thread, plain = [], raw_json.parse_body

    def read(data):
        in_main_thread.append(threading.current_thread() is threading.main_thread())
        return plain(data)

    monkeypatch.setattr(raw_json, "parse_body", read)
    async with world() as it:
        for size in (10, json_codec.LARGE):
            content = [{"role": "user", "content": "x" * size}]
            status, _, _ = await it.post({**HELLO, "messages": content})
            assert status == 200
    assert in_main_thread == [True, False]


async def test_a_body_of_too_many_values(monkeypatch):
    """A body may be as large as the setting allows, but not have millions of values, in any field."""
    monkeypatch.setattr(json_codec, "MAX_VALUES", 50_000)
    many: list[Any] = [[]] * 50_001
    async with world() as it:
        for further in (
            {"metadata": many},
            {"a": many[:30_000], "b": many[:30_000]},
            {str(n): n for n in range(50_001)},
        ):
            status, _, body = await it.post({**HELLO, **further})
            assert (status, body["error"]["code"]) == (400, None)
            assert "more than 50000 values" in body["error"]["message"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.sampled_from(["", "x", ",", "]", "}", '"', "\x00", " NaN", "1" * 2000]), st.integers(0, 40))
def test_large_texts_are_parsed_like_small_ones(value, fault, place):
    """Parsing in parts or at once gives the same value, or an error at the same place."""
    text = json.dumps(value)
    text = text[:place] + fault + text[place:]
    padded = '{"a": "' + "x" * json_codec.LARGE + '", "b": ' + text + "}"

    def read(reader, text):
        try:
            return reader(text)
        except ValueError as error:
            return str(error).partition(":")[0]

    for reader in (
        json_codec.loads,
        json_codec.loads_strict,
        json_codec.loads_lenient,
        lambda text: raw_json.parse_body(text.encode()),
    ):
        large, small = read(reader, padded), read(reader, '{"a": "", "b": ' + text + "}")
        if isinstance(small, dict) and isinstance(large, dict):
            large["a"] = small["a"]
        assert large == small


@pytest.mark.parametrize("depth", [1000, 100_000, MIB])
@pytest.mark.parametrize("opener", ["[", '{"a":'])
def test_depth_is_an_error_like_any_other(depth, opener):
    """Every JSON parser rejects a nesting deeper than Python's stack, small or large."""
    text = opener * depth
    readers = (
        json_codec.loads,
        json_codec.loads_strict,
        json_codec.loads_lenient,
        lambda text: json_codec.loads_prefix(text, 0),
    )
    for reader in readers:
        with pytest.raises(ValueError, match=r"deep|Expecting"):
            reader(text)
    with pytest.raises(ValueError, match=r"deep|Expecting"):
        raw_json.parse_body(text.encode())


def pieces(kind, text):
    return [kind(one) for one in text]


def arguments(text):
    return [
        RawToolCallDelta(0, "call_1", "f", "", 0),
        *(RawToolCallDelta(0, None, None, one, 0) for one in text),
    ]


STREAMS = {
    "text": lambda n: pieces(TextDelta, "word " * (n // 5)),
    "angles": lambda n: pieces(TextDelta, "<" * n),
    "openers": lambda n: pieces(TextDelta, "<tool_call>" * (n // 11)),
    "closers": lambda n: pieces(TextDelta, "</tool_call>" * (n // 12)),
    "functions": lambda n: pieces(TextDelta, "<function=" * (n // 10)),
    "flowers": lambda n: pieces(TextDelta, "\n✿FUNCTION✿" * (n // 11)),
    "blanks": lambda n: pieces(TextDelta, " " * n),
    "fences": lambda n: pieces(TextDelta, "```json\n{\n" * (n // 10)),
    "thoughts": lambda n: pieces(TextDelta, "<think>" + "</think" * (n // 7)),
    "blank thoughts": lambda n: pieces(ReasoningDelta, "\n" * n),
    "JSON in text": lambda n: pieces(TextDelta, '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * n),
    "numbers in text": lambda n: pieces(TextDelta,
        '<tool_call>{"name": "f", "arguments": [' + "1," * (n // 2)),
    "a value": lambda n: pieces(TextDelta, "<tool_call>\n<function=f>\n<parameter=a>\n" + "1" * n),
    "tags in a value": lambda n: pieces(TextDelta,
        "<tool_call>\n<function=f>\n<parameter=a>\n" + "</parameter>" * (n // 12)),
    "no JSON": lambda n: pieces(TextDelta, '<tool_call>{"name": "f", "arguments": {x' + "}" * n),
    "arguments": lambda n: arguments('{"a": "' + "x" * n),
    "brackets": lambda n: arguments("[" * n),
    "numbers": lambda n: arguments("[" + "1," * (n // 2)),
    "after the end": lambda n: arguments("{}" + "}" * n),
    "calls": lambda n: [RawToolCallDelta(None, f"call_{i}", "f", "{}", 0) for i in range(n // 4)],
}  # fmt: skip


def steps(stream, profile):
    """Return the number of function calls and output characters of a stream through all stages."""
    calls, size = 0, 0

    def profile_calls(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    stage = tool_calls.build_pipeline(Turn("x", 0, "m", [], tools=TOOLS), profile, Counter())
    events = [*stream, ChoiceFinished("stop", 0)]
    sys.setprofile(profile_calls)
    try:
        for event in events:
            for out in stage.feed(event):
                size += len(getattr(out, "text", ""))
    finally:
        sys.setprofile(None)
    return calls, size


@pytest.mark.parametrize(
    "profile",
    [ModelProfile(), ModelProfile(cumulative=True, react=True, bare_json=True)],
    ids=["plain", "all"],
)
@pytest.mark.parametrize("name", STREAMS)
def test_the_work_of_the_stages_is_linear(name, profile):
    """Four times the text, one character at a time, costs about four times the steps."""
    short, _ = steps(STREAMS[name](500), profile)
    long, size = steps(STREAMS[name](2000), profile)
    assert long <= 4.6 * short + 500
    assert size <= 2 * 2000 + 500


@pytest.mark.parametrize("side", ["from_client", "from_upstream"])
def test_a_realtime_event_of_too_many_values(side):
    """A large realtime event may not have thousands of values; the session continues."""
    translation = SessionTranslator("m", modern=True)
    event = json.dumps({"type": "response.create", "a": [[]] * MAX_VALUES, "b": "x" * json_codec.LARGE})
    outs = list(getattr(translation, side)(event))
    assert [out.event["type"] for out in outs] == ["error"]


UNITS = {
    "HTTP/2 pings": (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4\0" + bytes(4),
        b"\0\0\x08\6\0\0\0\0\0" + bytes(8),
    ),
    "chunks of a byte": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "WebSocket pings": (UPGRADE, b"\x89\x80\0\0\0\0"),
}


@pytest.mark.parametrize(("head", "unit"), UNITS.values(), ids=UNITS)
async def test_a_read_of_many_small_frames_lets_other_tasks_run(head, unit, autojump_clock):
    """Small frames of a read are processed in batches, with turns of the other tasks in between."""

    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
        while (await receive())["type"] != "http.disconnect":
            pass

    class Steps(trio.abc.Instrument):
        taken = 0

        def before_task_step(self, task):
            self.taken += 1

    count, steps = 3200, Steps()
    async with served(app) as stream:
        await stream.send_all(head)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        await stream.send_all(unit * count)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(steps)
    assert steps.taken >= count // 64
