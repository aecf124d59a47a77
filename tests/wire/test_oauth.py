"""Qwen's device flow: requests as exact forms, and the meaning of each response."""

import json
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.config import Config
from qproxy.wire import oauth
from qproxy.wire.oauth import (
    AuthorizationPending,
    DeviceAuthorization,
    GrantError,
    IdentityProvider,
    SlowDown,
    TokenResponse,
    TransientError,
)

QWEN = IdentityProvider(
    "https://chat.qwen.ai/api/v1/oauth2/device/code",
    "https://chat.qwen.ai/api/v1/oauth2/token",
    "client",
    "openid profile email model.completion",
)
HTML = b"<html>aliyun_waf_</html>"
TOKEN = {
    "access_token": "at",
    "refresh_token": "rt",
    "token_type": "Bearer",
    "expires_in": 60,
    "resource_url": "h",
}
GRANTED = TokenResponse("at", "rt", "Bearer", 60.0, "h")


def body(value):
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def test_the_challenge_of_rfc_7636():
    """The result for the verifier in Appendix B of RFC 7636 is the challenge there."""
    octets = [116, 24, 223, 180, 151, 153, 224, 37, 79, 250, 96, 125, 216, 173, 187, 186, 22, 212, 37, 77,
        105, 214,
              191, 240, 91, 88, 5, 88, 83, 132, 141, 121]  # fmt: skip
    proof = oauth.new_pkce(bytes(octets))
    assert proof.verifier == "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert proof.challenge == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert proof.verifier not in repr(proof)


def test_forms_are_percent_encoded():
    """A space is %20, a reserved character is encoded, and only the device request has an id."""
    authorization = oauth.device_authorization_request(QWEN, "ch", "an-id")
    assert authorization.body == (
        b"client_id=client&scope=openid%20profile%20email%20model.completion"
        b"&code_challenge=ch&code_challenge_method=S256"
    )
    assert (b"x-request-id", b"an-id") in authorization.headers
    polled, refreshed = oauth.device_token_request(QWEN, "d+/=", "v"), oauth.refresh_request(QWEN, "r&t")
    assert polled.body.startswith(b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Adevice_code&")
    assert b"device_code=d%2B%2F%3D&code_verifier=v" in polled.body
    assert refreshed.body == b"grant_type=refresh_token&refresh_token=r%26t&client_id=client"
    for request in (polled, refreshed):
        assert request.url == QWEN.token_url
        assert dict(request.headers) == {
            b"content-type": b"application/x-www-form-urlencoded",
            b"accept": b"application/json",
            b"connection": b"close",
        }


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1)))
def test_any_form_is_read_back(fields):
    """An encoded form is parsed back to the same fields."""
    fields = {
        k.encode("utf-8", "replace").decode(): v.encode("utf-8", "replace").decode()
        for k, v in fields.items()
    }
    assert dict(parse_qsl(oauth.form(fields).decode(), strict_parsing=bool(fields))) == fields


START = {"device_code": "dc", "user_code": "AB", "verification_uri": "https://q/a", "expires_in": 900}
BEGUN = {
    "as Qwen answers": (
        200,
        {**START, "verification_uri_complete": "https://q/a?user_code=AB"},
        DeviceAuthorization("dc", "AB", "https://q/a?user_code=AB", 900.0, None),
    ),
    "without the complete page": (200, START, DeviceAuthorization("dc", "AB", "https://q/a", 900.0, None)),
    "with an interval": (
        200,
        {**START, "interval": 7},
        DeviceAuthorization("dc", "AB", "https://q/a", 900.0, 7.0),
    ),
    "numbers as text": (
        200,
        {**START, "expires_in": "60"},
        DeviceAuthorization("dc", "AB", "https://q/a", 60.0, None),
    ),
    "no end": (
        200,
        {**START, "expires_in": None},
        DeviceAuthorization("dc", "AB", "https://q/a", 300.0, None),
    ),
    "too short an end": (
        200,
        {**START, "expires_in": 1},
        DeviceAuthorization("dc", "AB", "https://q/a", 30.0, None),
    ),
    "too long an end": (
        200,
        {**START, "expires_in": 1e6},
        DeviceAuthorization("dc", "AB", "https://q/a", 3600.0, None),
    ),
    "no code": (200, {"error": "nope", "error_description": "why"}, GrantError),
    "refused": (400, {"error": "invalid_client"}, GrantError),
    "no page": (200, {"device_code": "dc", "user_code": "AB"}, GrantError),
    "a page that is a script": (200, {**START, "verification_uri": "javascript:alert(1)"}, GrantError),
    "a web page": (200, HTML, TransientError),
    "a web page, refused": (403, HTML, TransientError),
    "an overload": (503, {"error": "x"}, TransientError),
    "too many": (429, {"error": "x"}, TransientError),
    "a list": (200, [1], TransientError),
    "nothing": (200, b"", TransientError),
}


@pytest.mark.parametrize(("status", "reply", "meaning"), BEGUN.values(), ids=BEGUN.keys())
def test_responses_to_a_start(status, reply, meaning):
    """A code starts the flow; JSON without one ends it; any other response is transient."""
    found = oauth.parse_authorization(status, body(reply))
    assert found == meaning if isinstance(meaning, DeviceAuthorization) else isinstance(found, meaning)


POLLED = {
    "pending": (400, {"error": "authorization_pending"}, AuthorizationPending()),
    "pending, the other way": (200, {"status": "pending"}, AuthorizationPending()),
    "slow down as Qwen says it": (429, {"error": "slow_down"}, SlowDown()),
    "slow down as the RFC says it": (400, {"error": "slow_down"}, SlowDown()),
    "too many requests": (429, {"error": "rate_limit"}, SlowDown()),
    "granted": (200, TOKEN, GRANTED),
    "granted with a null": (
        200,
        {**TOKEN, "refresh_token": None},
        TokenResponse("at", None, "Bearer", 60.0, "h"),
    ),
    "granted, bare": (200, {"access_token": "at"}, TokenResponse("at", None, "Bearer", None, None)),
    "denied": (
        400,
        {"error": "access_denied"},
        GrantError("access_denied", oauth.GRANT_ERRORS["access_denied"]),
    ),
    "expired": (
        400,
        {"error": "expired_token"},
        GrantError("expired_token", oauth.GRANT_ERRORS["expired_token"]),
    ),
    "unknown code": (
        400,
        {"error": "invalid_grant"},
        GrantError("invalid_grant", oauth.GRANT_ERRORS["invalid_grant"]),
    ),
    "unauthorised": (401, {"detail": "x"}, GrantError("invalid_grant", oauth.GRANT_ERRORS["invalid_grant"])),
    "another error": (
        400,
        {"error": "invalid_client", "error_description": "who?"},
        GrantError("upstream_error", "status 400: invalid_client: who?"),
    ),
    "an error with status 200": (
        200,
        {"error": "server_error"},
        GrantError("upstream_error", "status 200: server_error"),
    ),
    "an empty token": (200, {"access_token": ""}, TransientError),
    "neither": (200, {}, TransientError),
    "a web page": (200, HTML, TransientError),
    "a web page, unauthorised": (401, HTML, TransientError),
    "a web page, too many": (429, HTML, TransientError),
    "an error of theirs": (500, {"error": "access_denied"}, TransientError),
    "not JSON": (400, b"authorization_pending", TransientError),
    "not UTF-8": (200, b"\xff\xfe", TransientError),
    "deep": (200, b"[" * 100_000, TransientError),
}


@pytest.mark.parametrize(("status", "reply", "meaning"), POLLED.values(), ids=POLLED.keys())
def test_responses_to_a_poll(status, reply, meaning):
    """Only JSON decides, and 400 and 429 mean slow_down alike."""
    found = oauth.parse_poll(status, body(reply))
    assert isinstance(found, TransientError) if meaning is TransientError else found == meaning


DEAD = {"error": "invalid_request", "error_description": "Invalid refresh token or client_id"}
REFRESHED = {
    "granted": (200, TOKEN, GRANTED),
    "granted without a new refresh token": (
        200,
        {"access_token": "at"},
        TokenResponse("at", None, "Bearer", None, None),
    ),
    "a dead refresh token": (400, DEAD, GrantError),
    "unauthorised": (401, {}, GrantError),
    "a web page": (200, HTML, TransientError),
    "a web page with 400": (400, HTML, TransientError),
    "a web page with 401": (401, HTML, TransientError),
    "forbidden": (403, {"error": "x"}, TransientError),
    "too many": (429, {"error": "x"}, TransientError),
    "a gateway": (502, b"bad gateway", TransientError),
    "an error with 200": (200, {"error": "invalid_grant"}, TransientError),
    "a token with an error": (200, {**TOKEN, "error": "x"}, TransientError),
    "no token": (200, {"expires_in": 1}, TransientError),
}


@pytest.mark.parametrize(("status", "reply", "meaning"), REFRESHED.values(), ids=REFRESHED.keys())
def test_responses_to_a_refresh(status, reply, meaning):
    """A refresh token is invalid only if JSON reports it with 400 or 401."""
    found = oauth.parse_refresh(status, body(reply))
    assert found == meaning if isinstance(meaning, TokenResponse) else isinstance(found, meaning)


@given(
    st.integers(100, 599), st.binary(max_size=60) | st.dictionaries(st.text(max_size=9), st.text(max_size=9))
)
def test_any_response_has_a_meaning(status, reply):
    """No bytes make a parser raise."""
    for read in (oauth.parse_authorization, oauth.parse_poll, oauth.parse_refresh):
        assert read(status, body(reply)) is not None


def test_messages_are_short_and_have_no_secret():
    """Secrets are removed from the server's text, which becomes one short line."""
    echo = {"error": "bad", "error_description": "no device_code=dc-secret\r\n\x1b[31m" + "x" * 500}
    found = oauth.parse_poll(400, body(echo), secrets=("dc-secret",))
    assert isinstance(found, GrantError)
    assert "dc-secret" not in found.message
    assert found.message.isprintable()
    assert len(found.message) < 250


ALLOWED = ("portal.qwen.ai", "*.qwen.ai", "*.aliyuncs.com", "http://127.0.0.1:8090")
BASES = {
    "a host": ("portal.qwen.ai", "https://portal.qwen.ai/v1"),
    "with the path": ("portal.qwen.ai/v1", "https://portal.qwen.ai/v1"),
    "with a slash": ("portal.qwen.ai/v1/", "https://portal.qwen.ai/v1"),
    "in capitals": ("Portal.qwen.ai/V1", "https://Portal.qwen.ai/V1"),
    "a url": (
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
    ),
    "the standard port": ("https://portal.qwen.ai:443", "https://portal.qwen.ai:443/v1"),
    "an origin by name": ("http://127.0.0.1:8090", "http://127.0.0.1:8090/v1"),
    "unencrypted": ("http://portal.qwen.ai", None),
    "another port": ("portal.qwen.ai:8443", None),
    "another origin": ("http://127.0.0.1:8091", None),
    "another host": ("portal.qwen.ai.evil.com", None),
    "a suffix": ("evilqwen.ai", None),
    "a user": ("https://portal.qwen.ai@evil.com/", None),
    "a backslash": ("https://evil.com\\.qwen.ai/", None),
    "a query": ("portal.qwen.ai/?x=", None),
    "a fragment": ("https://evil.com#.qwen.ai", None),
    "another scheme": ("ftp://portal.qwen.ai", None),
    "no port": ("https://portal.qwen.ai:x", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("resource", "base"), BASES.values(), ids=BASES.keys())
def test_a_token_is_sent_to_allowed_hosts_only(resource, base):
    """Allowed are https and a host of the list, or an origin that the list has in full."""
    if base is None:
        with pytest.raises(ValueError):
            oauth.base_url(resource, ALLOWED)
    else:
        assert oauth.base_url(resource, ALLOWED) == base


TENANTS = (
    "mine.oss-cn-hangzhou.aliyuncs.com", "dashscope.oss-cn-beijing.aliyuncs.com",
    "oss-cn-beijing.aliyuncs.com",
    "1234567890.cn-beijing.fc.aliyuncs.com", "ws-1.cn-beijing.maas.aliyuncs.com", "x.dashscope.aliyuncs.com",
    "dashscope.aliyuncs.com.oss-cn-hangzhou.aliyuncs.com", "deploy.qwen.ai", "a.portal.qwen.ai",
)  # fmt: skip
"""Hosts under the servers' domains whose names a tenant can choose."""


@pytest.mark.parametrize("host", TENANTS)
def test_rejects_hosts_of_tenants(host):
    """A token is never sent to a host under a tenant's control."""
    assert not any("*" in name for name in Config().oauth_hosts)
    with pytest.raises(ValueError, match="not a host that may receive the token"):
        oauth.base_url(host, Config().oauth_hosts)


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("*.aliyuncs.com", "dashscope.aliyuncs.com", True),
        ("*.aliyuncs.com", "mine.oss-cn-hangzhou.aliyuncs.com", False),
        ("*", "evil.com", False),
        ("*.*.maas.aliyuncs.com", "ws-1.cn-beijing.maas.aliyuncs.com", True),
        ("dashscope*.aliyuncs.com", "dashscope-us.aliyuncs.com", True),
        ("dashscope*.aliyuncs.com", "dashscope.oss-cn-hangzhou.aliyuncs.com", False),
    ],
)
def test_a_wildcard_matches_within_one_label(pattern, host, covered):
    """A `*` in an allowed host matches within one label."""
    if covered:
        assert oauth.base_url(host, [pattern]) == f"https://{host}/v1"
    else:
        with pytest.raises(ValueError, match="not a host that may receive the token"):
            oauth.base_url(host, [pattern])


def test_slow_down_adds_five_seconds_up_to_sixty():
    """The interval grows by RFC 8628's step up to a bound; a longer interval of the server's is kept."""
    assert [oauth.slow_down(i) for i in (5.0, 10.0, 58.0, 60.0, 90.0)] == [10.0, 15.0, 60.0, 60.0, 90.0]
