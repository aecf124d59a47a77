"""Log lines contain no secret, whatever code wrote them."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.telemetry.log_format import LogFormatter
from qproxy.telemetry.redaction import _NAMED, _SHAPED, MAX_BODY_LENGTH, REDACTED, Redactor, _hide_value
from tests.examples import examples

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
    "GitHub": ("clone with ghp_abcdefghij0123456789ABCDEFGHIJ012345", "ghp_abc"),
    "GitHub, OAuth": ("gho_abcdefghij0123456789ABCDEFGHIJ012345", "gho_abc"),
    "GitHub, fine-grained": ("github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz", "github_pat"),
    "GitLab": ("glpat-abcdefghij0123456789", "glpat-abc"),
    "AWS": ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7"),
    "AWS, temporary": ("ASIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7"),
    "AWS, secret": ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
    "Alibaba Cloud": ("LTAI5tAbCdEfGhIjKlMnOpQr", "LTAI5tAbC"),
    "Google": ("AIzaSyA-1234567890abcdefghijklmnopqrstu", "AIzaSyA"),
    "Google, OAuth": ("ya29.a0AfH6SMBabcdefghijklmnop", "ya29.a0"),
    "Slack": ("xoxb-123456789012-abcdefGHIJKL", "xoxb-123"),
    "Stripe": ("sk_live_abcdefghij0123456789", "sk_live_abc"),
    "Hugging Face": ("hf_abcdefghijklmnopqrstuvwxyz", "hf_abc"),
    "npm": ("npm_abcdefghijklmnopqrstuvwxyz0123456789", "npm_abc"),
    "JWE": (
        "eyJhbGciOiJSU0EifQ.OKOawDo13gRp2oja.48V1_ALb6US04U3b.5eym8TW_c8SuK0lt.XFBoMYUZodetZdvT",
        "XFBoMYUZ",
    ),
    "PEM": (
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nabc=\n-----END RSA PRIVATE KEY-----",
        "MIIEpAIB",
    ),
    "PEM, encrypted": ("-----BEGIN PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEpAIB", "MIIEpAIB"),
    "OpenPGP": (
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOYBF\n-----END PGP PRIVATE KEY BLOCK-----",
        "lQOYBF",
    ),
    "after a line break": ('{"file": "KEY:\\nsk-abcdefghijkl"}', "sk-abc"),
    "a name after a line break": ('{"file": "a=1\\ntoken=opaque-value"}', "opaque-value"),
    "cut off": ('{"password": "hunter2 and m', "hunter2"),
    "an apostrophe within": ('{"password": "it\'s hunter2"}', "hunter2"),
    "a shell's": ("export DB_PASSWORD='hun ter2' && x", "hun ter2"),
}
"""By kind: a text, and the secret that must be removed from it."""


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_secrets_are_hidden_by_their_shape(text, secret):
    """Fields, tokens and keys are hidden by their shape."""
    hidden = Redactor().text(text)
    assert secret not in hidden
    assert REDACTED in hidden


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
def test_ordinary_text_is_unchanged(text):
    """Text without a secret is logged unchanged."""
    assert Redactor().text(text) == text


@examples(100)
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
def test_the_prefilter_misses_no_secret(text):
    """The prefilter's words are in every text that a pattern matches."""
    assert Redactor().text(text) == _SHAPED.sub(REDACTED, _NAMED.sub(_hide_value, text))


@examples(100)
@given(st.text(min_size=8, max_size=30), st.text(max_size=20), st.text(max_size=20))
def test_known_secrets(secret, before, after):
    """A configured secret is hidden at any position, whatever it looks like."""
    hidden = Redactor([secret]).text(f"{before}{secret}{after}")
    assert secret not in hidden or secret in f"{before}{REDACTED}{after}"


def test_a_known_secret_is_hidden_in_every_json_spelling():
    """A secret with quotes, backslashes or non-ASCII letters is hidden in each spelling."""
    secret = 'pass"word\\ü-and-more'
    for depth in range(3):
        text = json.dumps(secret)
        for _ in range(depth):
            text = json.dumps(text)
        assert Redactor([secret]).text(text).count(REDACTED) == 1
        assert "and-more" not in Redactor([secret]).text(text)


def test_the_longest_secret_is_matched_first():
    """A secret that is the prefix of another one does not leave the other's end."""
    assert Redactor(["12345678", "12345678-and-more"]).text("12345678-and-more") == REDACTED


LONG = {
    "hyphens": "a-" * 50_000,
    "names": "access-" * 20_000,
    "jwt": "eyJaaaaaaaa-" * 10_000,
    "base64": ("A" * 511 + " ") * 200,
    "quotes": "token='" * 20_000,
    "bearers": "bearer " * 20_000,
    "urls": "://a:b" * 20_000,
    "spaces": "token" + " " * 100_000,
    "backslashes": "\\" * 100_000,
    "a value of backslashes": 'token:"' + "\\" * 100_000,
    "an unquoted value of backslashes": "token=" + "\\" * 100_000,
    "deeper and deeper": "".join("token:" + "\\" * level + '"a' for level in range(400)),
    "flatter and flatter": "".join("token:" + "\\" * (400 - level) + '"a' for level in range(400)),
    "values that never end": 'token:\\"a' * 10_000 + 'token:"',
    "apostrophes within": 'token:"' + "'" * 100_000,
    "beginnings of keys": "-----BEGIN PRIVATE KEY-----" * 4_000,
    "ends of keys": "-----BEGIN PRIVATE KEY-----" + "-----END " * 10_000,
    "hyphens of a key": "-----BEGIN PRIVATE KEY-----" + "-" * 100_000,
    "escapes": "\\u0061" * 20_000,
    "dots": "eyJaaaaaaaaaaa." + "." * 100_000,
    "GitHub's": "ghp_" * 25_000,
    "Slack's": "xoxb-" * 20_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_adversarial_text_takes_linear_time(text):
    """A client's text cannot stall the log: in quadratic time these would take minutes."""
    Redactor(["opaque-secret"]).body(text.encode())
    Redactor(["opaque-secret"]).text(text)


def nested(value, depth):
    """Return a JSON value as a string of JSON in a string of JSON, to a depth."""
    for _ in range(depth):
        value = {"arguments": json.dumps(value)}
    return json.dumps(value)


@pytest.mark.parametrize("depth", range(8))
@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_in_nested_json(text, secret, depth):
    """A secret at any depth is hidden, in a body and in a line."""
    for _ in range(depth + 1):
        secret = json.dumps(secret)[1:-1]
    raw = nested({"content": text, "path": "/tmp"}, depth)
    for hidden in (Redactor().body(raw.encode()), Redactor().text(raw)):
        assert secret not in hidden
        assert hidden.endswith('"}' * (depth and 1) if depth else '"/tmp"}')


@examples(100)
@given(
    name=st.sampled_from(
        ["password", "api_key", "access_token", "AWS_SECRET_ACCESS_KEY", "authorization", "token"]
    ),
    secret=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).map(lambda text: f"<{text}>"),
    depth=st.integers(0, 6),
    indent=st.sampled_from([None, 2]),
)
def test_a_named_secret_in_nested_json(name, secret, depth, indent):
    """The value of a secret's name is hidden, and the values beside it are not."""
    raw = {"a": "before", name: secret, "b": "after"}
    text = nested(json.dumps(raw, ensure_ascii=False, indent=indent), depth)
    hidden = Redactor().body(text.encode())
    inner = json.dumps(secret, ensure_ascii=False)[1:-1]
    for _ in range(depth + 1):
        inner = json.dumps(inner)[1:-1]
    assert inner not in hidden
    assert "before" in hidden


def test_text_after_a_nested_secret_is_kept():
    """A value ends at its own quote, at each level, and the line stays JSON."""
    for depth in range(6):
        raw = nested({"password": 'hun"ter\\2', "path": "/tmp", "n": 1}, depth)
        value = json.loads(Redactor().text(raw))
        for _ in range(depth):
            value = json.loads(value["arguments"])
        assert value == {"password": REDACTED, "path": "/tmp", "n": 1}


@pytest.mark.parametrize(
    "text",
    [
        r'{"arguments": "{\u0022password\u0022: \u0022hunter2\u0022}"}',
        r'{"p\u0061ssword": "hunter2"}',
        r'{"arguments": "{\"p\\u0061ssword\": \"hunter2\"}"}',
        r'{"content": "Bearer\u0020hunter2hunter2"}',
        r'{"content": "sk\u002Dhunter2hunter2"}',
    ],
)
def test_a_secret_behind_escapes(text):
    """Unnecessarily escaped ASCII is matched as its characters."""
    hidden = Redactor().body(text.encode())
    assert "hunter2" not in hidden
    assert REDACTED in hidden


@pytest.mark.parametrize("as_json", [True, False])
def test_an_unterminated_value_breaks_no_line(as_json):
    """A value without an end leaves the line's structure intact."""
    log_record = logging.makeLogRecord({"name": "x", "msg": "", "levelname": "INFO"})
    for value in (
        "token='abc",
        'token="abc',
        'token:\\"abc',
        "-----BEGIN PRIVATE KEY-----\nMII",
        'password: "abc\\',
        'password: "abc\\"',
        "password: abc\\",
        '{"password": "abc\\\\',
        "password: \\",
    ):
        log_record.fields = {"message": "m", "model": value, "after": "it"}
        line = LogFormatter(as_json=as_json).format(log_record)
        assert "abc" not in line
        assert json.loads(line)["after"] == "it" if as_json else "\n" not in line


def test_bodies():
    """A logged body has no secrets and no images, and is truncated."""
    picture = "data:image/png;base64," + "iVBORw0KGgo" * 100
    body = {"messages": [{"content": [{"image_url": {"url": picture}}, {"text": "key sk-abcdefghijkl"}]}]}
    text = Redactor().body(json.dumps(body).encode())
    assert len(text) < 300
    assert "data:image/png;base64,iVBORw0KGgoi...(1100 characters)" in text
    assert "sk-abc" not in text
    long = Redactor().body(b"a " * MAX_BODY_LENGTH)
    assert long.endswith(f"... ({MAX_BODY_LENGTH} bytes more)")
    assert Redactor().body(b"\xff{") == "\ufffd{"


def _line(as_json, *arguments, **keywords):
    logger = logging.Logger("somebody")
    lines = []

    class Handler(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Handler()
    handler.setFormatter(LogFormatter(as_json=as_json, redactor=Redactor(["opaque-secret"])))
    logger.addHandler(handler)
    try:
        raise ValueError("the key opaque-secret is wrong")
    except ValueError:
        logger.exception(*arguments, **keywords)
    return lines[0]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_redacted(as_json):
    """The text of an exception is redacted like the message and its arguments."""
    line = _line(as_json, "sent %s with opaque-secret", "Bearer 0123456789")
    assert "ValueError" in line
    assert "opaque-secret" not in line
    assert "0123456789" not in line
    if as_json:
        assert json.loads(line)["level"] == "error"
