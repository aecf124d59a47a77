"""A logged-in account works in a whole server: its login over HTTP, its tokens in requests, and reloads."""

import json
import logging
import traceback
from contextlib import asynccontextmanager

import pytest
import trio

from qproxy.auth.refresher import TokenRefresher
from qproxy.backends.local import login_sessions
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator, IdentityServer
from qproxy.emulator.identity import FAULTS, TOKEN_PATH
from tests.helpers import HELLO, accounts, world

LOGIN = "/admin/accounts/me/login"
HOST = "http://identity.test"
ADMIN = [(b"authorization", b"Bearer the-admin-key")]


@asynccontextmanager
async def login_world(tmp_path, *names, lifetime=3600.0, **settings):
    """Serve an account that is not logged in, with an identity server that is polled without delay."""
    emulator = Emulator(identity=IdentityServer(interval=0.01, token_lifetime=lifetime))
    entries = [
        AccountConfig(name, kind="oauth", credentials=str(tmp_path / name)) for name in names or ("me",)
    ]
    settings = {
        "accounts": (*entries, *accounts("keyed", models=["none"])),
        "admin_key": "the-admin-key",
        "oauth_hosts": [HOST],
        "oauth_device_url": "http://localhost/api/v1/oauth2/device/code",
        "oauth_token_url": "http://localhost/api/v1/oauth2/token",
        **settings,
    }
    emulator.identity.resource_url = HOST
    async with world(emulator=emulator, **settings) as it:
        yield it


async def ask(it, method, path=LOGIN, headers=ADMIN):
    async with it.client.request(method, path, headers=headers) as response:
        data = await response.read()
    return response.status, json.loads(data)


def source(it, name="me"):
    return next(a.source for a in it.server.state.relay.accounts.accounts if a.name == name)


async def log_in(it, name="me"):
    """Log an account in over HTTP and return its final state."""
    path = f"/admin/accounts/{name}/login"
    _, started = await ask(it, "POST", path)
    assert it.emulator.identity.decide(started["user_code"])
    await it.server.state.login_sessions._logins[name].flow.finished.wait()
    return (await ask(it, "GET", path))[1]


async def test_log_in_over_http_and_chat(tmp_path):
    """The first request after a login succeeds, with the token and at the login's host."""
    async with login_world(tmp_path) as it:
        status, _, body = await it.post(HELLO)
        assert (status, body["error"]["code"]) == (502, "upstream_credentials_exhausted")
        assert "qproxy login --account me" in body["error"]["message"]
        finished = await log_in(it)
        assert (finished["state"], finished["message"]) == ("signed_in", "Logged in.")
        status, _, body = await it.post(HELLO)
        assert status == 200
        seen = it.emulator.requests[-1]
        assert seen.headers["host"] == "identity.test"
        assert it.emulator.identity.accepts_token(seen.headers["authorization"].removeprefix("Bearer "))
        assert it.sound()


async def test_a_second_start_attaches(tmp_path):
    """A second start returns the same code and 200 instead of 201; cancelling ends the login."""
    async with login_world(tmp_path) as it:
        first, second = await ask(it, "POST"), await ask(it, "POST")
        assert (first[0], second[0]) == (201, 200)
        assert first[1]["user_code"] == second[1]["user_code"]
        assert first[1]["verification_uri"].endswith(f"user_code={first[1]['user_code']}&client=qproxy")
        assert 0 < first[1]["expires_in"] <= 900
        assert (await ask(it, "DELETE"))[1]["state"] == "cancelled"
        assert (await ask(it, "GET"))[1]["state"] == "cancelled"
        third = await ask(it, "POST")
        assert third[0] == 201
        assert third[1]["user_code"] != first[1]["user_code"]


async def test_a_login_survives_its_client(tmp_path):
    """A login belongs to the server: it continues after the client that started it disconnects."""
    async with login_world(tmp_path) as it:
        it.emulator.identity.script(FAULTS["503"])
        with trio.move_on_after(0.05):
            await ask(it, "POST")
        progress = await it.server.state.login_sessions.progress("me")
        assert progress is not None
        assert progress.state in ("starting", "pending")
        assert (await log_in(it))["state"] == "signed_in"


REFUSALS = {
    "no key": ("POST", LOGIN, [], 401, "invalid_api_key"),
    "a client's key": ("GET", LOGIN, [(b"authorization", b"Bearer sk-x")], 401, "invalid_api_key"),
    "no such account": ("POST", "/admin/accounts/you/login", ADMIN, 404, "account_not_found"),
    "an account with a key": ("POST", "/admin/accounts/keyed/login", ADMIN, 400, "account_uses_api_key"),
    "nothing under way": ("GET", LOGIN, ADMIN, 404, "login_not_found"),
    "nothing to cancel": ("DELETE", LOGIN, ADMIN, 404, "login_not_found"),
    "another method": ("PUT", LOGIN, ADMIN, 405, "method_not_allowed"),
}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"), REFUSALS.values(), ids=REFUSALS.keys()
)
async def test_rejections(method, path, headers, status, code, tmp_path):
    """A login requires the admin key and an account of this kind."""
    async with login_world(tmp_path) as it:
        received, body = await ask(it, method, path, headers)
        assert (received, body["error"]["code"]) == (status, code)


async def test_concurrent_logins_are_limited(tmp_path):
    """A fifth concurrent login is rejected; a finished one frees its slot and is forgotten after five
    minutes."""
    names = ["a", "b", "c", "d", "e"]
    async with login_world(tmp_path, *names) as it:
        answers = [await ask(it, "POST", f"/admin/accounts/{name}/login") for name in names]
        assert [status for status, _ in answers] == [201] * login_sessions.MAX_CONCURRENT + [503]
        await ask(it, "DELETE", "/admin/accounts/a/login")
        assert (await ask(it, "POST", "/admin/accounts/e/login"))[0] == 201
        it.server.state.login_sessions._logins["a"].finished -= login_sessions.RETENTION_SECONDS + 1
        assert (await ask(it, "GET", "/admin/accounts/a/login"))[0] == 404


async def test_a_rejected_token_is_renewed_within_the_request(tmp_path):
    """A 401 from chat causes one refresh and one retry, and the client gets 200."""
    async with login_world(tmp_path) as it:
        await log_in(it)
        it.emulator.identity.expire()
        status, _, _ = await it.post(HELLO)
        assert status == 200
        assert source(it).status().refreshes == 1
        assert [s.body.get("grant_type") for s in it.emulator.requests if s.path == TOKEN_PATH][
            -1
        ] == "refresh_token"


async def test_a_token_that_is_revoked_again_is_renewed_again(tmp_path):
    """Each revoked token is renewed within the request: the new token worked in between."""
    async with login_world(tmp_path) as it:
        await log_in(it)
        for count in range(1, 4):
            assert (await it.post(HELLO))[0] == 200
            it.emulator.identity.expire()
            assert (await it.post(HELLO))[0] == 200
            assert source(it).status().refreshes == count


async def test_chat_that_rejects_every_token_is_reported(tmp_path):
    """When chat rejects refreshed tokens, the client gets 502 after one refresh, and the state has the
    reason."""
    async with login_world(tmp_path) as it:
        await log_in(it)
        it.emulator.identity.chat_refuses = True
        for _ in range(3):
            status, _, body = await it.post(HELLO)
            assert (status, body["error"]["code"]) == (502, "upstream_credentials_exhausted")
        found = source(it).status()
        assert (found.state, found.refreshes) == ("refused", 1)
        assert "invalid access token or token expired" in found.message


async def test_a_crash_of_a_refresher_is_survived(tmp_path, monkeypatch, caplog):
    """An exception in the token refresher is logged and counted, the server keeps serving, and it
    restarts."""
    async with login_world(tmp_path) as it:
        await log_in(it)
        whole = TokenRefresher._reload_stored

        async def broken(self):
            monkeypatch.setattr(TokenRefresher, "_reload_stored", whole)
            raise ZeroDivisionError("a mistake")

        monkeypatch.setattr(TokenRefresher, "_reload_stored", broken)
        source(it).reload()
        await trio.sleep(0.05)
        assert it.server.state.refresh_tasks.tasks["me"].crashes == 1
        assert "crashed, restarting" in caplog.text
        assert (await it.post(HELLO))[0] == 200
        it.emulator.identity.expire()
        assert (await it.post(HELLO))[0] == 200


async def test_a_reload_keeps_remaining_accounts(tmp_path):
    """A reload adds and removes accounts; the refresh task of a remaining one continues."""
    async with login_world(tmp_path, "me", "other") as it:
        await log_in(it)
        refresh_tasks = it.server.state.refresh_tasks
        me, other = source(it), source(it, "other")
        task = refresh_tasks.tasks["me"]
        refresh_tasks.set_sources([me])
        assert list(refresh_tasks.tasks) == ["me"]
        refresh_tasks.set_sources([other, me])
        assert refresh_tasks.tasks["me"] is task
        assert set(refresh_tasks.tasks) == {"me", "other"}
        assert (await it.post(HELLO))[0] == 200


async def test_a_login_leaks_no_secret(tmp_path, caplog, capfd, monkeypatch):
    """Log lines, errors, responses, reprs and tracebacks of a login, chats, refreshes and failures have no
    secret."""
    caplog.set_level(logging.DEBUG)
    outputs: list[object] = []
    async with login_world(tmp_path, log_level="debug") as it:
        identity = it.emulator.identity
        outputs += [await ask(it, "POST"), await ask(it, "DELETE"), await log_in(it), await it.post(HELLO)]
        identity.expire()
        outputs += [await it.post(HELLO), await it.stream(HELLO)]
        for fault in ("html", "503", "refused", "cut"):
            identity.script(FAULTS[fault])
            source(it)._token_state.forced_at, source(it)._token_state.not_before = (0, float("-inf")), 0.0
            identity.expire()
            outputs.append(await it.post(HELLO))
        identity.chat_refuses = True
        outputs.append(await it.post(HELLO))
        me = source(it)
        outputs += [
            me,
            me.status(),
            me.status().to_json(),
            me._token_state,
            me.refresher,
            store := me.refresher.store,
            store.file,
            store._lock,
        ]
        outputs += [
            it.server.state.login_sessions,
            it.server.state.refresh_tasks,
            it.server.state.relay.accounts,
            identity,
        ]
        outputs.append(await ask(it, "GET", LOGIN))

        def crash(*arguments):
            tokens = me._token_state.tokens
            raise RuntimeError(f"a mistake with {tokens!r}")

        monkeypatch.setattr(TokenRefresher, "_reload_stored", crash)
        me.reload()
        await trio.sleep(0.05)
        try:
            crash()
        except RuntimeError:
            outputs.append(traceback.format_exc())
        seen = [s.body for s in it.emulator.requests if isinstance(s.body, dict)]
        secrets = {
            body[name]
            for body in seen
            for name in ("device_code", "code_verifier", "refresh_token")
            if name in body
        }
        secrets |= {*identity._access, *identity._refresh, "the-admin-key"}
    text = caplog.text + repr([record.__dict__ for record in caplog.records]) + "".join(capfd.readouterr())
    text += repr(outputs)
    assert len(secrets) > 6
    assert "crashed, restarting" in text
    assert [secret for secret in secrets if secret in text] == []
