"""Requests for embeddings in both dialects, and responses that must be rejected."""

import json

import pytest

from qproxy.emulator import embeddings as emulated
from qproxy.wire.dialects import DIALECTS, UpstreamTarget, embeddings
from qproxy.wire.embeddings import EmbeddingInput
from qproxy.wire.errors import UpstreamError

TARGET = UpstreamTarget("https://host.test/compatible-mode/v1", "text-embedding-v4", "sk-1")
ASKED = EmbeddingInput("alias", ["a", "b", "c"], {"dimensions": 64, "text_type": "query"}, base64=True)


def test_compatible_request():
    """Floats are requested whatever format the client requests, under the upstream's model name."""
    request = DIALECTS["compatible"].embeddings_request(ASKED, TARGET)
    assert (request.method, request.url) == ("POST", "https://host.test/compatible-mode/v1/embeddings")
    assert json.loads(request.body) == {
        "model": "text-embedding-v4",
        "input": ["a", "b", "c"],
        "encoding_format": "float",
        "dimensions": 64,
        "text_type": "query",
    }
    assert (b"authorization", b"Bearer sk-1") in request.headers


@pytest.mark.parametrize("base", ["/compatible-mode/v1", "/api/v1", "/v1", ""])
def test_native_request(base):
    """The native service has its own path and its own name for dimensions."""
    target = UpstreamTarget(f"https://host.test{base}", "text-embedding-v4")
    request = DIALECTS["dashscope"].embeddings_request(ASKED, target)
    assert request.url == "https://host.test/api/v1/services/embeddings/text-embedding/text-embedding"
    assert json.loads(request.body) == {
        "model": "text-embedding-v4",
        "input": {"texts": ["a", "b", "c"]},
        "parameters": {"dimension": 64, "text_type": "query"},
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_responses_are_read_in_order(dialect):
    """The emulator's response in either dialect is read, in the order of the texts."""
    sent = json.loads(DIALECTS[dialect].embeddings_request(ASKED, TARGET).body)
    answer = emulated.dashscope_response(sent) if dialect == "dashscope" else emulated.openai_response(sent)
    found = embeddings.parse_response(json.dumps(answer).encode(), len(ASKED.texts), TARGET.plan)
    assert [json.loads(row) for row in found.rows] == [emulated.vector(text, 64) for text in ASKED.texts]
    assert found.tokens == 3


def rows(*indices, **extra):
    return {"data": [{"index": index, "embedding": [float(index)]} for index in indices], **extra}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (rows(2, 0, 1, usage={"total_tokens": 9}), ([b"[0.0]", b"[1.0]", b"[2.0]"], 9)),
        (
            {"data": [{"embedding": [1]}, {"embedding": [2]}, {"embedding": [3]}]},
            ([b"[1]", b"[2]", b"[3]"], 0),
        ),
        (
            {"data": [{"embedding": "AACAPw=="}, {"embedding": [2]}, {"embedding": [3]}]},
            ([b'"AACAPw=="', b"[2]", b"[3]"], 0),
        ),
    ],
    ids=["out of order", "without an index", "base64"],
)
def test_other_servers(answer, expected):
    """Servers differ in order, indices, usage and format."""
    found = embeddings.parse_response(json.dumps(answer).encode(), len(ASKED.texts), TARGET.plan)
    assert (found.rows, found.tokens) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b'{"data":[{"embedding":[1',
        b"[]",
        b"{}",
        rows(0, 1),
        rows(0, 1, 2, 3),
        rows(0, 1, 1),
        rows(1, 2, 3),
        {"data": [1, 2, 3]},
        {"data": [{"index": 0}, {"index": 1}, {"index": 2}]},
        {"data": [{"index": 0, "embedding": None}] * 3},
        {"data": [{"index": 0, "embedding": 5}] * 3},
        {"output": {"embeddings": {}}},
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_invalid_responses(answer):
    """A response without exactly one attributable vector for each text is a 502."""
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    with pytest.raises(UpstreamError) as caught:
        embeddings.parse_response(body, len(ASKED.texts), TARGET.plan)
    assert (caught.value.status, caught.value.code) == (502, "upstream_invalid_response")


def test_an_error_in_a_200():
    """An error object with status 200 keeps its meaning."""
    body = json.dumps({"code": "Arrearage", "message": "overdue", "request_id": "r1"}).encode()
    with pytest.raises(UpstreamError) as caught:
        embeddings.parse_response(body, len(ASKED.texts), TARGET.plan)
    assert (caught.value.code, caught.value.request_id) == ("insufficient_quota", "r1")
