"""A request and a chunk have countable costs: calls, tasks, writes, parses.

A clock measures the machine, counts measure the code. Each ceiling is about a tenth above the count at its
writing (Python 3.11): raise one only with a reason, and lower it when something becomes cheaper.
"""

import gc
import json
import logging
import sys
from contextlib import contextmanager
from typing import Any

import h11
import pytest
import trio
from hypercorn.events import RawData
from trio._core._run import _r as scheduler_random

from qproxy import http_server
from qproxy.emulator import Emulator, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.http_server import tcp_server
from qproxy.system import sockets
from qproxy.transport import interruptible
from qproxy.wire import json_codec, raw_json
from tests.disconnects import real_world
from tests.helpers import HELLO, H1Client, h1, world

TEXT = chunk({"content": "twenty characters of"})
HEAD = chunk({"role": "assistant", "content": ""})
END = chunk({}, "stop") + DONE
CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": "'}}
PIECE = {"index": 0, "id": "", "type": "function", "function": {"arguments": "twenty characters of"}}
LAST = {"index": 0, "id": "", "type": "function", "function": {"arguments": '"}'}}
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}


class Counter(trio.abc.Instrument):
    """Counts calls of Python functions in this process, and started tasks."""

    def __init__(self):
        self.calls = 0
        self.tasks = 0

    def task_spawned(self, task):
        self.tasks += 1

    @contextmanager
    def counting(self):
        def profile(frame, event, argument):
            self.calls += event == "call"

        trio.lowlevel.add_instrument(self)
        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(None)
            trio.lowlevel.remove_instrument(self)


async def complete(client, body, path="/v1/chat/completions"):
    """Send a request and read the whole response."""
    await client.send("POST", path, json.dumps(body).encode(), [("content-type", "application/json")])
    while not isinstance(event := client.http.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            client.http.receive_data(bytes(await client.stream.receive_some(1 << 20)))
    client.http.start_next_cycle()


async def count_cost(replies, body, repeat=1, path="/v1/chat/completions"):
    """Return the cost of `repeat` requests together, after two that warm everything up.

    Trio runs ready tasks in random order, which decides how often a task waits: the seed makes counts repeat.
    No log line is written, whatever level earlier tests of the process have left.
    """
    scheduler_random.seed(0)
    emulator, counter = Emulator(), Counter()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        await _count(counter, emulator, replies, body, repeat, path)
    finally:
        root.setLevel(level)
    return counter


async def _count(counter, emulator, replies, body, repeat, path):
    """Count `repeat` requests after two others."""
    async with world(emulator=emulator, log_level="error") as it, h1(it.app) as client:
        emulator.script(*replies * (repeat + 2))
        for _ in range(2):
            await complete(client, body, path)
        await trio.testing.wait_all_tasks_blocked()
        with counter.counting():
            for _ in range(repeat):
                await complete(client, body, path)
            await trio.testing.wait_all_tasks_blocked()  # the end of the last request is part of its cost


def stream(*chunks):
    """Return a response whose chunks come in one read."""
    return ScriptedReply((HEAD + b"".join(chunks) + END,))


async def per_chunk(one, count, body, around=(), path="/v1/chat/completions"):
    """Return the calls for each further chunk of a burst."""
    first, last = around or (b"", b"")
    small = await count_cost([stream(first, one * 10, last)], body, path=path)
    large = await count_cost([stream(first, one * (10 + count), last)], body, path=path)
    return (large.calls - small.calls) / count


async def test_a_chunk_of_text():
    """A chunk of a burst costs about thirty calls, with tools declared or without."""
    plain = await per_chunk(TEXT, 200, {**HELLO, "stream": True})
    tools = await per_chunk(TEXT, 200, {**HELLO, "stream": True, "tools": [TOOL]})
    assert plain <= 29
    assert tools <= 38


async def test_a_piece_of_arguments_costs_little_more_than_text():
    """A fragment of a call's arguments costs no more calls than a chunk of text beside tools."""
    body = {**HELLO, "stream": True, "tools": [TOOL]}
    around = chunk({"tool_calls": [CALL]}), chunk({"tool_calls": [LAST]})
    text = await per_chunk(TEXT, 200, body)
    piece = await per_chunk(chunk({"tool_calls": [PIECE]}), 200, body, around)
    assert piece <= text


async def test_one_read_leaves_in_one_write(monkeypatch):
    """A burst of any length from one read is written once, between the head and the end."""
    writes = []
    plain = http_server.TCPServer.protocol_send

    async def watched(server, event):
        writes.append(event)
        await plain(server, event)

    monkeypatch.setattr(http_server.TCPServer, "protocol_send", watched)
    emulator = Emulator()
    async with world(emulator=emulator) as it, h1(it.app) as client:
        emulator.script(*[stream(TEXT * count) for count in (1, 5, 300)])
        for _ in range(3):
            await complete(client, {**HELLO, "stream": True})
            sent, writes[:] = [event for event in writes if isinstance(event, RawData)], []
        assert len(sent) <= 3


async def test_a_whole_request():
    """A plain request is one task and a bounded number of calls, the emulator's included."""
    counter = await count_cost([stream(TEXT)], HELLO, repeat=10)
    # One for the request; the emulator has one to send, and one to watch for a disconnect.
    assert counter.tasks == 10 * (1 + 2)
    assert counter.calls / 10 <= 3450


async def test_a_whole_request_is_two_writes(monkeypatch):
    """Over plain sockets the request leaves in one write, head and body, and so does the response."""
    writes = []

    def count_cost(socket, *pieces):
        writes.append(sum(map(len, pieces)))
        return sockets.send_nowait(socket, *pieces)

    for module in (tcp_server, interruptible):
        monkeypatch.setattr(module, "send_nowait", count_cost)
    async with real_world() as (_, dial):
        client = H1Client(await dial())
        for _ in range(5):
            await complete(client, HELLO)
        await client.aclose()
    assert len(writes) == 2 * 5
    assert all(writes)


MESSAGES = {**HELLO, "max_tokens": 100}
MESSAGES_TOOL = {"name": "f", "input_schema": TOOL["function"]["parameters"]}  # type: ignore[index]


async def test_messages_cost_what_chat_costs():
    """A chunk and a request of Anthropic's API cost at most 1.15 times those of chat."""
    around = chunk({"tool_calls": [CALL]}), chunk({"tool_calls": [LAST]})
    thought, piece = chunk({"reasoning_content": "twenty characters of"}), chunk({"tool_calls": [PIECE]})
    for one, chat_tools, tools, edges in (
        (TEXT, {}, {}, ()),
        (thought, {}, {}, ()),
        (piece, {"tools": [TOOL]}, {"tools": [MESSAGES_TOOL]}, around),
    ):
        chat = await per_chunk(one, 200, {**HELLO, "stream": True, **chat_tools}, edges)
        messages = await per_chunk(one, 200, {**MESSAGES, "stream": True, **tools}, edges, "/v1/messages")
        assert messages <= 1.15 * chat
    for streamed in (False, True):
        chat = (await count_cost([stream(TEXT)], {**HELLO, "stream": streamed}, repeat=10)).calls
        messages = (
            await count_cost([stream(TEXT)], {**MESSAGES, "stream": streamed}, repeat=10, path="/v1/messages")
        ).calls
        assert messages <= 1.15 * chat


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": HELLO,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
    "/v1/completions": {"model": "qwen-plus", "prompt": "hi"},
    "/v1/responses": {"model": "qwen-plus", "input": "hi"},
    "/v1/embeddings": {"model": "text-embedding-v4", "input": "hi"},
}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_request_leaves_no_cycles(path, streamed):
    """A finished request leaves none of qproxy's objects to the garbage collector."""
    body = (
        {**BODIES[path], "stream": True}
        if streamed and "embed" not in path and "count" not in path
        else BODIES[path]
    )
    async with world(log_level="error") as it, h1(it.app) as client:
        await complete(client, body, path)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(3):
                await complete(client, body, path)
            await trio.testing.wait_all_tasks_blocked()
            gc.collect()
            left = [type(thing) for thing in gc.garbage if type(thing).__module__.startswith("qproxy.")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert [kind for kind in left if not kind.__module__.startswith("qproxy.emulator")] == []


def messages_of(text, times=1):
    return {"messages": [{"role": "user", "content": text}] * times}


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 100_000}}
LONG = {
    "1 KB": messages_of("word " * 205),
    "64 KB": messages_of("word " * 13_000),
    "many messages": messages_of("word " * 280, 48),
    "many tools": {**messages_of("word "), "tools": [{"type": "function",
        "function": {"name": f"f{n}", "description": "word " * 50}} for n in range(40)]},
    "pictures": messages_of([{"type": "text", "text": "What is this?"}, PICTURE, PICTURE, PICTURE]),
    "not ASCII": messages_of("快速的棕色狐狸" * 3000),
}  # fmt: skip


@pytest.mark.parametrize("prompt", LONG.values(), ids=LONG.keys())
async def test_a_prompt_is_parsed_once_and_never_encoded(monkeypatch, prompt):
    """A prompt of any length is parsed once, without encoding messages or tools."""
    read, written = [], []
    plain_read, plain_write = raw_json.parse_body, json_codec.dumps

    def reading(data):
        read.append(len(data))
        return plain_read(data)

    def writing(value):
        data = plain_write(value)
        written.append(len(data))
        return data

    monkeypatch.setattr(raw_json, "parse_body", reading)
    monkeypatch.setattr(json_codec, "dumps", writing)
    emulator = Emulator()
    async with world(emulator=emulator) as it:
        emulator.script(stream(TEXT))
        status, _, _ = await it.post({**HELLO, **prompt})
    assert status == 200
    assert len(read) == 1
    assert sum(written) < 2000
