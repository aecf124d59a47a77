"""A secret split across the events of a stream is in none of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.telemetry.fragments import redact_stream
from qproxy.telemetry.redaction import REDACTED, Redactor
from tests.examples import examples

REDACT = Redactor(["opaque-secret"]).text


def stream(events):
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def events(data):
    frames = [line.removeprefix(b"data: ") for line in data.split(b"\n") if line.startswith(b"data: {")]
    return [json.loads(frame) for frame in frames]


def chat(part, choice=0, call=0):
    """Return a chunk with a part of a text, both as content and as a call's arguments."""
    return {"id": "x", "choices": [{"index": choice, "delta": {"content": part, **call_of(part, call)}}]}


def call_of(part, call=0):
    return {"tool_calls": [{"index": call, "function": {"arguments": part}}]}


def item(part, kind="response.function_call_arguments.delta", number=0):
    return {"type": kind, "output_index": number, "delta": part}


def block(part, number=0):
    return {"type": "content_block_delta", "index": number, "delta": {"type": "text_delta", "text": part}}


KINDS: dict[str, Any] = {"chat": chat, "responses": item, "messages": block}
TEXTS = {
    "a key": ("the key sk-proj-0123456789abc is", "sk-proj-0123456789abc"),
    "arguments": ('{"path": "/tmp", "password": "hunter2"}', "hunter2"),
    "JSON in arguments": (json.dumps({"body": json.dumps({"api_key": "hunter2"})}), "hunter2"),
    "a known one": ("it is the opaque-secret of", "opaque-secret"),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("text", "secret"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_split_secret_is_hidden(kind, text, secret, size):
    """Redacted events of any size together no longer contain the secret."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    left = Redactor(["opaque-secret"]).body(redact_stream(stream(map(kind, pieces)), REDACT))
    assert secret not in left
    assert not any(secret in "".join(part) for part in _joined(left))
    assert REDACTED in left


def _joined(text):
    """Return the strings of each name, in order."""
    found: dict[str, list[str]] = {}

    def see(pairs):
        for name, value in pairs:
            found.setdefault(name, []).append(value if isinstance(value, str) else "")
        return dict(pairs)

    for line in text.split("\n"):
        if line.startswith("data: {"):
            json.loads(line.removeprefix("data: "), object_pairs_hook=see)
    return found.values()


def test_interleaved_texts_are_redacted_separately():
    """Choices, calls, items and blocks are each read separately; a text without a secret is unchanged."""
    for kind in (
        lambda p, n: chat(p, choice=n),
        lambda p, n: {"choices": [{"index": 0, "delta": call_of(p, n)}]},
        lambda p, n: item(p, number=n),
        block,
    ):
        sent = [kind("sk-01234", 0), kind("plain ", 1), kind("56789abc", 0), kind("words", 1)]
        left = events(redact_stream(stream(sent), REDACT))
        assert [left[1], left[3]] == [sent[1], sent[3]]
        assert "56789" not in json.dumps(left)


@examples(100)
@given(st.lists(st.text(max_size=8), max_size=12), st.sampled_from(list(KINDS.values())))
def test_a_stream_without_secrets_is_unchanged(pieces, kind):
    """Redaction keeps such a stream byte for byte."""
    sent = stream(map(kind, pieces))
    if all(REDACT(text) == text for text in ("".join(pieces), *pieces)):
        assert redact_stream(sent, REDACT) == sent


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"data: ",
        b'data: {"a": "b',
        b"data: [1]\n\ndata: 5\n\n: comment\n\n",
        b"\xff\xfe\n\ndata: \xff\n",
        b"data: " + b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        b"data: " + b'{"a":[' * 300 + b'"x"' + b"]}" * 300,
        b'data: {"type": [1], "index": {"a": 1}}\n\n',
    ],
    ids=range(8),
)
def test_data_that_is_no_event_is_unchanged(data):
    """Truncated bytes, deep nesting and invalid JSON are left to the redactor of texts."""
    assert redact_stream(data, REDACT) == data
