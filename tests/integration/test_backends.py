"""A whole server runs on fake members of every Protocol of shared state; callers do not depend on the
member."""

import pytest
import trio

from qproxy import config as configuration
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator
from qproxy.emulator.identity import IdentityServer
from tests.backends.fakes import Fakes
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import HELLO, MODEL, accounts, world
from tests.integration.test_login import HOST, ask
from tests.relay.test_tool_loop import ASK, MIXED, THEIRS, add, message, next_request, saying

ADMIN = [(b"authorization", f"Bearer {ADMIN_KEY}".encode())]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Set and return an unused data directory."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def settings_of(home):
    """Return the settings of `qproxy serve`, with every file in the data directory and two kinds of
    accounts."""
    loaded = configuration.load(environ={"QPROXY_HOME": str(home)}, flags={"admin_key": ADMIN_KEY})
    names = [name for name in configuration.SETTINGS if name.endswith("_file") or name == "ledger"]
    entries = (AccountConfig("me", kind="oauth", models=["qwen-oauth"]), *accounts("keyed", rpm=100))
    return {
        **{name: getattr(loaded, name) for name in names},
        "accounts": entries,
        "admin_key": ADMIN_KEY,
        "wrong_keys_per_minute": 3,
        "oauth_hosts": [HOST],
        "oauth_device_url": "http://localhost/api/v1/oauth2/device/code",
        "oauth_token_url": "http://localhost/api/v1/oauth2/token",
    }


def bearer(secret):
    return [(b"authorization", b"Bearer " + secret.encode())]


async def create_key(it, **fields):
    """Create a key on the dashboard and return its secret."""
    browser = Browser(it.app)
    await browser.login()
    page = await browser.fill(await browser.get("/dashboard/keys"), "/dashboard/keys", **fields)
    assert page.status == 201
    return next(word for word in page.text.split() if word.startswith("sk-qproxy-"))


async def test_a_server_on_fakes_touches_no_file(home, autojump_clock):
    """Keys, limits, budgets, responses, tool rounds, a login and usage go through the fakes and write no
    file."""
    emulator = Emulator(identity=IdentityServer(interval=0.01))
    emulator.identity.resource_url = HOST
    fakes = Fakes()
    async with world(
        emulator=emulator, functions=[add], backends=fakes.backends(), **settings_of(home)
    ) as it:
        # API keys, rate limits and budgets
        bob = bearer(await create_key(it, name="bob", rpm="2"))
        statuses = [(await it.post(HELLO, headers=bob))[0] for _ in range(3)]
        assert statuses == [200, 200, 429]
        amy = bearer(await create_key(it, name="amy", window="day", requests="1"))
        statuses = [(await it.post(HELLO, headers=amy))[0] for _ in range(2)]
        assert statuses == [200, 429]
        carl = bearer(await create_key(it, name="carl"))
        assert [key.name for key in fakes.api_keys.list_keys()] == ["bob", "amy", "carl"]

        # Wrong secrets, and secrets that were accepted
        wrong = [(await it.post(HELLO, headers=bearer(f"wrong-{n}")))[0] for n in range(4)]
        assert wrong == [401, 401, 401, 429]
        assert (await it.post(HELLO, headers=carl))[0] == 429
        emulator.clear()

        # Stored responses and hidden tool rounds
        async with world(
            backends=fakes.backends(), functions=[add], emulator=emulator, **settings_of(home)
        ) as two:
            emulator.script(saying("Hello."), saying("Yes."))
            first = (await two.post({"model": MODEL, "input": "Hi"}, "/v1/responses", carl))[2]
            body = {"model": MODEL, "input": "And?", "previous_response_id": first["id"]}
            assert (await two.post(body, "/v1/responses", carl))[0] == 200
            assert [m["role"] for m in emulator.requests[-1].body["messages"]] == [
                "user",
                "assistant",
                "user",
            ]
            emulator.clear()
            emulator.script(MIXED)
            reply = message((await two.post({**ASK, "tools": [THEIRS]}, headers=carl))[2])
        async with world(
            backends=fakes.backends(), functions=[add], emulator=emulator, **settings_of(home)
        ) as three:
            emulator.script(saying("All."))
            assert (await three.post(next_request(reply, "r1", "r2"), headers=carl))[0] == 200
            hidden = [m["content"] for m in emulator.requests[-1].body["messages"] if m["role"] == "tool"]
            assert hidden[0] == "5"

        # A login and its tokens
        login = "/admin/accounts/me/login"
        _, started_login = await ask(it, "POST", login, ADMIN)
        assert emulator.identity.decide(started_login["user_code"])
        await trio.sleep(30)
        assert (await ask(it, "GET", login, ADMIN))[1]["state"] == "signed_in"
        tokens = await fakes.credentials["me"].load()
        assert tokens is not None
        assert emulator.identity.accepts_token(tokens.access_token)

        # Usage, and its pages on the dashboard
        browser = Browser(it.app)
        await browser.login()
        for page in ("", "/requests", "/accounts", "/keys"):
            assert (await browser.get(f"/dashboard{page}")).status == 200
    started = [entry for entry in fakes.audit.entries if entry.action == "account.login"]
    assert [(entry.subject, entry.detail) for entry in started] == [("me", "started")]
    assert started[0].actor == "admin API 127.0.0.1"
    usage = await fakes.ledger.usage_by("key", ("all",), 1e12)
    assert [(row.name, row.requests) for row in usage["all"]] != []
    assert {row.name for row in usage["all"]} == {"amy", "bob", "carl"}
    assert sum(state.requests for state in fakes.account_states.values()) >= 7
    assert not home.exists()
