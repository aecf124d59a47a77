"""The embeddings endpoint: accepted and rejected requests, and the response body."""

import json

import pytest
from openai.types import CreateEmbeddingResponse

from qproxy.wire.endpoints import embeddings
from qproxy.wire.errors import RequestError
from tests.openai_types import judge

ASKED = {"model": "text-embedding-v4", "input": "Hello"}


@pytest.mark.parametrize(
    ("change", "texts", "base64", "params"),
    [
        ({}, ["Hello"], False, {}),
        ({"input": ["a", "b"]}, ["a", "b"], False, {}),
        ({"encoding_format": None}, ["Hello"], False, {}),
        ({"encoding_format": "base64"}, ["Hello"], True, {}),
        ({"dimensions": 64}, ["Hello"], False, {"dimensions": 64}),
        ({"dimensions": 64.0}, ["Hello"], False, {"dimensions": 64}),
        ({"text_type": "query", "extra": 0}, ["Hello"], False, {"text_type": "query", "extra": 0}),
        ({"input": [" "] * 2048}, [" "] * 2048, False, {}),
    ],
)
def test_decode(change, texts, base64, params):
    """A request is decoded to texts, the format and Qwen's own fields."""
    request = embeddings.decode(ASKED | change)
    assert (list(request.texts), request.base64, request.params) == (texts, base64, params)


REFUSED = {
    "not an object": ([], None, "JSON object"),
    "no model": ({"input": "x"}, "model", "model"),
    "no input": ({"model": "m"}, "input", "Missing"),
    "null input": ({"model": "m", "input": None}, "input", "Missing"),
    "empty text": (ASKED | {"input": ""}, "input", "empty"),
    "empty list": (ASKED | {"input": []}, "input", "empty"),
    "an empty text among others": (ASKED | {"input": ["a", ""]}, "input[1]", "empty"),
    "token ids": (ASKED | {"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
    "lists of token ids": (ASKED | {"input": [[1], [2, 3]]}, "input", "check_embedding_ctx_length=False"),
    "a number": (ASKED | {"input": 7}, "input", "an integer"),
    "mixed": (ASKED | {"input": ["a", 7]}, "input[1]", "an integer"),
    "lists of texts": (ASKED | {"input": [["a"]]}, "input[0]", "an array"),
    "too many": (ASKED | {"input": ["a"] * 2049}, "input", "2048"),
    "a wrong format": (ASKED | {"encoding_format": "hex"}, "encoding_format", "base64, float"),
    "dimensions": (ASKED | {"dimensions": 0}, "dimensions", "from 1"),
    "dimensions in words": (ASKED | {"dimensions": "many"}, "dimensions", "a string"),
    "sparse": (ASKED | {"output_type": "sparse"}, "output_type", "dense"),
    "user": (ASKED | {"user": 7}, "user", "an integer"),
}


@pytest.mark.parametrize(("body", "param", "expected_text"), REFUSED.values(), ids=REFUSED)
def test_rejections_name_the_field(body, param, expected_text):
    """The 400 names the field and its problem."""
    with pytest.raises(RequestError) as caught:
        embeddings.decode(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert expected_text in caught.value.message


def test_ignored_fields():
    """user is dropped and named."""
    request = embeddings.decode(ASKED | {"user": "u"})
    assert (request.ignored, request.params) == (("user",), {})


@pytest.mark.parametrize("rows", [[b"[0.5]"], [b"[1,2]", b"[-3.0,4]"]])
def test_parts_add_up_to_the_response(rows):
    """The parts add up to OpenAI's response, one part for each vector and one for the rest."""
    pieces = list(embeddings.iter_body(embeddings.decode(ASKED), rows, 7))
    assert len(pieces) == len(rows) + 1
    assert embeddings.content_length(embeddings.decode(ASKED), rows, 7) == sum(map(len, pieces))
    body = json.loads(b"".join(pieces))
    assert [item.pop("embedding") for item in body["data"]] == [json.loads(row) for row in rows]
    assert [item["index"] for item in body["data"]] == list(range(len(rows)))
    assert body["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert body["model"] == ASKED["model"]


def test_the_response_has_the_sdks_types():
    """The numbers validate as openai-python's types."""
    body = json.loads(b"".join(embeddings.iter_body(embeddings.decode(ASKED), [b"[0.5, 0.25]"], 1)))
    assert judge(CreateEmbeddingResponse, body).data[0].embedding == [0.5, 0.25]
