"""Chat completions with `store` are kept for their key, listed, changed and deleted."""

import json

import pytest
from openai.pagination import SyncCursorPage
from openai.types.chat import ChatCompletion, ChatCompletionDeleted

from qproxy.backends.local import key_file
from qproxy.server.completion_store import CompletionQuery
from tests.helpers import HELLO, world
from tests.openai_types import refusal

PATH = "/v1/chat/completions"
STORED = {**HELLO, "store": True, "metadata": {"topic": "greeting"}}


async def create(it, headers=(), **fields):
    status, _, body = await it.post({**STORED, **fields}, PATH, headers)
    assert status == 200, body
    return body


async def delete(it, id, headers=()):
    async with it.client.request("DELETE", f"{PATH}/{id}", headers=headers) as response:
        return response.status, json.loads(await response.read())


async def test_a_completion_is_kept():
    """It is what the client got, with its metadata; `store` is no field for the upstream."""
    async with world() as it:
        status, headers, body = await it.post(STORED, PATH)
        assert status == 200
        assert "store" not in headers.get("x-qproxy-ignored-params", "")
        assert "store" not in it.emulator.requests[0].body
        status, stored = await it.get(f"{PATH}/{body['id']}")
        assert (status, stored) == (200, {**body, "metadata": {"topic": "greeting"}})
        ChatCompletion.model_validate(stored)


async def test_a_stream_is_kept_as_a_whole_completion():
    """Its content is the text of the stream, its id that of the chunks."""
    async with world() as it:
        _, text = await it.stream(STORED)
        chunk = json.loads(text.partition("\n\n")[0].removeprefix("data: "))
        status, stored = await it.get(f"{PATH}/{chunk['id']}")
        assert (status, stored["object"]) == (200, "chat.completion")
        assert stored["choices"][0]["message"]["content"].endswith("You said: Hello there")


async def test_a_broken_stream_is_not_kept():
    """Half of a completion is none."""
    async with world() as it:
        await it.stream({**STORED, "model": "fault-cut"})
        assert (await it.get(PATH))[1]["data"] == []


@pytest.mark.parametrize("fields", [{}, {"store": False}, {"store": None}])
async def test_a_request_without_store_keeps_nothing(fields):
    """Neither whole nor streamed."""
    async with world() as it:
        _, _, body = await it.post({**HELLO, **fields}, PATH)
        await it.stream({**HELLO, **fields})
        assert (await it.get(PATH))[1]["data"] == []
        status, answer = await it.get(f"{PATH}/{body['id']}")
        assert (status, "store" in refusal(answer).message) == (404, True)


async def test_a_server_that_stores_nothing_names_the_field():
    """Without `store_responses` the field is dropped, and the list is empty."""
    async with world(store_responses=False) as it:
        status, headers, _ = await it.post(STORED, PATH)
        assert (status, "store" in headers["x-qproxy-ignored-params"]) == (200, True)
        assert (await it.get(PATH))[1]["data"] == []


async def test_lists():
    """They are in the order of creation, in pages, of a model or with metadata."""
    async with world() as it:
        topics = ["a", "b", "a", "a"]
        ids = [(await create(it, metadata={"topic": topic}))["id"] for topic in topics]
        other = (await create(it, model="qwen-plus"))["id"]

        async def found(query):
            status, page = await it.get(f"{PATH}?{query}")
            assert status == 200
            SyncCursorPage[ChatCompletion].model_validate(page)
            return [item["id"] for item in page["data"]], page["has_more"]

        assert await found("") == ([*ids, other], False)
        assert await found("limit=2") == (ids[:2], True)
        assert await found(f"limit=2&after={ids[1]}") == (ids[2:], True)
        assert await found(f"order=desc&after={ids[1]}") == ([ids[0]], False)
        assert await found("metadata[topic]=a&limit=2") == ([ids[0], ids[2]], True)
        assert await found(f"metadata%5Btopic%5D=a&after={ids[2]}") == ([ids[3]], False)
        assert await found("model=qwen-plus") == ([other], False)
        assert await found("metadata[none]=a") == ([], False)


QUERIES = {"limit=0": "limit", "limit=x": "limit", "order=up": "order", "after=nobody": "after"}


@pytest.mark.parametrize(("query", "param"), QUERIES.items())
async def test_queries_that_are_not_valid(query, param):
    """The error names the parameter."""
    async with world() as it:
        status, body = await it.get(f"{PATH}?{query}")
        assert (status in (400, 404), refusal(body).param) == (True, param)


async def test_changes():
    """The metadata are replaced; a deleted completion is gone."""
    async with world() as it:
        id = (await create(it))["id"]
        status, _, body = await it.post({"metadata": {"new": "1"}}, f"{PATH}/{id}")
        assert (status, body["metadata"]) == (200, {"new": "1"})
        assert (await it.get(f"{PATH}/{id}"))[1]["metadata"] == {"new": "1"}
        status, body = await delete(it, id)
        assert status == 200
        assert ChatCompletionDeleted.model_validate(body, strict=True).id == id
        for status in ((await it.get(f"{PATH}/{id}"))[0], (await delete(it, id))[0]):
            assert status == 404
        assert (await it.post({"metadata": {}}, f"{PATH}/{id}"))[0] == 404


async def test_messages():
    """They are those of the request, in order, with ids; content parts stand by themselves."""
    parts = [{"type": "text", "text": "Hello"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    async with world() as it:
        id = (await create(it, messages=messages))["id"]
        _, page = await it.get(f"{PATH}/{id}/messages")
        first, second = page["data"]
        assert (first["role"], first["content"], first["content_parts"]) == ("system", "Be brief.", None)
        assert (second["content"], second["content_parts"]) == (None, parts)
        _, page = await it.get(f"{PATH}/{id}/messages?limit=1&after={first['id']}")
        assert (page["data"], page["has_more"]) == ([second], False)
        assert (await it.get(f"{PATH}/none/messages"))[0] == 404


async def test_another_key_finds_nothing(tmp_path):
    """Completions belong to the key that asked for them."""
    file = tmp_path / "keys.json"
    secrets = [key_file.create(file, name=name)[1] for name in ("one", "two")]
    one, two = ([(b"authorization", f"Bearer {secret}".encode())] for secret in secrets)
    async with world(keys_file=str(file)) as it:
        id = (await create(it, one))["id"]
        assert (await it.get(f"{PATH}/{id}", one))[0] == 200
        assert (await it.get(f"{PATH}/{id}", two))[0] == 404
        assert (await it.get(PATH, two))[1]["data"] == []
        assert (await delete(it, id, two))[0] == 404


async def test_the_file_outlives_the_server(tmp_path):
    """A restarted server finds what was stored; `delete_owner` deletes all of a key."""
    settings = {"responses_file": str(tmp_path / "responses.sqlite3")}
    async with world(**settings) as it:
        id = (await create(it))["id"]
    async with world(**settings) as it:
        assert (await it.get(f"{PATH}/{id}"))[0] == 200
        store = it.server.state.completions
        assert store is not None
        assert await store.delete_owner("") == 1
        assert await store.page("", CompletionQuery()) == ([], False)


async def test_old_and_large_ones_are_discarded(autojump_clock):
    """The age and the size of all are bounded by the settings of stored responses."""
    async with world(responses_max_bytes=4000) as it:
        ids = [(await create(it, metadata={"n": str(n)}))["id"] for n in range(9)]
        kept = [item["id"] for item in (await it.get(PATH))[1]["data"]]
        assert kept == ids[-len(kept) :]
        assert 0 < len(kept) < 9
