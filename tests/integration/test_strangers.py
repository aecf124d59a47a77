"""Any JSON from a client or an upstream causes no 500, and every request that a model answered has a ledger
row."""

import json
import logging
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from qproxy.access.api_keys import Quota
from qproxy.access.budgets import CACHE_SECONDS
from qproxy.backends.local import key_file
from qproxy.backends.local.usage_limiter import LocalUsageLimiter
from qproxy.emulator import ScriptedReply
from qproxy.wire import storable
from qproxy.wire.endpoints import ENDPOINTS
from tests.examples import examples
from tests.helpers import HELLO, MODEL, accounts, world
from tests.telemetry.factories import record
from tests.wire.strangers import ANSWERS, ASK, ASKS, mutated, mutations

VECTORS: Any = {
    "object": "list",
    "data": [{"index": 0, "embedding": [0.5, -0.5]}],
    "usage": {"prompt_tokens": 3, "total_tokens": 3},
}
FIELDS = (
    ("retry-after", "9" * 400),
    ("retry-after-ms", "nan"),
    ("retry-after", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"),
    ("x-request-id", "~" * 300),
)
BODIES = {
    **{f"/v1{endpoint.path}": ASKS.get(endpoint.path, ASK) for endpoint in ENDPOINTS},
    "/v1/chat/completions": {
        key: ASK[key] for key in ("model", "messages", "user", "metadata", "n", "max_tokens")
    },
    "/v1/completions": {
        "model": MODEL,
        "prompt": ["hi", "you"],
        "echo": True,
        "user": "u",
        "max_tokens": 5,
        "n": 2,
    },
    "/v1/embeddings": {"model": "text-embedding-v4", "input": ["hi"], "user": "u", "dimensions": 5},
    "/v1/responses": {
        key: value for key, value in ASKS["/responses"].items() if key != "previous_response_id"
    },
}
whole_bodies = st.sampled_from(list(BODIES)).flatmap(
    lambda path: st.tuples(
        st.just(path), mutations(BODIES[path]).map(lambda changes: mutated(BODIES[path], changes))
    )
)
sound_bodies = st.sampled_from(list(BODIES)).map(lambda path: (path, BODIES[path]))
inputs = st.tuples(st.one_of(whole_bodies, sound_bodies), st.sampled_from([None, False, True, True]))
ANSWER_SHAPES = {**ANSWERS, "vectors": VECTORS}


def replies(shape):
    """Return replies with odd values in some places: as one chunk of a stream, whole, or as an error."""

    def build(changes, number, field):
        body = json.dumps(mutated(shape, changes)).encode()
        if number == 0:
            return ScriptedReply((b"data: %b\n\ndata: [DONE]\n\n" % body,), headers=(field,))
        return ScriptedReply(
            (body,),
            status=(200, 200, 429, 500)[number - 1],
            content_type="application/json",
            headers=(field,),
        )

    return st.builds(build, mutations(shape), st.integers(0, 4), st.sampled_from(FIELDS))


answers = st.one_of(st.none(), *map(replies, ANSWER_SHAPES.values()))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(
    lambda text: text not in (".", "..")
)
PATHS = (
    "/v1/models/{}",
    "/v1/responses/{}",
    "/v1/responses/{}/input_items?limit={}&after={}&order={}",
    "/v1/models?x={}",
)
lookups = st.tuples(st.sampled_from(["GET", "DELETE"]), st.sampled_from(PATHS), names, st.booleans())


ADMIN_KEY = "an admin's key of a sound length"


class Server:
    """An app with all state that a poisoned value could reach: a ledger, paced accounts, a key with limits, a
    store."""

    def __init__(self, folder):
        self.folder = folder
        _, secret = key_file.create(folder / "keys.json", name="bob", rpm=10**6, tpm=10**9)
        self.headers = [(b"authorization", f"Bearer {secret}".encode())]
        self.settings = {
            "accounts": accounts("one", rpm=10**6, tpm=10**9),
            "keys_file": str(folder / "keys.json"),
            "ledger": str(folder / "ledger"),
            "admin_key": ADMIN_KEY,
        }
        self.answered = set()
        """Ids of the requests that reached a model and got a response."""

    async def ask(self, it, path, body, reply):
        before = len(it.emulator.requests)
        it.emulator.clear()
        if reply is not None:
            it.emulator.script(*[reply] * 6)
        fields = [(b"content-type", b"application/json"), *self.headers]
        raw = json.dumps(body).encode()
        async with it.client.request("POST", path, headers=fields, body=raw) as response:
            data = await response.read()
        assert response.status != 500, (path, raw, reply, data)
        assert b"internal_error" not in data, (path, raw, reply, data)
        if len(it.emulator.requests) > before:
            self.answered.add(dict(response.headers)[b"x-request-id"].decode())
        if path == "/v1/responses" and response.status == 200 and data.startswith(b"{"):
            await self.go_on(it, json.loads(data)["id"])

    async def go_on(self, it, response):
        """Read a stored response and continue it."""
        it.emulator.clear()
        assert (await it.get(f"/v1/responses/{response}/input_items", self.headers))[0] in (200, 404)
        body = {"model": MODEL, "input": "and then?", "previous_response_id": response}
        status, _, answer = await it.post(body, "/v1/responses", self.headers)
        assert status < 500, answer

    def rows(self):
        connection = sqlite3.connect(self.folder / "ledger")
        try:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM requests")]
        finally:
            connection.close()


async def play(server, requests, lookups):
    async with world(**server.settings) as it:
        for ((path, body), stream), reply in requests:
            if stream is not None and isinstance(body, dict) and path != "/v1/embeddings":
                body = {**body, "stream": stream}
            await server.ask(it, path, body, reply)
        for method, path, name, escaped in lookups:
            target = path.replace("{}", quote(name) if escaped else quote(name.encode("utf-16")))
            async with it.client.request(method, target, headers=server.headers) as response:
                await response.read()
            assert response.status != 500, (method, target)
        admin = [(b"authorization", b"Bearer " + ADMIN_KEY.encode())]
        async with it.client.request("GET", "/metrics", headers=admin) as response:
            assert (response.status, b"qproxy_requests_total" in await response.read()) == (200, True)
        assert it.sound()
        await server.ask(it, "/v1/chat/completions", HELLO, None)


def test_no_value_poisons_another_request(caplog):
    """Any JSON at any field of any endpoint or upstream response causes no 500 and loses no row."""

    @given(st.lists(st.tuples(inputs, answers), min_size=8, max_size=8), st.lists(lookups, max_size=2))
    @examples(20)
    def check(requests, lookups):
        caplog.clear()
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder))
            trio.run(play, server, requests, lookups, clock=trio.testing.MockClock(autojump_threshold=0))
            rows = server.rows()
        assert server.answered <= {row["id"] for row in rows}
        for row in rows:
            counts = [value for name, value in row.items() if name.endswith("_tokens")]
            assert all(type(count) is int and 0 <= count <= 4 * storable.MAX_COUNT for count in counts)
        assert not [entry for entry in caplog.records if entry.levelno >= logging.ERROR]

    check()


async def test_a_budget_is_not_evaded(tmp_path):
    """A key with five requests per day gets five, whatever other values it and the upstream write."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", budgets=(Quota("day", requests=5),))
    headers = [(b"authorization", f"Bearer {secret}".encode())]
    usage = {"prompt_tokens": 10**300, "completion_tokens": 2**63, "total_tokens": -1}
    chunk = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    answer = ScriptedReply((b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(chunk).encode(),))
    statuses = []
    settings = {"keys_file": str(tmp_path / "keys.json"), "ledger": str(tmp_path / "ledger")}
    async with world(**settings) as it:

        async def ask(model):
            status, _, _ = await it.post({**HELLO, "model": model}, headers=headers)
            statuses.append((model, status))

        for _ in range(4):
            it.emulator.clear()
            it.emulator.script(answer, answer)
            async with trio.open_nursery() as nursery:
                for model in (MODEL, MODEL, "\ud800"):
                    nursery.start_soon(ask, model)
            assert it.server.state.ledger is not None
            it.server.state.ledger.record(record(id=f"poison {len(statuses)}", key="amy", model="\ud800"))
            limiter = it.server.state.usage_limiter
            assert isinstance(limiter, LocalUsageLimiter)
            limiter.budgets._usage_by_key["bob"].requested_at -= CACHE_SECONDS + 1
    assert [status for model, status in statuses if model != MODEL] == [400] * 4
    assert sorted(status for model, status in statuses if model == MODEL) == [200] * 5 + [429] * 3
