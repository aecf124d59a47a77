"""The emulated identity server is as strict as the strictest real one, and its page is safe to open."""

import json

import pytest

from qproxy.emulator.identity import CLIENT_ID, DEVICE_PATH, FAULTS, TOKEN_PATH, IdentityServer
from qproxy.wire import oauth

ORIGIN = "http://q.test"
PROOF = oauth.new_pkce(bytes(32))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def identity(clock):
    return IdentityServer(clock=clock)


def post(identity, path, **form):
    reply = identity.reply("POST", path, {}, form, ORIGIN)
    return reply.status, json.loads(b"".join(reply.steps))


def begin(identity):
    form = {"client_id": CLIENT_ID, "code_challenge": PROOF.challenge, "code_challenge_method": "S256"}
    return post(identity, DEVICE_PATH, **form)[1]


def poll(identity, started, verifier=PROOF.verifier):
    form = {"client_id": CLIENT_ID, "device_code": started["device_code"], "code_verifier": verifier}
    return post(identity, TOKEN_PATH, grant_type=oauth.DEVICE_GRANT, **form)


def refresh(identity, token, client_id=CLIENT_ID):
    return post(identity, TOKEN_PATH, grant_type="refresh_token", refresh_token=token, client_id=client_id)


def test_a_flow_from_code_to_token(identity, clock):
    """A flow is pending, too fast, approved, and granted once; the verifier must match."""
    started = begin(identity)
    assert "interval" not in started
    assert poll(identity, started, "another")[1]["error"] == "invalid_grant"
    assert poll(identity, started) == (400, {"error": "authorization_pending"})
    assert poll(identity, started) == (429, {"error": "slow_down"})
    assert identity.decide(started["user_code"].lower())
    assert not identity.decide(started["user_code"])
    clock.now += 5
    status, granted = poll(identity, started)
    assert (status, granted["token_type"], granted["resource_url"]) == (200, "Bearer", ORIGIN)
    assert identity.accepts_token(granted["access_token"])
    assert poll(identity, started)[1]["error"] == "invalid_grant"


def test_codes_and_tokens_expire(identity, clock):
    """A code and a token expire after their lifetimes."""
    started = begin(identity)
    clock.now += 901
    assert poll(identity, started)[1]["error"] == "expired_token"
    assert not identity.decide(started["user_code"])
    started = begin(identity)
    identity.decide(started["user_code"])
    token = poll(identity, started)[1]["access_token"]
    clock.now += identity.token_lifetime
    assert not identity.accepts_token(token)


def test_a_refresh_token_works_once(identity):
    """Each refresh returns the next token; reuse of a spent one revokes the whole family."""
    started = begin(identity)
    identity.decide(started["user_code"])
    first = poll(identity, started)[1]
    status, second = refresh(identity, first["refresh_token"])
    assert status == 200
    assert second["refresh_token"] != first["refresh_token"]
    assert refresh(identity, second["refresh_token"], "somebody else")[0] == 400
    assert (
        refresh(identity, first["refresh_token"])[1]["error_description"]
        == "Invalid refresh token or client_id"
    )
    assert identity.reused_count == 1
    assert not identity.accepts_token(second["access_token"])
    assert refresh(identity, second["refresh_token"])[0] == 400


def test_denied(identity):
    """A denied login returns access_denied."""
    started = begin(identity)
    reply = identity.reply(
        "POST", "/authorize", {}, {"user_code": started["user_code"], "decision": "deny"}, ORIGIN
    )
    assert b"Denied" in reply.steps[0]
    assert poll(identity, started) == (400, {"error": "access_denied"})


def test_the_page_escapes_the_code(identity):
    """A code in the address cannot become markup or a script."""
    reply = identity.reply("GET", "/authorize", {"user_code": '"><script>alert(1)</script>'}, None, ORIGIN)
    page = reply.steps[0].decode()
    assert "<script>" not in page
    assert 'value="&quot;&gt;&lt;script&gt;' in page
    assert dict(reply.headers)["content-security-policy"].startswith("default-src 'none'")


def test_scripted_faults(identity):
    """The next response is the requested fault; an unknown name lists the names."""
    assert post(identity, "/emulator/next", fault="nonsense") == (400, {"faults": list(FAULTS)})
    assert post(identity, "/emulator/next", fault="503") == (200, {"next": "503"})
    assert refresh(identity, "x")[0] == 503
    assert post(identity, "/emulator/next", fault="429", at="device")[0] == 200
    assert post(identity, DEVICE_PATH)[0] == 429
    assert identity.reply("GET", "/v1/models", {}, None, ORIGIN) is None
