"""Pictures end to end: texts, edits, variations, links and files, refusals, own servers, the SDK."""

import base64
import json
import struct

import pytest
from openai.types import ImageEditCompletedEvent, ImageGenCompletedEvent, ImagesResponse

from qproxy.emulator import images as emulated
from qproxy.emulator.faults import json_reply
from qproxy.wire.form_data import FormBody, FormPart
from tests.helpers import accounts, world
from tests.integration.test_openai_sdk import run, sdk
from tests.openai_types import judge, refusal

PATH = "/v1/images/generations"
MODEL = "qwen-image-2.0"
BODY = {"model": MODEL, "prompt": "a red car"}
HOSTS = {"result_hosts": ["http://one.test"]}
PNG = emulated.png("input", 16, 16)


def size_of(data):
    """Return the width and height of a PNG file."""
    assert data.startswith(b"\x89PNG")
    return struct.unpack(">II", data[16:24])


async def send_form(it, path, *parts):
    """Return (status, headers, body) of a form."""
    body = FormBody(parts, "b0")
    raw = b"".join([chunk async for chunk in body.chunks()])
    headers = [(b"content-type", body.content_type.encode())]
    async with it.client.request("POST", path, headers=headers, body=raw) as response:
        data = await response.read()
    return (
        response.status,
        {name.decode(): value.decode() for name, value in response.headers},
        json.loads(data),
    )


async def test_links():
    """Links of the vendor are passed on with OpenAI's shape, and nothing is downloaded."""
    async with world() as it:
        status, _, body = await it.post({**BODY, "n": 2, "size": "1024x1536"}, PATH)
        assert status == 200
        made = judge(ImagesResponse, body)
        assert len(made.data) == 2
        assert all("/results/image.png" in image.url for image in made.data)
        assert body["size"] == "1024x1536"
        (seen,) = it.emulator.requests
        assert seen.body["input"] == {"messages": [{"role": "user", "content": [{"text": "a red car"}]}]}
        assert seen.body["parameters"] == {"n": 2, "size": "1024*1536"}
        assert it.sound()


async def test_files():
    """`b64_json` downloads the pictures from the allowed host."""
    async with world(**HOSTS) as it:
        _, _, body = await it.post({**BODY, "response_format": "b64_json", "size": "512x768"}, PATH)
        (item,) = body["data"]
        data = base64.b64decode(item["b64_json"])
        assert data == emulated.png("a red car", 512, 768)
        assert size_of(data) == (512, 768)


async def test_a_link_to_another_host_is_not_followed():
    """The error names the setting."""
    async with world() as it:
        status, _, body = await it.post({**BODY, "response_format": "b64_json"}, PATH)
        assert status == 502
        assert "result_hosts" in refusal(body).message


async def test_more_pictures_than_a_request_makes():
    """Several requests are made in parallel, and their pictures are one response."""
    async with world() as it:
        _, _, body = await it.post({**BODY, "model": "qwen-image-plus", "n": 3}, PATH)
        assert len(body["data"]) == 3
        assert [seen.body["parameters"]["n"] for seen in it.emulator.requests] == [1, 1, 1]


async def test_a_size_that_is_not_made():
    """The nearest one is made and named, or rejected with strict_params."""
    async with world() as it:
        _, headers, body = await it.post({**BODY, "size": "256x256"}, PATH)
        assert body["size"] == "512x512"
        assert "size 256x256 made 512x512" in headers["x-qproxy-notes"]
    async with world(strict_params=True) as it:
        status, _, body = await it.post({**BODY, "size": "256x256"}, PATH)
        assert (status, refusal(body).param) == (400, "size")


async def test_fields_of_both_apis():
    """Qualities are Model Studio's words, its own fields pass, and others are dropped and named."""
    async with world() as it:
        body = {**BODY, "quality": "low", "seed": 7, "style": "vivid", "user": "me", "background": "opaque"}
        _, headers, _ = await it.post(body, PATH)
        assert it.emulator.requests[0].body["parameters"] == {"n": 1, "prompt_extend": False, "seed": 7}
        assert headers["x-qproxy-ignored-params"] == "style, user"


async def test_edits_and_variations():
    """Pictures of a form are data URIs before the text; a variation has a text of its own."""
    picture = FormPart("image[]", PNG, "a.png", "image/png")
    async with world() as it:
        parts = (FormPart("model", MODEL), FormPart("prompt", "blue"), FormPart("n", "1"), picture, picture)
        status, _, body = await send_form(it, "/v1/images/edits", *parts)
        assert (status, len(body["data"])) == (200, 1)
        content = it.emulator.requests[0].body["input"]["messages"][0]["content"]
        uri = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
        assert content == [{"image": uri}, {"image": uri}, {"text": "blue"}]
        one = FormPart("image", PNG, "a.png", "image/png")
        status, _, _ = await send_form(it, "/v1/images/variations", FormPart("model", MODEL), one)
        assert status == 200
        assert it.emulator.requests[1].body["input"]["messages"][0]["content"][1] == {
            "text": "Make a variation of this picture."
        }


async def test_streams_have_only_the_finished_picture():
    """The events are OpenAI's; partial pictures are dropped and named."""
    async with world(**HOSTS) as it:
        raw = json.dumps({**BODY, "stream": True, "partial_images": 2}).encode()
        headers = [(b"content-type", b"application/json")]
        async with it.client.request("POST", PATH, headers=headers, body=raw) as response:
            text = (await response.read()).decode()
        assert dict(response.headers)[b"x-qproxy-ignored-params"] == b"partial_images"
        name, _, data = text.strip().partition("\ndata: ")
        assert name == "event: image_generation.completed"
        judge(ImageGenCompletedEvent, json.loads(data))
        parts = (FormPart("model", MODEL), FormPart("prompt", "blue"), FormPart("stream", "true"))
        body = FormBody((*parts, FormPart("image", PNG, "a.png", "image/png")), "b0")
        raw = b"".join([chunk async for chunk in body.chunks()])
        fields = [(b"content-type", body.content_type.encode())]
        async with it.client.request("POST", "/v1/images/edits", headers=fields, body=raw) as response:
            text = (await response.read()).decode()
        judge(ImageEditCompletedEvent, json.loads(text.partition("data: ")[2]))


INVALID = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty prompt": ({"prompt": " "}, "prompt"),
    "n": ({"n": 11}, "n"),
    "a size": ({"size": "large"}, "size"),
    "transparency": ({"background": "transparent"}, "background"),
    "another format": ({"output_format": "webp"}, "output_format"),
    "a mask": ({"mask": "x"}, "mask"),
    "a quality": ({"quality": "best"}, "quality"),
}


@pytest.mark.parametrize(("fields", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(fields, param):
    """What cannot be had is a 400 that names the field, before any upstream."""
    async with world() as it:
        status, _, body = await it.post({**BODY, **fields}, PATH)
        assert (status, refusal(body).param) == (400, param)
        assert it.emulator.requests == []


FORMS = {
    "no picture": ((FormPart("model", MODEL), FormPart("prompt", "x")), "image"),
    "no model": ((FormPart("prompt", "x"), FormPart("image", PNG, "a")), "model"),
    "no prompt": ((FormPart("model", MODEL), FormPart("image", PNG, "a")), "prompt"),
    "a mask": (
        (FormPart("model", MODEL), FormPart("prompt", "x"), FormPart("mask", PNG, "m")), "mask",
    ),
    "too many": (
        (FormPart("model", MODEL), FormPart("prompt", "x"), *[FormPart("image", PNG, "a")] * 4), "image",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("parts", "param"), FORMS.values(), ids=FORMS)
async def test_invalid_forms_are_named(parts, param):
    """So it is with forms."""
    async with world() as it:
        status, _, body = await send_form(it, "/v1/images/edits", *parts)
        assert (status, refusal(body).param) == (400, param)
        assert it.emulator.requests == []


async def test_a_refusal_of_the_content_filter():
    """It has the code that clients of pictures know."""
    async with world() as it:
        status, _, body = await it.post({**BODY, "prompt": emulated.FORBIDDEN}, PATH)
        assert (status, refusal(body).code) == (400, "content_policy_violation")


@pytest.mark.parametrize(
    "answer", [{}, {"output": {"choices": []}}, {"output": {"choices": [{"message": 1}]}}]
)
async def test_a_response_without_a_picture_is_an_error(answer):
    """It is the upstream's fault."""
    async with world() as it:
        it.emulator.script(*[json_reply(answer)] * 3)
        status, _, body = await it.post(BODY, PATH)
        assert status == 502
        refusal(body)


async def test_own_servers_get_the_clients_body():
    """JSON with all of its fields, and forms with all of their parts."""
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        body = {**BODY, "model": "flux", "steps": 4, "output_format": "webp"}
        status, _, answer = await it.post(body, PATH)
        assert (status, it.emulator.requests[0].body) == (200, body)
        assert base64.b64decode(answer["data"][0]["b64_json"]) == emulated.png("a red car", 8, 8)
        picture = FormPart("image", PNG, "a.png", "image/png")
        parts = (FormPart("model", "flux"), FormPart("prompt", "x"), FormPart("strength", "0.5"), picture)
        status, _, _ = await send_form(it, "/v1/images/edits", *parts)
        seen = it.emulator.requests[1]
        assert (status, seen.path) == (200, "/v1/images/edits")
        assert seen.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert it.sound()


async def test_the_ledger_counts_pictures(tmp_path):
    """They are a unit of their own."""
    async with world(ledger=str(tmp_path / "ledger.sqlite3")) as it:
        await it.post({**BODY, "n": 2}, PATH)
        assert it.server.state.ledger is not None
        (row,) = await it.server.state.ledger.recent_requests(5)
        assert (row["endpoint"], row["images"], row["outcome"]) == ("/images/generations", 2, "ok")


async def test_openai_python():
    """The SDK generates and edits."""
    async with sdk() as (client, _):
        made = await run(client.images.generate, model=MODEL, prompt="a red car", size="1024x1024")
        assert made.data[0].url
        edited = await run(client.images.edit, model=MODEL, prompt="blue", image=("a.png", PNG, "image/png"))
        assert edited.data[0].url
        with pytest.deprecated_call():
            varied = await run(client.images.create_variation, model=MODEL, image=("a.png", PNG, "image/png"))
        assert varied.data[0].url
