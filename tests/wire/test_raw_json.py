"""A client's JSON is forwarded in its own bytes, unless it was changed."""

import json
import operator
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import raw_json
from qproxy.wire.raw_json import MIN_RAW_BYTES, RawBody
from tests.helpers import HELLO, world

LONG = [{"role": "user", "content": "x" * MIN_RAW_BYTES}]
LONGER = st.builds(operator.mul, st.text(alphabet='aé好🙂\\"', max_size=5), st.integers(0, MIN_RAW_BYTES))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(
    st.dictionaries(st.text(max_size=8), VALUES, max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.text(" \n\t", max_size=3),
)
def test_reads_what_json_reads(value, indent, ascii_only, blank):
    """Any object in any layout parses as json does, and written again it has the same value."""
    data = (blank + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + blank).encode(
        "utf-8", "surrogatepass"
    )
    body = raw_json.parse_body(data)
    assert body == value
    texts = body.raw_fields if isinstance(body, RawBody) else None  # an empty value has no span
    assert (texts is None) is (value == {})
    assert json.loads(raw_json.dumps(body, texts)) == value


@pytest.mark.parametrize(
    "text", ["[1]", "1", '"a"', "null", "{}", ' {"a": {}} ', '{"a": 1, "a": 2}', '\ufeff{"a": 1}']
)
def test_parses_other_values(text):
    """Values other than plain objects are parsed as usual."""
    assert raw_json.parse_body(text.encode()) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"a"',
        '{"a":',
        '{"a": 1',
        '{"a": 1,',
        '{"a": 1,}',
        "{1: 2}",
        '{"a": 1} x',
        '{"a" 1}',
        '{"a": NaN}',
        '{"a": 01}',
    ],
)
def test_rejects_invalid_json(text):
    """The error is JSON's own, with its position."""
    with pytest.raises(ValueError, match=r"char|JSON"):
        raw_json.parse_body(text.encode())


def test_a_changed_value_is_serialized():
    """Only the parsed object itself is forwarded as it was written; an equal one is not."""
    data = json.dumps({"messages": LONG, "n": 1}, indent=4).encode()
    body = raw_json.parse_body(data)
    assert raw_json.dumps({"messages": body["messages"]}, body.raw_fields).count(b"\n") > 2
    assert raw_json.dumps({"messages": list(body["messages"])}, body.raw_fields).count(b"\n") == 0
    assert raw_json.dumps({"messages": body["messages"]}, None).count(b"\n") == 0


@given(
    st.lists(LONGER | LONGER.map(lambda text: [text]), max_size=4),
    st.booleans(),
    st.sampled_from(["", "\ufeff"]),
)
def test_every_value_keeps_its_own_bytes(values, ascii_only, mark):
    """Any characters before, in and behind a value leave its bytes unchanged."""
    value = {f"å{number}": one for number, one in enumerate(values)}
    data = (mark + json.dumps(value, indent=1, ensure_ascii=ascii_only)).encode()
    body = raw_json.parse_body(data)
    for name in body:
        written = json.dumps(body[name], ensure_ascii=ascii_only, indent=1).replace("\n", "\n ")
        raw_text = body.raw_fields.text(body[name]) if isinstance(body, RawBody) else None
        assert (raw_text is None) is (len(written) < MIN_RAW_BYTES)
        assert raw_text is None or bytes(raw_text).decode() == written
    assert json.loads(raw_json.dumps(body, getattr(body, "raw_fields", None))) == value


def test_a_large_body_is_copied_once():
    """A body is parsed in memory for its text and its values, and written in memory for the result."""
    data = json.dumps({"model": "m", "messages": [{"content": "x" * 1_000_000}], "tools": LONG}).encode()

    def room(work):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = work()
        return result, (tracemalloc.get_traced_memory()[1] - before) / len(data)

    tracemalloc.start()
    try:
        body, reading = room(lambda: raw_json.parse_body(data))
        sent, writing = room(lambda: raw_json.dumps(dict(body), body.raw_fields))
    finally:
        tracemalloc.stop()
    assert json.loads(sent) == json.loads(data)
    assert reading < 2.1
    assert writing < 1.1


async def test_a_long_prompt_keeps_its_bytes(monkeypatch):
    """Spaces, escapes and the order of keys are the client's, so that Qwen's prefix cache matches."""
    text = '[{"content" : "%s", "role":\n "user"}]' % ("\\u00e9" * MIN_RAW_BYTES)
    raw = f'{{"model": "{HELLO["model"]}", "messages": {text}}}'
    seen = []
    async with world() as it:
        plain = it.server.state.relay.transport.send

        async def send(request):
            seen.append(request.body)
            return await plain(request)

        monkeypatch.setattr(it.server.state.relay.transport, "send", send)
        status, _, _ = await it.post(raw.encode())
        assert status == 200
        assert text.encode() in seen[0]
        status, _, _ = await it.post(raw.replace('"user"', '"developer"').encode())
        assert text.encode() not in seen[1]
        assert json.loads(seen[1])["messages"][0]["role"] == "system"
