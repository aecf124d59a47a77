"""What must not be in a log is not in it, whoever wrote the line."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.observe.lines import Formatter
from qproxy.observe.redaction import _NAMED, _SHAPED, HIDDEN, LONGEST_BODY, Redactor, _hide_value

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NSJ9.dozjgNryP4J3jVmNHl0w5N"

SECRETS = {
    "bearer": ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
    "bearer in JSON": ('{"authorization": "Bearer abc def"}', "abc def"),
    "bearer alone": ("sent bearer abcdef0123456789 away", "abcdef0123456789"),
    "basic": ("proxy-authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    "sk": ("the key sk-proj_0123456789-abc was refused", "sk-proj_0123456789-abc"),
    "qproxy's": ("sk-qproxy-AbC_def-123", "AbC_def-123"),
    "x-api-key": ("X-Api-Key: 0123456789", "0123456789"),
    "api_key": ("api_key='a b c'", "a b c"),
    "access token": ('"access_token": "opaque-value-1"', "opaque-value-1"),
    "refresh token": ("refresh_token=opaque-value-2&x=1", "opaque-value-2"),
    "device code": ("device_code=dc-opaque", "dc-opaque"),
    "verifier": ("code_verifier=vvvv-wwww", "vvvv-wwww"),
    "password": ("password: hunter2", "hunter2"),
    "escaped": ('"secret": "a\\"b"', 'a\\"b'),
    "JWT": (f"got {JWT}", JWT),
    "URL": ("http://user:hunter2@proxy.test:3128", "hunter2"),
    "cookie": ("set-cookie: session=abcdef", "abcdef"),
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_what_looks_like_a_secret(text, secret):
    """Fields, tokens and keys are hidden by their shape."""
    hidden = Redactor().text(text)
    assert secret not in hidden
    assert HIDDEN in hidden


@pytest.mark.parametrize(
    "text",
    [
        "prompt_tokens=12 completion_tokens=7 tokens=3",
        "POST /v1/chat/completions 200",
        '{"max_tokens": 5, "total_tokens": 9}',
        "the token bucket is full",
        "error=rate_limit_exceeded",
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
        "model=qwen3.7-plus key=bob account=one",
        "see the task-list of ask-me",
    ],
)
def test_what_does_not(text):
    """Ordinary lines stay as they are."""
    assert Redactor().text(text) == text


@given(
    st.lists(
        st.sampled_from(
            [secret for text, secret in SECRETS.values()]
            + [t for t, _ in SECRETS.values()]
            + list("\"':= \n\t,")
            + ["token", "code", "device", "_", "ACCESS", "Api", "key", "x"]
        ),
        max_size=12,
    ).map("".join)
)
def test_looking_first_changes_nothing(text):
    """The words that are looked for first stand in everything that a pattern would find."""
    assert Redactor().text(text) == _SHAPED.sub(HIDDEN, _NAMED.sub(_hide_value, text))


@given(st.text(min_size=8, max_size=30), st.text(max_size=20), st.text(max_size=20))
def test_known_secrets(secret, before, after):
    """A configured secret is hidden wherever it stands, whatever it looks like."""
    hidden = Redactor([secret]).text(f"{before}{secret}{after}")
    assert secret not in hidden or secret in f"{before}{HIDDEN}{after}"


def test_the_longest_secret_first():
    """A secret that begins another one does not leave the other's end behind."""
    assert Redactor(["12345678", "12345678-and-more"]).text("12345678-and-more") == HIDDEN


LONG = {
    "hyphens": "a-" * 50_000,
    "names": "access-" * 20_000,
    "jwt": "eyJaaaaaaaa-" * 10_000,
    "base64": ("A" * 511 + " ") * 200,
    "quotes": "token='" * 20_000,
    "bearers": "bearer " * 20_000,
    "urls": "://a:b" * 20_000,
    "spaces": "token" + " " * 100_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_text_made_to_take_long(text):
    """A client's text cannot hold up the log: these would take minutes if time grew with the square."""
    Redactor(["opaque-secret"]).body(text.encode())
    Redactor(["opaque-secret"]).text(text)


def test_bodies():
    """A body that is logged has no secrets, no pictures, and an end."""
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 100
    body = {"messages": [{"content": [{"image_url": {"url": picture}}, {"text": "key sk-abcdefghijkl"}]}]}
    text = Redactor().body(json.dumps(body).encode())
    assert len(text) < 300
    assert "data:image/png;base64,iVBORw0KGgoi...(1100 characters)" in text
    assert "sk-abc" not in text
    long = Redactor().body(b"a " * LONGEST_BODY)
    assert long.endswith(f"... ({LONGEST_BODY} bytes more)")
    assert Redactor().body(b"\xff{") == "\ufffd{"


def _line(as_json, *arguments, **keywords):
    logger = logging.Logger("somebody")
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Handler()
    handler.setFormatter(Formatter(as_json=as_json, redactor=Redactor(["opaque-secret"])))
    logger.addHandler(handler)
    try:
        raise ValueError("the key opaque-secret is wrong")
    except ValueError:
        logger.exception(*arguments, **keywords)
    return lines[0]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_redacted(as_json):
    """What an exception says passes the same net as the message and its arguments."""
    line = _line(as_json, "sent %s with opaque-secret", "Bearer 0123456789")
    assert "ValueError" in line
    assert "opaque-secret" not in line
    assert "0123456789" not in line
    if as_json:
        assert json.loads(line)["level"] == "error"
