"""Embeddings of pictures, videos and texts, in every form of a request, at Model Studio and own servers."""

import struct
from base64 import b64decode

import pytest

from qproxy.emulator.embeddings import vector as text_vector
from qproxy.emulator.faults import json_reply
from qproxy.emulator.multimodal_embeddings import IMAGE_TOKENS, vector
from qproxy.wire.dialects.multimodal_embeddings import SERVICE
from tests.helpers import accounts, world
from tests.openai_types import refusal

PATH = "/v1/embeddings"
MODEL = "qwen3-vl-embedding"
TONGYI = "tongyi-embedding-vision-plus-2026-03-06"
CAT, DOG = "https://a.test/cat.png", "https://a.test/dog.png"
VIDEO = "https://a.test/a.mp4"
PIXEL = "iVBORw0KGgoAAAANSUhEUg=="
CAT_PART = {"type": "image_url", "image_url": {"url": CAT}}
TEXT_PART = {"type": "text", "text": "a cat"}
FUSED = [{"text": "a cat"}, {"image": CAT}]


def request(items, **fields):
    return {"model": MODEL, "input": items, "dimensions": 256, **fields}


def found(body):
    return [item["embedding"] for item in body["data"]]


def sent(it):
    """Return the contents of each upstream request."""
    return [seen.body["input"]["contents"] for seen in it.emulator.requests]


async def metrics(it):
    async with it.client.request("GET", "/metrics") as response:
        return (await response.read()).decode()


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
async def test_items_of_jina(dialect):
    """Each item gets its vector, in order, from the native service in both dialects, and pictures count."""
    items = ["a cat", {"text": "a dog"}, {"image": CAT}, {"video": VIDEO}, {"image": PIXEL}]
    contents = [
        {"text": "a cat"},
        {"text": "a dog"},
        {"image": CAT},
        {"video": VIDEO},
        {"image": f"data:image/png;base64,{PIXEL}"},
    ]
    async with world(accounts=accounts("one", dialect=dialect), metrics_access="open") as it:
        status, _, body = await it.post(request(items), PATH)
        assert status == 200
        assert found(body) == [vector([content], 256) for content in contents]
        assert [item["index"] for item in body["data"]] == list(range(5))
        tokens = 4 + 3 * IMAGE_TOKENS
        assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        (seen,) = it.emulator.requests
        assert (seen.path, seen.body["parameters"]) == (SERVICE, {"dimension": 256})
        assert sent(it) == [contents]
        assert f'qproxy_units_total{{model="{MODEL}",unit="images"}} 2' in await metrics(it)
        assert it.sound()


FORMS = {
    "parts": {"input": [[TEXT_PART, CAT_PART]]},
    "content": {"input": {"content": [TEXT_PART, CAT_PART]}},
    "keys": {"input": [{"text": "a cat", "image": CAT}]},
    "plain url": {"input": [[{"text": "a cat"}, {"type": "image_url", "image_url": CAT}]]},
    "messages": {"messages": [{"role": "user", "content": [TEXT_PART, CAT_PART]}]},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_several_parts_are_one_vector(form):
    """An item of several parts is one fused vector, whatever the form."""
    async with world() as it:
        status, _, body = await it.post({"model": MODEL, "dimensions": 256, **form}, PATH)
        assert (status, found(body)) == (200, [vector(FUSED, 256)])
        assert sent(it) == [FUSED]
        assert it.emulator.requests[0].body["parameters"] == {"enable_fusion": True, "dimension": 256}


async def test_fused_items_are_requests_of_their_own():
    """Fusion holds for a whole request of qwen3-vl, so fused items and single ones go apart, in order."""
    fused = {"text": "a cat", "image": CAT}
    async with world() as it:
        _, _, body = await it.post(request(["one", fused, "two", "three"]), PATH)
        assert found(body) == [
            vector([{"text": "one"}], 256),
            vector(FUSED, 256),
            vector([{"text": "two"}], 256),
            vector([{"text": "three"}], 256),
        ]
        assert sorted(map(len, sent(it))) == [1, 2, 2]


async def test_fused_items_of_one_request():
    """Tongyi's dated models make a vector of an element's keys: several fit into one request."""
    items = [{"text": "a cat", "image": CAT}, [{"image": CAT}, {"image": DOG}, {"text": "a"}, {"text": "b"}]]
    elements = [{"text": "a cat", "image": CAT}, {"text": "a\nb", "multi_images": [CAT, DOG]}]
    async with world() as it:
        _, _, body = await it.post(request(items, model=TONGYI), PATH)
        assert sorted(sent(it)[0], key=str) == sorted(elements, key=str)
        assert len(body["data"]) == 2


@pytest.mark.parametrize(
    ("items", "sizes"),
    [
        (["text"] * 45 + [{"image": CAT}], [6, 20, 20]),
        ([{"image": CAT}] * 12, [2, 5, 5]),
        ([{"video": VIDEO}] * 3, [1, 1, 1]),
    ],
    ids=["parts", "images", "videos"],
)
async def test_more_than_a_model_takes(items, sizes):
    """Requests stay within the limits of the model's data, and the vectors keep the order."""
    async with world() as it:
        status, _, body = await it.post(request(items), PATH)
        assert (status, len(body["data"])) == (200, len(items))
        assert sorted(map(len, sent(it))) == sizes
        contents = [{"text": item} if isinstance(item, str) else item for item in items]
        assert found(body) == [vector([content], 256) for content in contents]


async def test_texts_alone():
    """A request of OpenAI's own form reaches the multimodal service too, in base64 if wanted."""
    async with world() as it:
        _, _, body = await it.post(request("a cat", encoding_format="base64"), PATH)
        numbers = struct.unpack("<256f", b64decode(found(body)[0]))
        assert numbers == pytest.approx(vector([{"text": "a cat"}], 256), abs=1e-7)
        assert sent(it) == [[{"text": "a cat"}]]


async def test_the_system_message_is_the_instruction():
    """vLLM's system message is Model Studio's `instruct`; what Model Studio does not know is named."""
    messages = [{"role": "system", "content": "Find cats."}, {"role": "user", "content": [CAT_PART]}]
    body = {"model": MODEL, "messages": messages, "user": "me", "add_generation_prompt": True, "fps": 0.5}
    async with world() as it:
        status, headers, _ = await it.post(body, PATH)
        assert (status, headers["x-qproxy-ignored-params"]) == (200, "add_generation_prompt, user")
        assert it.emulator.requests[0].body["parameters"] == {"instruct": "Find cats.", "fps": 0.5}
    async with world(strict_params=True) as it:
        assert refusal((await it.post(body, PATH))[2]).param == "add_generation_prompt"


REFUSED = {
    "another task": ({"model": "text-embedding-v4", "input": [{"image": CAT}]}, "input"),
    "dimensions": (request([{"image": CAT}], dimensions=100), "dimensions"),
    "dimensions of texts": (request("x", dimensions=100), "dimensions"),
    "images of one": (request([[{"image": CAT}] * 6]), "input[0]"),
    "parts of one": (request(["x", [{"text": "x"}] * 21]), "input[1]"),
    "no fusion": ({"model": "tongyi-embedding-vision-plus", "input": [FUSED]}, "input[0]"),
    "two videos of one": ({"model": TONGYI, "input": [[{"video": VIDEO}] * 2]}, "input[0]"),
    "size": (request([{"image": f"data:image/png;base64,{'A' * 7_000_000}"}]), "input[0]"),
    "no part": (request([{}]), "input[0]"),
    "an empty text": (request([{"text": ""}]), "input[0]"),
    "a number": (request([{"image": CAT}, 3]), "input[1]"),
    "no picture": (request([{"image": "cat"}]), "input[0].image"),
    "no message": ({"model": MODEL, "messages": []}, "messages"),
    "messages of another type": ({"model": MODEL, "messages": "x"}, "messages"),
    "neither": ({"model": MODEL}, "input"),
    "both": (request([{"image": CAT}], messages=[]), "messages"),
}


@pytest.mark.parametrize(("body", "param"), REFUSED.values(), ids=REFUSED)
async def test_refusals(body, param):
    """What a model cannot embed is a 400 with its place, and reaches no upstream."""
    async with world() as it:
        status, _, answer = await it.post(body, PATH)
        assert (status, refusal(answer).param) == (400, param)
        assert not it.emulator.requests


OWN = {
    "array": {"input": ["a", {"image": CAT, "id": 3}], "task": "retrieval"},
    "one": {"input": {"content": [CAT_PART]}, "user": "me"},
    "messages": {"messages": [{"role": "user", "content": [CAT_PART]}], "add_special_tokens": True},
}


@pytest.mark.parametrize("fields", OWN.values(), ids=OWN)
async def test_an_own_server_gets_the_clients_fields(fields):
    """An own server of any model gets the request as it is, in one piece."""
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        status, headers, body = await it.post({"model": "own", "dimensions": 64, **fields}, PATH)
        assert status == 200
        assert "x-qproxy-ignored-params" not in headers
        (seen,) = it.emulator.requests
        assert seen.path == PATH
        assert seen.body == {"model": "own", "dimensions": 64, "encoding_format": "float", **fields}
        assert len(body["data"]) == (2 if fields is OWN["array"] else 1)


async def test_texts_for_an_own_server():
    """An own server of a multimodal model gets texts as any other."""
    row = {"index": 0, "embedding": text_vector("a", 4)}
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        it.emulator.script(json_reply({"data": [row]}))
        status, _, body = await it.post({"model": "Qwen/Qwen3-VL-Embedding-2B", "input": "a"}, PATH)
        assert (status, len(found(body)[0])) == (200, 4)
        assert it.emulator.requests[0].body["input"] == ["a"]
