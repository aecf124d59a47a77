"""Client secrets open realtime sessions with the settings and the identity of the key that made them."""

import time

import pytest
import trio
from openai.types.realtime import ClientSecretCreateResponse

from qproxy.backends.local import key_file
from tests.helpers import world
from tests.integration.test_realtime import reject
from tests.openai_types import refusal
from tests.realtime_client import MODEL, talk

PATH = "/v1/realtime/client_secrets"
SESSION = {"type": "realtime", "model": MODEL, "instructions": "Be brief.", "output_modalities": ["text"]}


def bearer(secret):
    return [(b"authorization", b"Bearer " + secret.encode())]


async def create(it, key=None, **body):
    """Return a new client secret, valid for the SDK."""
    status, _, answer = await it.post(body, PATH, () if key is None else bearer(key))
    assert status == 200, answer
    ClientSecretCreateResponse.model_validate(answer)
    return answer


async def settings_of(app, headers=(), subprotocols=(), model=None):
    """Return the settings of a session that nobody has changed but its client secret."""
    async with talk(app, model, headers, subprotocols) as client:
        await client.until("session.created")
        session = (await client.until("session.updated"))["session"]
        await client.socket.aclose()
    return session


@pytest.mark.parametrize("way", ["header", "subprotocol"])
async def test_a_session_has_the_settings_of_its_secret(autojump_clock, way):
    """A browser sends the secret in a subprotocol, others in a header; both get model and settings."""
    async with world() as it:
        answer = await create(it, session=SESSION)
        assert answer["value"].startswith("ek_")
        assert answer["session"]["instructions"] == "Be brief."
        assert 590 <= answer["expires_at"] - time.time() <= 600
        value = answer["value"]
        offered = ["realtime", f"openai-insecure-api-key.{value}"] if way == "subprotocol" else []
        session = await settings_of(it.app, bearer(value) if way == "header" else (), offered)
        assert (session["instructions"], session["output_modalities"]) == ("Be brief.", ["text"])
        assert it.emulator.requests[0].query["model"] == MODEL


@pytest.fixture
def keys(tmp_path):
    """Settings of a server with keys, and the record and the secret of one."""
    file = tmp_path / "keys.json"
    key, secret = key_file.create(file, name="bob", models=("qwen3-omni*",))
    return {"keys_file": str(file)}, key, secret, file


async def test_a_session_is_that_of_the_key(autojump_clock, keys):
    """Its limits and its records are those of the API key; no other route accepts the secret."""
    settings, key, secret, _ = keys
    async with world(**settings) as it:
        value = (await create(it, secret, session=SESSION))["value"]
        async with talk(it.app, None, bearer(value)) as client:
            await client.until("session.updated")
            (record,) = it.server.state.counters.in_flight.values()
            assert record.key == key.label
            await client.socket.aclose()
        for path in ("/v1/chat/completions", PATH):
            status, _, body = await it.post({}, path, bearer(value))
            assert (status, refusal(body).code) == (401, "invalid_api_key")
        assert (await reject(it.app, None, [(b"authorization", b"Bearer ek_x")]))[0] == 401


async def test_a_secret_ends_with_its_key(autojump_clock, keys):
    """The secrets of a revoked key open no session."""
    settings, key, secret, file = keys
    async with world(**settings) as it:
        value = (await create(it, secret, session=SESSION))["value"]
        key_file.revoke(file, key.id)
        await trio.sleep(5)
        status, error = await reject(it.app, None, bearer(value))
        assert (status, error["code"]) == (401, "invalid_api_key")


async def test_a_secret_ends(autojump_clock, monkeypatch):
    """It opens no session after its time, on a server without keys either."""
    async with world() as it:
        answer = await create(it, session=SESSION, expires_after={"anchor": "created_at", "seconds": 10})
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 11)
        status, error = await reject(it.app, None, bearer(answer["value"]))
        assert (status, "expired" in error["message"]) == (401, True)


async def test_a_secret_is_for_its_model(autojump_clock, keys):
    """Another model in the URL is rejected, and a key makes none for a model that it may not use."""
    settings, _, secret, _ = keys
    async with world(**settings) as it:
        value = (await create(it, secret, session=SESSION))["value"]
        status, error = await reject(it.app, "qwen3-omni-turbo-realtime", bearer(value))
        assert (status, error["param"]) == (403, "model")
        status, _, body = await it.post({"session": {"model": "qwen-plus"}}, PATH, bearer(secret))
        assert (status, refusal(body).code) == (403, "model_access_denied")


INVALID = {
    "too short": ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
    "too long": ({"expires_after": {"seconds": 7201}}, "expires_after.seconds"),
    "another anchor": ({"expires_after": {"anchor": "now"}}, "expires_after.anchor"),
    "a transcription": ({"session": {"type": "transcription"}}, "session.type"),
    "large settings": ({"session": {"model": MODEL, "instructions": "x" * 5000}}, "session"),
    "no model": ({"session": {}}, "session.model"),
}


@pytest.mark.parametrize(("body", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(body, param):
    """An invalid field is a 400 that names it."""
    async with world() as it:
        status, _, answer = await it.post(body, PATH)
        assert (status, refusal(answer).param) == (400, param)
