"""Conversations: created, extended by items and responses, read in pages and deleted, through openai-python
and as bodies that match its types."""

import json
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest
from openai.types.conversations import Conversation, ConversationDeletedResource, ConversationItemList
from openai.types.conversations.conversation_item import ConversationItem
from openai.types.responses import Response

from tests.helpers import MODEL, world
from tests.openai_types import judge, refusal

PATH = "/v1/conversations"
RESPONSES = "/v1/responses"
HELLO = {"type": "message", "role": "user", "content": "My name is Ada."}


@asynccontextmanager
async def sdk(w):
    """Yield an asynchronous OpenAI client of the app."""
    async with httpx2.AsyncClient(transport=w.client.transport(httpx2)) as http_client:
        yield openai.AsyncOpenAI(
            base_url="http://in-process/v1", api_key="any", http_client=http_client, max_retries=0
        )


async def send(w, method, path, body=None, headers=()):
    """Return (status, body) of a request."""
    raw = b"" if body is None else json.dumps(body).encode()
    fields = [(b"content-type", b"application/json"), *headers]
    async with w.client.request(method, path, headers=fields, body=raw) as response:
        return response.status, json.loads(await response.read())


def texts(items):
    """Return the texts of some message items."""
    return [part["text"] for item in items for part in item["content"]]


def prompt(w, number=-1):
    """Return the messages that the upstream received."""
    return w.emulator.requests[number].body["messages"]


async def test_the_sdk_uses_conversations():
    """Every method of openai-python's `conversations` works."""
    async with world() as w, sdk(w) as client:
        created = await client.conversations.create(items=[HELLO], metadata={"topic": "names"})
        id_ = created.id
        assert id_.startswith("conv_")
        assert (await client.conversations.retrieve(id_)) == created
        updated = await client.conversations.update(id_, metadata={"topic": "people"})
        assert updated.metadata == {"topic": "people"}
        added = await client.conversations.items.create(
            id_, items=[{"role": "user", "content": [{"type": "input_text", "text": f"Number {number}"}]}
                        for number in range(4)]
        )  # fmt: skip
        assert len(added.data) == 4
        listed = [item async for item in client.conversations.items.list(id_, limit=2, order="asc")]
        assert [item.content[0].text for item in listed] == [
            "My name is Ada.",
            *(f"Number {n}" for n in range(4)),
        ]
        newest = await client.conversations.items.list(id_, limit=2)
        assert [item.content[0].text for item in newest.data] == ["Number 3", "Number 2"]
        item = await client.conversations.items.retrieve(listed[1].id, conversation_id=id_)
        assert item == listed[1]
        assert (await client.conversations.items.delete(item.id, conversation_id=id_)).id == id_
        with pytest.raises(openai.NotFoundError):
            await client.conversations.items.retrieve(item.id, conversation_id=id_)
        assert (await client.conversations.delete(id_)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(id_)


async def test_a_response_continues_and_extends_a_conversation():
    """The model gets the conversation's items, and its input and output are appended, whole and streamed,
    also without a stored response."""
    async with world() as w, sdk(w) as client:
        id_ = (await client.conversations.create(items=[HELLO])).id
        first = await client.responses.create(model=MODEL, input="Who am I?", conversation=id_)
        assert first.conversation.id == id_
        assert [message["role"] for message in prompt(w)] == ["user", "user"]
        async with client.responses.stream(model=MODEL, input="Again?", conversation={"id": id_}) as stream:
            second = await stream.get_final_response()
        assert [message["role"] for message in prompt(w)] == ["user", "user", "assistant", "user"]
        await client.responses.create(model=MODEL, input="Last one", conversation=id_, store=False)
        listed = [item async for item in client.conversations.items.list(id_, order="asc", limit=100)]
        assert [item.role for item in listed] == [
            "user",
            "user",
            "assistant",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        assert [listed[2].id, listed[4].id] == [first.output[0].id, second.output[0].id]


async def test_bodies_match_the_types():
    """Every body is what OpenAI's types declare, with all kinds of items."""
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    async with world() as w:
        _, created = await send(w, "POST", PATH, {})
        judge(Conversation, created)
        one = f"{PATH}/{created['id']}"
        _, listed = await send(w, "GET", f"{one}/items")
        assert judge(ConversationItemList, listed).data == []
        items = [
            HELLO,
            {"role": "assistant", "content": "Hello Ada."},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Think."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "done"},
        ]
        status, added = await send(w, "POST", f"{one}/items", {"items": items})
        assert status == 200
        assert [item.type for item in judge(ConversationItemList, added).data] == [
            "message", "message", "reasoning", "function_call", "function_call_output",
        ]  # fmt: skip
        body = {"model": MODEL, "input": "Go on", "conversation": created["id"], "tools": [tool]}
        status, answer = await send(w, "POST", RESPONSES, body)
        assert status == 200
        assert judge(Response, answer).conversation.id == created["id"]
        _, listed = await send(
            w, "GET", f"{one}/items?limit=100&order=asc&include[]=reasoning.encrypted_content"
        )
        assert len(judge(ConversationItemList, listed).data) == 7
        assert listed["data"][2]["encrypted_content"]
        _, item = await send(w, "GET", f"{one}/items/rs_1")
        judge(ConversationItem, item)
        _, deleted = await send(w, "DELETE", one)
        judge(ConversationDeletedResource, deleted)


async def test_a_conversation_belongs_to_its_key(tmp_path):
    """With another key every route, and a response, finds no such conversation."""
    keys = [(b"authorization", f"Bearer {name}-key-123456".encode()) for name in ("bob", "amy")]
    async with world(api_keys=["bob-key-123456", "amy-key-123456"]) as w:
        _, created = await send(w, "POST", PATH, {"items": [HELLO]}, keys[:1])
        one = f"{PATH}/{created['id']}"
        _, listed = await send(w, "GET", f"{one}/items", headers=keys[:1])
        item = listed["data"][0]["id"]
        for method, path, body in (
            ("GET", one, None),
            ("POST", one, {"metadata": {}}),
            ("DELETE", one, None),
            ("GET", f"{one}/items", None),
            ("POST", f"{one}/items", {"items": [HELLO]}),
            ("GET", f"{one}/items/{item}", None),
            ("DELETE", f"{one}/items/{item}", None),
            ("POST", RESPONSES, {"model": MODEL, "input": "hi", "conversation": created["id"]}),
        ):
            status, refused = await send(w, method, path, body, keys[1:])
            assert status == 404, path
            assert refusal(refused).message == f"Conversation with id '{created['id']}' not found."
        assert not w.emulator.requests
        assert await send(w, "GET", f"{one}/items", headers=keys[:1]) == (200, listed)


INVALID = {
    "too many items": ("", {"items": [HELLO] * 21}, "items", "array_above_max_length"),
    "items of another type": ("", {"items": "hello"}, "items", "invalid_type"),
    "an invalid item": (
        "", {"items": [HELLO, {"role": "user"}]}, "items[1].content", "missing_required_parameter"
    ),
    "invalid metadata": ("", {"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    "no object": ("", [], None, None),
    "no metadata": ("/{id}", {}, "metadata", "missing_required_parameter"),
    "no items": ("/{id}/items", {}, "items", "missing_required_parameter"),
    "a known id": ("/{id}/items", {"items": [{**HELLO, "id": "msg_1"}]}, "items", "invalid_value"),
    "an id twice": ("/{id}/items", {"items": [{**HELLO, "id": "msg_2"}] * 2}, "items", "invalid_value"),
    "an id twice at its creation": ("", {"items": [{**HELLO, "id": "msg_1"}] * 2}, "items", "invalid_value"),
    "an unknown reference": (
        "/{id}/items", {"items": [{"type": "item_reference", "id": "x"}]}, "input", None
    ),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "code"), INVALID.values(), ids=INVALID)
async def test_an_invalid_request_names_its_field(path, body, param, code):
    """An invalid body is an error that names the field, and changes nothing."""
    async with world() as w:
        _, created = await send(w, "POST", PATH, {"items": [{**HELLO, "id": "msg_1"}]})
        status, refused = await send(w, "POST", PATH + path.format(id=created["id"]), body)
        assert status == (404 if code is None and param else 400)
        assert (refusal(refused).param, refused["error"]["code"]) == (param, code)
        _, listed = await send(w, "GET", f"{PATH}/{created['id']}/items")
        assert [item["id"] for item in listed["data"]] == ["msg_1"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "order=up", "after=nothing"])
async def test_an_invalid_page_is_an_error(query):
    """A page is selected by `limit` (1 to 100), `order` and `after`, an item of the conversation."""
    async with world() as w:
        _, created = await send(w, "POST", PATH, {"items": [HELLO]})
        status, refused = await send(w, "GET", f"{PATH}/{created['id']}/items?{query}")
        assert (status, refusal(refused).param) == (400, query.partition("=")[0])


async def test_a_conversation_excludes_a_previous_response():
    """Both together are an error, as at OpenAI."""
    async with world() as w:
        body = {"model": MODEL, "input": "hi", "conversation": "conv_1", "previous_response_id": "resp_1"}
        status, refused = await send(w, "POST", RESPONSES, body)
        assert (status, refusal(refused).code) == (400, "mutually_exclusive_parameters")


async def test_unsupported_items_are_named():
    """Items that mean nothing to a Qwen model are left out, and the response's headers name them."""
    search = {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "x"},
    }
    async with world() as w:
        status, head, _ = await w.post({"items": [HELLO, search]}, PATH)
        assert (status, head["x-qproxy-ignored-params"]) == (200, "items[1]")


async def test_a_server_without_a_store_has_no_conversations():
    """Without `store_responses` creating one is an error that names the setting, and none is found."""
    async with world(store_responses=False) as w:
        status, refused = await send(w, "POST", PATH, {})
        assert status == 400
        assert "store_responses" in refusal(refused).message
        assert (await send(w, "GET", f"{PATH}/conv_1"))[0] == 404
        status, _ = await send(
            w, "POST", RESPONSES, {"model": MODEL, "input": "hi", "conversation": "conv_1"}
        )
        assert status == 404


async def test_a_deleted_conversation_does_not_fail_a_response(caplog):
    """A response whose conversation was deleted meanwhile is complete; the log says what is missing."""
    async with world() as w, sdk(w) as client:
        id_ = (await client.conversations.create()).id
        async with client.responses.stream(model=MODEL, input="Hello", conversation=id_) as stream:
            async for event in stream:
                if event.type == "response.created":
                    await client.conversations.delete(id_)
            assert (await stream.get_final_response()).status == "completed"
    assert "its items are not in the conversation" in caplog.text
