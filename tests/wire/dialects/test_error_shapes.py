"""The message of an upstream's error survives any shape of its body."""

import json

import pytest

from qproxy.wire.dialects import error_mapping
from tests.wire.pipeline import said, same

SHAPES = {
    "detail": {"detail": "too hot"},
    "detail list": {"detail": [{"loc": ["body", "temperature"], "msg": "too hot", "type": "value_error"}]},
    "detail nested": {"detail": {"error": {"message": "too hot"}}},
    "problem+json": {"type": "about:blank", "title": "Bad Request", "status": 422, "detail": "too hot"},
    "error_msg": {"error_code": 336003, "error_msg": "too hot"},
    "errors": {"errors": [{"message": "too hot"}, "and dry"]},
    "list": [{"error": {"code": 400, "message": "too hot"}}],
    "nested": {"error": {"error": {"message": "too hot"}}},
    "sse in message": {"error": {"message": 'data: {"error": {"message": "too hot"}}\n\n'}},
    "unknown": {"failure": {"why": "too hot"}},
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_the_message_survives_its_shape(body):
    """The client's error contains the upstream's message; a 422 is the request's fault."""
    error = error_mapping.error_from_response(422, (), json.dumps(body).encode())
    assert "too hot" in error.message
    assert error.status == 422


def test_keys_in_an_unknown_body_are_redacted():
    """The fallback is the body itself, shortened and redacted."""
    body = json.dumps({"failure": "sk-1234567890abcdef", "x": "y" * 5000}).encode()
    error = error_mapping.error_from_response(400, (), body)
    assert "567890" not in error.message
    assert len(error.message) < 600


PAGES = {
    504: (504, "never"),
    413: (413, "never"),
    429: (429, "later"),
    404: (404, "elsewhere"),
    401: (502, "refresh"),
}


@pytest.mark.parametrize("status", PAGES)
def test_a_web_page_is_classified_by_its_status(status):
    """A web page means the same as a JSON error of its status, and its text is not repeated."""
    headers = ((b"retry-after", b"7"),) if status == 429 else ()
    error = error_mapping.error_from_response(status, headers, b"<html><h1>nginx secret</h1></html>")
    assert (error.status, error.retry.value) == PAGES[status]
    assert "nginx" not in error.message
    assert error.retry_after == (7 if status == 429 else None)


def test_llamacpps_error_field_is_an_error():
    """An `error:` field of a stream fails the response with its message."""
    failure = b'error: {"code":500,"message":"Failed to parse input at pos 12","type":"server_error"}\n\n'
    choices, error = same(said("I ", "write"), failure)
    assert choices[0]["text"] == "I write"
    assert "Failed to parse input at pos 12" in error["message"]
