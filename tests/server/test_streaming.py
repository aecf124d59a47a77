"""Streams send comments in silence, and a request that takes too long ends."""

import json

import pytest
import trio

from qproxy.emulator import PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from tests.helpers import HELLO, frames, world

BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
REST = chunk({"content": "lo"}) + chunk({}, "stop") + DONE
COMMENT = ": keep-alive\n\n"


async def text_of(it, reply):
    it.emulator.script(reply)
    status, text = await it.stream(HELLO)
    assert status == 200
    return text


def content(text):
    deltas = [json.loads(frame)["choices"][0]["delta"] for frame in frames(text)[:-1]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("split", [0, 1, 20, len(REST) - 1])
async def test_comments_in_silence(split, autojump_clock):
    """A comment is sent for every 15 s without an event, and the response around it is complete."""
    async with world() as it:
        text = await text_of(
            it, ScriptedReply((BEGUN, PauseStep(50), REST[:split], PauseStep(35), REST[split:]))
        )
        assert content(text) == "Hello"
        assert text.endswith("data: [DONE]\n\n")
        assert text.count(COMMENT) == 5
        assert it.sound()


async def test_the_upstreams_comments_do_not_count(autojump_clock):
    """The upstream's comments keep only the upstream connection alive, not the client's."""
    async with world() as it:
        steps = [step for _ in range(8) for step in (b": ping\n\n", PauseStep(10))]
        text = await text_of(it, ScriptedReply((BEGUN, *steps, REST)))
        assert text.count(COMMENT) == 5
        assert content(text) == "Hello"


async def test_no_comment_before_the_head(autojump_clock):
    """Without an event there is no response head, so that an error keeps its status."""
    async with world(upstream_read_timeout=100.0) as it:
        it.emulator.script(ScriptedReply((b": wait\n\n", PauseStep(1000))))
        status, text = await it.stream(HELLO)
        assert status == 504
        assert COMMENT not in text


async def test_comments_can_be_switched_off(autojump_clock):
    """keep_alive_interval = 0 sends no comments."""
    async with world(keep_alive_interval=0.0) as it:
        assert COMMENT not in await text_of(it, ScriptedReply((BEGUN, PauseStep(100), REST)))


async def test_comments_do_not_hide_a_dead_server(autojump_clock):
    """The upstream's idle limit applies even while the client gets comments."""
    async with world() as it:
        text = await text_of(it, ScriptedReply((BEGUN, PauseStep(1000))))
        assert json.loads(frames(text)[-1])["error"]["code"] == "upstream_timeout"
        assert trio.current_time() == 120
        assert it.sound()


LONG = [step for _ in range(100) for step in (chunk({"content": "x"}), PauseStep(2))]


@pytest.mark.parametrize("steps", [(BEGUN, PauseStep(1000)), (BEGUN, *LONG)], ids=["silent", "busy"])
async def test_a_stream_that_takes_too_long(steps, autojump_clock):
    """After request_timeout a stream ends with an error frame that names it."""
    async with world(client_request_timeout=50.0) as it:
        text = await text_of(it, ScriptedReply(steps))
        assert json.loads(frames(text)[-1])["error"]["code"] == "request_timeout"
        assert 50 <= trio.current_time() <= 52
        assert it.sound()
        assert it.server.state.counters.outcomes == {"internal_error": 1}


async def test_a_whole_response_that_takes_too_long(autojump_clock):
    """After request_timeout a plain request gets a 504, even before the upstream's first byte."""
    for steps in ((BEGUN, *LONG), (PauseStep(1000),)):
        async with world(client_request_timeout=50.0) as it:
            it.emulator.script(ScriptedReply(steps))
            started_at = trio.current_time()
            status, _, body = await it.post(HELLO)
            assert (status, body["error"]["code"]) == (504, "request_timeout")
            assert trio.current_time() - started_at == 50
            assert it.sound()
            assert not len(it.server.state.in_flight)
