"""The message of an upstream's error survives any shape of its body."""

import json

import pytest

from qproxy.wire.dialects import DIALECTS, error_mapping
from qproxy.wire.events import StreamFailed
from tests.wire.pipeline import TARGET, chunk, same, texts

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
    "event in message": {
        "error": {"message": 'event:error\ndata:{"message": "data: {\\"error\\": \\"too hot\\"}"}'}
    },
    "event in one line": {"message": 'event:error data:{"code": "InvalidParameter", "message": "too hot"}'},
    "JSON in message": {"error": {"message": '{"error": {"message": "too hot"}}'}},
    "errors by field": {"errors": {"temperature": ["too hot"]}},
    "list of texts": ["too hot"],
    "text": "too hot",
    "a numeric code": {"code": 1, "data": {"message": "too hot"}},
    "unknown": {"failure": {"why": "too hot"}},
}


@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_the_message_survives_its_shape(body):
    """The client's error contains the upstream's message; a 422 is the client's mistake."""
    error = error_mapping.error_from_response(422, (), json.dumps(body).encode())
    assert "too hot" in error.message
    assert error.status == 422


@pytest.mark.parametrize("dialect", ["compatible", "dashscope"])
@pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)
def test_the_message_survives_a_success_status(body, dialect):
    """A 200 with an error of any shape as its body fails with the upstream's message."""
    *_, failed = DIALECTS[dialect].response(body, TARGET)
    assert isinstance(failed, StreamFailed)
    assert "too hot" in failed.error.message


def test_a_part_of_a_response_is_not_quoted():
    """The error does not quote a body of another API, which may hold the model's output."""
    for body in ({"message": {"role": "assistant", "content": "secret"}}, {"response": "secret"}):
        *_, failed = DIALECTS["compatible"].response(body, TARGET)
        assert isinstance(failed, StreamFailed)
        assert "secret" not in failed.error.message


@pytest.mark.parametrize(
    "body",
    [
        b'event:error\ndata:{"code":"InvalidParameter","message":"data: {\\"error\\": \\"too hot\\"}"}\n\n',
        b'id:1\nevent:error\n:HTTP_STATUS/400\ndata:{"message":"too hot"}\n\n',
        b'data: {"detail": "too hot"}',
    ],
)
def test_events_as_the_body_of_an_error_are_read(body):
    """A body of events that a gateway sent with an error status is parsed like the JSON in it."""
    error = error_mapping.error_from_response(400, (), body)
    assert error.message.endswith("too hot")
    assert "data:" not in error.message


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


def test_an_error_in_xml_keeps_its_message():
    """The code and message of an error in XML are forwarded; a page in XHTML is not."""
    body = b'<?xml version="1.0"?><Error><Code>BadRange</Code><Message>too hot</Message></Error>'
    error = error_mapping.error_from_response(422, (), body)
    assert (error.status, error.message) == (422, "BadRange too hot")
    page = b'<?xml version="1.0"?><html><p>too hot</p></html>'
    assert "hot" not in error_mapping.error_from_response(422, (), page).message


FRAMES = {
    "an error": b'data: {"error": {"message": "too hot"}}\n\n',
    "a list": b'data: [{"error": {"message": "too hot"}}]\n\n',
    "a detail": b'data: {"detail": [{"loc": ["a"], "msg": "too hot"}]}\n\n',
    "errors": b'data: {"errors": ["too hot"]}\n\n',
    "vllm": b'data: {"object": "error", "message": "too hot", "type": "BadRequestError", "code": 400}\n\n',
    "an error event": b'event: error\ndata: {"message": "too hot"}\n\n',
    "an error event with text": b"event: error\ndata: too hot\n\n",
    "an error event with a string": b'event: error\ndata: "too hot"\n\n',
    "an error event with a list": b'event: error\ndata: [{"message": "too hot"}]\n\n',
    "a field without a space": b'error:{"message":"too hot"}\n\n',
    "a line without a field": b'{"error":{"message":"too hot"}}\n',
    "lines without a field": b'{\n  "error": {\n    "message": "too hot"\n  }\n}\n',
    "a message alone": b'data: {"message": "too hot"}\n\n',
    "a status": b'data: {"id": "x", "status": "failed", "reason": "too hot"}\n\n',
    "a string": b'data: "too hot"\n\n',
    "plain text": b"data: too hot\n\n",
}
BEGINNINGS = {
    "compatible": texts("I ", "write"),
    "dashscope": [{"output": {"choices": [{"message": {"content": "I write"}, "finish_reason": "null"}]}}],
}


@pytest.mark.parametrize("dialect", BEGINNINGS)
@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_an_error_in_a_stream_keeps_its_message(frame, dialect):
    """An error of any shape within a stream fails the response with its message, after the text before it."""
    choices, error = same(BEGINNINGS[dialect], frame, dialect=dialect)
    assert choices[0]["text"] == "I write"
    assert "too hot" in error["message"]


def test_an_unknown_event_is_no_error_by_itself():
    """A ping of an unknown shape changes nothing in a response that continues, and explains no later
    truncation."""
    ping = b'data: {"type": "ping"}\n\n'
    choices, error = same(texts("I "), ping, texts("write"), chunk(None, "stop"), ping)
    assert (choices[0]["text"], error) == ("I write", None)
    _, error = same(texts("I "), ping, texts("write"))
    assert "ping" not in error["message"]


CHOICES = {
    "an error beside the delta": {"delta": {}, "error": {"message": "too hot"}, "finish_reason": None},
    "an error as text": {"delta": {}, "error": "too hot", "finish_reason": "stop"},
    "an error in the delta": {"delta": {"error": {"message": "too hot"}}, "finish_reason": "error"},
    "error_finish": {"delta": {"content": "too hot"}, "finish_reason": "error_finish"},
    "error_finish with JSON": {"delta": {"content": '{"error": {"message": "too hot"}}'},
        "finish_reason": "error_finish"},
}  # fmt: skip


@pytest.mark.parametrize("dialect", BEGINNINGS)
@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_an_error_of_a_choice_keeps_its_message(choice, dialect):
    """A failed choice fails the response with its own message, which is no text."""
    if dialect == "dashscope":
        choice = {"message" if name == "delta" else name: value for name, value in choice.items()}
    item = {"choices": [{"index": 0, **choice}]}
    choices, error = same(
        BEGINNINGS[dialect], {"output": item} if dialect == "dashscope" else item, dialect=dialect
    )
    assert (choices[0]["text"], choices[0]["reason"]) == ("I write", None)
    assert "too hot" in error["message"]


def test_llamacpps_error_field_is_an_error():
    """An `error:` field of a stream fails the response with its message."""
    failure = b'error: {"code":500,"message":"Failed to parse input at pos 12","type":"server_error"}\n\n'
    choices, error = same(texts("I ", "write"), failure)
    assert choices[0]["text"] == "I write"
    assert "Failed to parse input at pos 12" in error["message"]
