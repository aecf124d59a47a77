"""Every request has one nursery, whatever way it takes, and all that is done for it is done within."""

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
    """The nurseries that the running task is in, the innermost first."""
    task = trio.lowlevel.current_task()
    found = list(reversed(task.child_nurseries))
    while task is not None and task.parent_nursery is not None:
        found.append(task.parent_nursery)
        task = task.parent_nursery.parent_task
        found += [nursery for nursery in reversed(task.child_nurseries) if nursery not in found]
    return found


def own():
    """The request's nursery, if the running task is within."""
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


async def found(way, path, body, **settings):
    """What `own` says in each of a request's tasks that connects to the model's server."""
    seen = []

    async def watched(connect, host, port):
        seen.append(own())
        return await connect(host, port)

    async with world(through=watched, **settings) as it:
        await way(it, path, body)
    return seen


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(("path", "body", "tasks"), REQUESTS.values(), ids=REQUESTS)
async def test_every_request_has_a_nursery(way, path, body, tasks):
    """One, and each of its tasks is within, also where it asks several servers at once."""
    seen = await found(way, path, body)
    assert len(seen) == tasks
    assert len(set(seen)) == 1
    assert None not in seen


async def test_a_websocket_has_a_nursery():
    """A realtime session too."""
    seen = await found(by_websocket, "", {})
    assert len(seen) == 1
    assert None not in seen


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_tools_run_in_the_requests_nursery(way):
    """Beside the handler, in a task of the nursery that is cancelled when the client leaves."""
    seen = []

    @tools.function
    async def look() -> str:
        """Look around."""
        seen.append((own(), trio.lowlevel.current_task()))
        return "seen"

    emulator = Emulator()
    emulator.script(calling(("look", {}), ("look", {})), saying("Done."))
    async with world(emulator=emulator, functions=[look]) as it:
        await way(it, CHAT, {**HELLO, "stream": True})
    assert len({nursery for nursery, _ in seen}) == 1
    assert None not in dict(seen)
    assert len({task for _, task in seen}) == 2


async def test_no_nursery_outlives_its_request():
    """It is closed when the answer is whole, and nothing keeps it."""
    seen = []

    async def watched(connect, host, port):
        seen.append(request_context.scope())
        return await connect(host, port)

    async with world(through=watched) as it:
        for way in WAYS.values():
            await way(it, CHAT, HELLO)
    assert seen
    assert [scope for scope in seen if "qproxy.nursery" in scope] == []
