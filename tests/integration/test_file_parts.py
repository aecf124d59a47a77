"""Parts of chats and responses that name a stored file by `file_id`."""

from base64 import b64encode

import pytest

from qproxy.backends.local import key_file
from qproxy.wire import json_codec
from tests.helpers import MODEL, world
from tests.integration.test_files import call, upload
from tests.openai_types import refusal

PNG = b"\x89PNG\r\n\x1a\n\x00picture"
URI = f"data:image/png;base64,{b64encode(PNG).decode()}"
TEXT = "a,b\n1,é\n".encode()
JSON_TYPE = {"content-type": "application/json"}
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


async def ask(it, path, *parts, key=None, **fields):
    """Return the status and the body of a response to content parts."""
    name = "messages" if path == CHAT else "input"
    body = {"model": "qwen-plus", name: [{"role": "user", "content": list(parts)}], **fields}
    return await call(it, "POST", path, JSON_TYPE, json_codec.dumps(body), key)


def file_part(path, id):
    """Return a part with a file in the spelling of an endpoint."""
    return (
        {"type": "file", "file": {"file_id": id}} if path == CHAT else {"type": "input_file", "file_id": id}
    )


def sent(it):
    """Return the content of the last message that the upstream got."""
    return it.emulator.requests[-1].body["messages"][-1]["content"]


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_pictures_and_texts_are_sent_with_their_content(path):
    """A picture becomes a data URI, text a text with its filename, in place and in the order of the parts."""
    async with world() as it:
        picture = (await upload(it, PNG, filename="a.png", purpose="vision"))["id"]
        text = (await upload(it, b"\xef\xbb\xbf" + TEXT, filename="b.csv", purpose="user_data"))["id"]
        question = {"type": "text" if path == CHAT else "input_text", "text": "?"}
        parts = [question, *(file_part(path, id) for id in (text, picture, text))]
        status, answer = await ask(it, path, *parts)
        assert status == 200, answer
        shown = {"type": "text", "text": f'File "b.csv":\n\n{TEXT.decode()}'}
        pixels = {"type": "image_url", "image_url": {"url": URI}}
        assert sent(it) == [{"type": "text", "text": "?"}, shown, pixels, shown]


async def test_a_picture_of_a_response_and_of_a_tool():
    """`input_image` takes a picture with its detail, also in a tool's output; a response can be continued
    after its file was deleted."""
    async with world() as it:
        picture = (await upload(it, PNG, filename="a.png", purpose="vision"))["id"]
        part = {"type": "input_image", "file_id": picture, "detail": "high"}
        status, first = await ask(it, RESPONSES, part)
        assert status == 200, first
        assert sent(it) == [{"type": "image_url", "image_url": {"url": URI, "detail": "high"}}]
        tool = [
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [part]},
        ]
        status, answer = await ask(it, RESPONSES, input=tool)
        assert status == 200, answer
        assert URI in str(it.emulator.requests[-1].body["messages"])
        await call(it, "DELETE", f"/v1/files/{picture}")
        status, answer = await ask(
            it, RESPONSES, {"type": "input_text", "text": "?"}, previous_response_id=first["id"]
        )
        assert status == 200, answer
        assert URI in str(it.emulator.requests[-1].body["messages"])


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_other_files_are_rejected_by_name(path):
    """A file that is no picture or text, or does not exist, is a 400 that names the field and the remedy."""
    param = "messages[0].content[0].file.file_id" if path == CHAT else "input[0].content[0].file_id"
    async with world() as it:
        pdf = (await upload(it, b"%PDF-1.7\n\xff\x00", filename="a.pdf", purpose="user_data"))["id"]
        for id, words in (
            (pdf, "neither a picture"),
            ("file-none", "No such File"),
            (5, "expected a string"),
        ):
            status, answer = await ask(it, path, file_part(path, id))
            error = refusal(answer)
            assert (status, error.param) == (400, param)
            assert words in error.message
        text = (await upload(it, TEXT, filename="b.csv"))["id"]
        status, answer = await ask(it, RESPONSES, {"type": "input_image", "file_id": text})
        assert (status, refusal(answer).param) == (400, "input[0].content[0].file_id")
        assert it.emulator.requests == []


async def test_a_file_of_another_key_does_not_exist(tmp_path):
    """Only the key that uploaded a file can send it to a model."""
    alice, bob = (key_file.create(tmp_path / "keys.json", name=name)[1] for name in ("alice", "bob"))
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        part = file_part(CHAT, (await upload(it, TEXT, key=alice))["id"])
        status, answer = await ask(it, CHAT, part, key=bob)
        assert (status, refusal(answer).code) == (400, "file_not_found")
        assert (await ask(it, CHAT, part, key=alice))[0] == 200


async def test_files_count_for_the_body():
    """Body and files together are within max_body_bytes, each time that a file is named."""
    async with world(max_body_bytes=10_000) as it:
        part = file_part(CHAT, (await upload(it, b"a" * 4000))["id"])
        assert (await ask(it, CHAT, part, part))[0] == 200
        status, answer = await ask(it, CHAT, part, part, part)
        assert (status, refusal(answer).code) == (413, "request_too_large")
        assert "max_body_bytes" in refusal(answer).message
        large = file_part(CHAT, (await upload(it, b"a" * 20_000))["id"])
        assert (await ask(it, CHAT, large))[0] == 413


async def test_items_of_a_conversation():
    """A conversation is created and extended with the content of files."""
    async with world() as it:
        picture = (await upload(it, PNG, filename="a.png", purpose="vision"))["id"]
        part = {"type": "input_image", "file_id": picture}
        body = json_codec.dumps({"items": [{"role": "user", "content": [part]}]})
        status, made = await call(it, "POST", "/v1/conversations", JSON_TYPE, body)
        assert status == 200, made
        items = f"/v1/conversations/{made['id']}/items"
        assert (await call(it, "POST", items, JSON_TYPE, body))[0] == 200
        _, listed = await call(it, "GET", items)
        assert [item["content"][0]["image_url"] for item in listed["data"]] == [URI, URI]


async def test_the_tokens_of_a_files_content_are_counted():
    """A count has the content of the files that the input names."""
    async with world() as it:
        part = {"type": "input_file", "file_id": (await upload(it, b"one two three " * 50))["id"]}
        body = {"model": MODEL, "input": [{"role": "user", "content": [part]}]}
        status, _, counted = await it.post(body, "/v1/responses/input_tokens")
        assert (status, counted["object"]) == (200, "response.input_tokens")
        assert counted["input_tokens"] > 100
