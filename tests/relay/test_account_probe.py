"""Probes of failing accounts: their account, their rate, and their effect on /readyz."""

import pytest
import trio

from qproxy.emulator.faults import json_reply
from tests.helpers import HELLO, accounts, world

DOWN = json_reply({"error": {"message": "the GPU is lost", "code": "internal_error"}}, 500)
REJECTED = json_reply({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}}, 401)
EMBED = {"model": "text-embedding-v4", "input": "hello"}


async def ready(it):
    """Return the status of /readyz and the state of the only account."""
    status, body = await it.get("/readyz")
    return status, *body["accounts"]


@pytest.mark.parametrize(
    ("fault", "attempts", "path", "body"),
    [
        (DOWN, 3, "/v1/chat/completions", HELLO),
        (REJECTED, 1, "/v1/chat/completions", HELLO),
        (DOWN, 3, "/v1/embeddings", EMBED),
    ],
    ids=["a server that is down", "a rejected key", "embeddings"],
)
async def test_a_probe_decides_readiness(autojump_clock, fault, attempts, path, body):
    """No client's failure makes a server unready; a failed probe does, and a successful probe ends it."""
    async with world(probe_interval=60) as it:
        assert await ready(it) == (200, "unknown")
        it.emulator.script(*[fault] * (attempts + 8))
        assert (await it.post(body, path))[0] == 502
        request_count = len(it.emulator.requests)
        assert request_count == attempts
        assert await ready(it) == (200, "failing")
        await trio.sleep(80)
        assert len(it.emulator.requests) > request_count
        assert await ready(it) == (503, "failing")
        await trio.sleep(800)
        assert await ready(it) == (200, "ready")
        settled = len(it.emulator.requests)
        await trio.sleep(1000)
        assert len(it.emulator.requests) == settled, "an account that works is not probed"


async def test_probes_back_off(autojump_clock):
    """A dead account costs a probe at 1, 2, 4, ... seconds, then one per probe_interval."""
    async with world(probe_interval=60) as it:
        it.emulator.script(*[DOWN] * 200)
        await it.post(HELLO)
        request_count = len(it.emulator.requests)
        await trio.sleep(600)
        assert 8 <= len(it.emulator.requests) - request_count <= 16


async def test_probes_can_be_turned_off(autojump_clock):
    """Without probes a failing account leaves the server ready."""
    async with world(probe_interval=0) as it:
        it.emulator.script(*[DOWN] * 3)
        await it.post(HELLO)
        request_count = len(it.emulator.requests)
        await trio.sleep(600)
        assert len(it.emulator.requests) == request_count
        assert await ready(it) == (200, "failing")


async def test_a_probe_is_sent_to_the_failing_account(autojump_clock):
    """A probe reaches the failing account even if another account works."""
    async with world(accounts=accounts("one", "two"), probe_interval=60) as it:
        it.emulator.script(REJECTED)
        assert (await it.post(HELLO))[0] == 200
        first = next(seen.headers["host"] for seen in it.emulator.requests if seen.method == "POST")
        await trio.sleep(100)
        assert it.emulator.requests[-1].headers["host"] == first
        assert (await it.get("/readyz"))[1]["accounts"] == {"ready": 2}


async def test_a_missing_model_keeps_a_server_ready(autojump_clock):
    """An account with only rejected models fails, but is not down, since clients choose the names."""
    async with world(probe_interval=60) as it:
        missing = {"error": {"message": "The model `made-up` does not exist", "code": "model_not_found"}}
        it.emulator.script(json_reply(missing, 404))
        assert (await it.post({**HELLO, "model": "made-up"}))[0] == 404
        await trio.sleep(100)
        assert await ready(it) == (200, "failing")
        assert (await it.post(HELLO))[0] == 200
        assert await ready(it) == (200, "ready")
