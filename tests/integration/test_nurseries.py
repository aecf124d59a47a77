"""Every request has one nursery on any path, and all of its tasks run within it."""

import json

import h2.events
import pytest
import trio

from qproxy import tools
from qproxy.emulator import Emulator
from qproxy.server import request_context
from tests.disconnects import JSON_HEADER
from tests.helpers import HELLO, h1, h2c, world
from tests.realtime_client import talk
from tests.relay.test_tool_loop import calling, saying

CHAT = "/v1/chat/completions"
BATCHES = {"model": "text-embedding-v4", "input": ["text"] * 25}
PROMPTS = {"model": "qwen-plus", "prompt": ["one", "two", "three"]}


def owners():
    """Return the nurseries around the running task, innermost first."""
    task = trio.lowlevel.current_task()
    nurseries_of = list(reversed(task.child_nurseries))
    while task is not None and task.parent_nursery is not None:
        nurseries_of.append(task.parent_nursery)
        task = task.parent_nursery.parent_task
        nurseries_of += [nursery for nursery in reversed(task.child_nurseries) if nursery not in nurseries_of]
    return nurseries_of


def request_nursery():
    """Return the request's nursery if the running task is within it."""
    nursery = request_context.nursery()
    return nursery if nursery in owners() else None


async def over_h1(it, path, body):
    async with h1(it.app) as client:
        await client.send("POST", path, json.dumps(body).encode(), [JSON_HEADER])
        assert (await client.response())[0] == 200


async def over_h2(it, path, body):
    async with h2c(it.app) as client:
        await client.send("POST", path, json.dumps(body).encode(), [JSON_HEADER])
        await client.event(h2.events.StreamEnded)


async def in_process(it, path, body):
    fields, raw = [(b"content-type", b"application/json")], json.dumps(body).encode()
    async with it.client.request("POST", path, headers=fields, body=raw) as response:
        assert response.status == 200
        await response.read()


async def by_quart(it, path, body):
    async def nothing():
        return None

    it.app.before_request(nothing)
    await over_h1(it, path, body)


async def by_websocket(it, path, body):
    async with talk(it.app) as client:
        await client.until("session.created")


WAYS = {
    "HTTP/1.1": over_h1,
    "HTTP/2": over_h2,
    "in process": in_process,
    "by Quart's router": by_quart,
}
REQUESTS = {
    "whole": (CHAT, HELLO, 1),
    "streamed": (CHAT, {**HELLO, "stream": True}, 1),
    "several prompts": ("/v1/completions", PROMPTS, 3),
    "several batches": ("/v1/embeddings", BATCHES, 3),
}


async def nurseries_of(way, path, body, **settings):
    """Return `request_nursery()` of each of a request's tasks that connects to an upstream."""
    seen = []

    async def watched(connect, host, port):
        seen.append(request_nursery())
        return await connect(host, port)

    async with world(through=watched, **settings) as it:
        await way(it, path, body)
    return seen


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("path", "body", "tasks"), REQUESTS.values(), ids=REQUESTS)
async def test_every_request_has_a_nursery(way, path, body, tasks):
    """All tasks of a request share one nursery, even with several concurrent upstream requests."""
    seen = await nurseries_of(way, path, body)
    assert len(seen) == tasks
    assert len(set(seen)) == 1
    assert None not in seen


async def test_a_websocket_has_a_nursery():
    """A realtime session has a nursery."""
    seen = await nurseries_of(by_websocket, "", {})
    assert len(seen) == 1
    assert None not in seen


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_tools_run_in_the_requests_nursery(way):
    """Tools run beside the handler, in the nursery that a disconnect cancels."""
    seen = []

    @tools.function
    async def look() -> str:
        """Look around."""
        seen.append((request_nursery(), trio.lowlevel.current_task()))
        return "seen"

    emulator = Emulator()
    emulator.script(calling(("look", {}), ("look", {})), saying("Done."))
    async with world(emulator=emulator, functions=[look]) as it:
        await way(it, CHAT, {**HELLO, "stream": True})
    assert len({nursery for nursery, _ in seen}) == 1
    assert None not in dict(seen)
    assert len({task for _, task in seen}) == 2


async def test_no_nursery_outlives_its_request():
    """The nursery closes with the complete response, and nothing keeps it."""
    seen = []

    async def watched(connect, host, port):
        seen.append(request_context.scope())
        return await connect(host, port)

    async with world(through=watched) as it:
        for way in WAYS.values():
            await way(it, CHAT, HELLO)
    assert seen
    assert [scope for scope in seen if "qproxy.nursery" in scope] == []
