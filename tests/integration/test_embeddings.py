"""Embeddings work end to end: concurrent batches, order, sums, failures, disconnects, and turns of other
tasks."""

import json
import struct
from base64 import b64decode

import pytest
import trio
import trio.testing

from qproxy.backends.local import key_file
from qproxy.emulator import embeddings
from qproxy.emulator.faults import HANG, PauseStep, ScriptedReply, json_reply
from qproxy.relay.embeddings import create_embeddings
from qproxy.telemetry import RelayRecord
from qproxy.wire import embeddings as vectors
from qproxy.wire.embeddings import EmbeddingInput
from tests.helpers import accounts, h1, world
from tests.openai_types import refusal

PATH = "/v1/embeddings"
MODEL = "text-embedding-v4"
TEXTS = [f"text {number}" for number in range(25)]


def request(texts, **fields):
    return {"model": MODEL, "input": texts, "dimensions": 64, **fields}


def expected(texts, size=64):
    return [embeddings.vector(text, size) for text in texts]


def sizes(emulator):
    """Return the number of texts of each upstream request."""
    return sorted(
        len(seen.body.get("input", {}).get("texts", ()))
        if isinstance(seen.body["input"], dict)
        else len(seen.body["input"])
        for seen in emulator.requests
    )


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
@pytest.mark.parametrize("count", [1, 10, 25])
async def test_batches_of_ten_in_order(dialect, count):
    """A batch has at most ten texts; the response keeps the order of the texts and sums the tokens."""
    async with world(accounts=accounts("one", dialect=dialect)) as it:
        status, headers, body = await it.post(request(TEXTS[:count]), PATH)
        assert status == 200
        assert headers["content-length"].isdecimal()
        assert [item["embedding"] for item in body["data"]] == expected(TEXTS[:count])
        assert [item["index"] for item in body["data"]] == list(range(count))
        assert body["usage"] == {"prompt_tokens": 2 * count, "total_tokens": 2 * count}
        assert body["model"] == MODEL
        assert max(sizes(it.emulator)) <= 10
        assert sum(sizes(it.emulator)) == count
        assert it.sound()


async def test_base64():
    """base64, the default of OpenAI's clients, is little-endian binary32 made from an upstream's numbers."""
    async with world() as it:
        _, _, body = await it.post(request(["a", "b"], encoding_format="base64"), PATH)
        for item, vector in zip(body["data"], expected(["a", "b"]), strict=True):
            assert struct.unpack("<64f", b64decode(item["embedding"])) == pytest.approx(vector, abs=1e-7)
        assert all(seen.body["encoding_format"] == "float" for seen in it.emulator.requests)


async def test_aliases():
    """An alias maps OpenAI's name to Qwen's; the response has the requested name."""
    async with world(aliases={"text-embedding-3-small": MODEL}) as it:
        status, _, body = await it.post(request("x") | {"model": "text-embedding-3-small"}, PATH)
        assert (status, body["model"]) == (200, "text-embedding-3-small")
        assert it.emulator.requests[0].body["model"] == MODEL
        assert MODEL in [model["id"] for model in (await it.get("/v1/models"))[1]["data"]]


@pytest.mark.parametrize(
    ("setting", "in_flight", "at_once"),
    [(2, None, 2), (8, None, 3), (8, 1, 1)],
    ids=["setting", "all", "account"],
)
async def test_concurrent_batches_are_bounded(setting, in_flight, at_once, autojump_clock):
    """Concurrent batches stay within the setting and the accounts' limits."""
    slow = ScriptedReply(
        (b" ", PauseStep(1.0), b'{"error": {"message": "no", "code": "data_inspection_failed"}}'), 400
    )
    async with world(max_embedding_requests=setting, accounts=accounts("one", max_in_flight=in_flight)) as it:
        it.emulator.script(*[slow] * 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.post, request(TEXTS), PATH)
            await trio.sleep(0.5)
            assert (
                len(it.emulator.requests) == it.server.state.relay.accounts.accounts[0].in_flight == at_once
            )


async def test_the_first_failure_ends_all(autojump_clock):
    """A rejected batch closes the other batches, gives the client its error, and leaves nothing held."""
    error = b'{"error": {"message": "too dear", "code": "Arrearage"}}'
    refused = ScriptedReply((b" ", PauseStep(0.1), error), 400, "application/json")
    async with world() as it:
        it.emulator.script(ScriptedReply((HANG,)), refused, ScriptedReply((HANG,)))
        status, headers, body = await it.post(request(TEXTS), PATH)
        assert (status, headers["x-should-retry"]) == (429, "false")
        assert "too dear" in refusal(body).message
        assert trio.current_time() < 1
        await trio.testing.wait_all_tasks_blocked()
        assert [seen.disconnected.is_set() for seen in it.emulator.requests].count(True) == 2
        assert it.sound()


async def test_a_batch_is_retried_and_sent_elsewhere(autojump_clock):
    """A burst limit is waited out, and another account replaces an exhausted one, invisibly to the client."""
    burst = json_reply({"error": {"message": "slow down", "code": "limit_burst_rate"}}, 429)
    spent = json_reply({"error": {"message": "no", "code": "Arrearage"}}, 400)
    async with world() as it:
        it.emulator.script(burst)
        assert (await it.post(request("x"), PATH))[0] == 200
    async with world(accounts=accounts("one", "two")) as it:
        it.emulator.script(spent)
        status, _, body = await it.post(request(TEXTS), PATH)
        assert status == 200
        assert [item["embedding"] for item in body["data"]] == expected(TEXTS)
        assert len({seen.headers["host"] for seen in it.emulator.requests}) == 2


CANNOT = {
    "coding": {"plan": "coding"},
    "token": {"plan": "token"},
    "oauth": {"plan": "oauth"},
    "said so": {"embedding_batch": 0},
}


@pytest.mark.parametrize("settings", CANNOT.values(), ids=CANNOT)
async def test_accounts_without_embeddings_get_no_request(settings):
    """An account whose plan lacks embeddings gets no request; without another account a 404 explains it."""
    async with world(accounts=accounts("plan", **settings)) as it:
        status, _, body = await it.post(request("x"), PATH)
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert "pay-as-you-go" in body["error"]["message"]
        assert it.emulator.requests == []
    both = (*accounts("plan", weight=100.0, **settings), *accounts("payg"))
    async with world(accounts=both) as it:
        assert (await it.post(request(TEXTS), PATH))[0] == 200
        assert {seen.headers["host"] for seen in it.emulator.requests} == {"payg.test"}


@pytest.mark.parametrize(
    ("settings", "listed"), [({}, True), ({"plan": "coding"}, False)], ids=["payg", "plan"]
)
async def test_an_upstream_without_a_list(settings, listed):
    """When Qwen's names replace a missing list, embedding models are included if the account can embed."""
    async with world(accounts=accounts("one", **settings)) as it:
        it.emulator._reply = lambda seen: ScriptedReply((b"no",), 404, "text/plain")  # type: ignore[method-assign]
        names = [model["id"] for model in (await it.get("/v1/models"))[1]["data"]]
        assert "qwen-plus" in names
        assert (MODEL in names) is listed


async def test_an_account_limits_its_batches():
    """The smallest batch size of the accounts applies."""
    both = (*accounts("one", embedding_batch=7), *accounts("two", embedding_batch=9))
    async with world(accounts=both) as it:
        assert (await it.post(request(TEXTS), PATH))[0] == 200
        assert sizes(it.emulator) == [4, 7, 7, 7]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (request(""), 400, "input"),
        (request([1, 2]), 400, "input"),
        ({"input": "x"}, 400, "model"),
        (request("x") | {"model": "nope"}, 404, "model"),
        (request("x", dimensions=100), 400, None),
    ],
)
async def test_rejections(body, status, param):
    """An invalid request is rejected in OpenAI's shape, by qproxy or by the upstream."""
    async with world(default_model="qwen3.7-plus") as it:
        received, _, answer = await it.post(body, PATH)
        assert (received, answer["error"]["param"]) == (status, param)
        refusal(answer)


async def test_strict_params():
    """`user` is named as ignored, and rejected with strict_params."""
    async with world() as it:
        assert (await it.post(request("x", user="u"), PATH))[1]["x-qproxy-ignored-params"] == "user"
    async with world(strict_params=True) as it:
        status, _, body = await it.post(request("x", user="u"), PATH)
        assert (status, body["error"]["param"]) == (400, "user")


async def test_a_key_is_charged_the_counted_tokens(tmp_path):
    """A key's tokens per minute are those that the upstream counted."""
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", tpm=1000)
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        headers = [(b"authorization", b"Bearer " + secret.encode())]
        assert (await it.post(request(TEXTS), PATH, headers))[1]["x-ratelimit-limit-tokens"] == "1000"
        (known,) = key_file.read(tmp_path / "keys.json")
        assert it.server.state.usage_limiter.rate_limits(known)[-1].remaining in (950, 951, 952)


async def test_other_tasks_run_between_vectors(monkeypatch):
    """Encoding lets other tasks run between vectors: Trio runs each task once a round."""
    turns, seen = 0, []
    encode = vectors.encode_vectors

    def record_turn(row, *, base64):
        seen.append(turns)
        return encode(row, base64=base64)

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(vectors, "encode_vectors", record_turn)
    async with world(max_embedding_requests=1) as it, trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await create_embeddings(
            it.server.state.relay, EmbeddingInput(MODEL, TEXTS[:10], {"dimensions": 64}), RelayRecord()
        )
        nursery.cancel_scope.cancel()
    assert len(seen) == 10
    assert max(seen.count(turn) for turn in seen) <= 2  # the last of one round and the first of the next


@pytest.mark.parametrize("how", ["close", "half-close"])
async def test_a_disconnect_closes_every_batch(how, autojump_clock):
    """A disconnect frees all upstream connections within 100 ms."""
    async with world() as it, h1(it.app) as client:
        it.emulator.script(*[ScriptedReply((HANG,))] * 3)
        body = json.dumps(request(TEXTS)).encode()
        await client.send("POST", PATH, body, [("content-type", "application/json")])
        await trio.testing.wait_all_tasks_blocked()
        assert len(it.emulator.requests) == 3
        with trio.fail_after(0.1):
            await (client.aclose() if how == "close" else client.stream.send_eof())
            for seen in it.emulator.requests:
                await seen.disconnected.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert it.sound()
        assert it.server.state.counters.outcomes == {"client_disconnected": 1}
