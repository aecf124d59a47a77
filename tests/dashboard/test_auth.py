"""Who may see the dashboard, and whose forms are taken."""

from typing import Any

import pytest
import trio

from qproxy.config import Config
from qproxy.dashboard import sessions
from qproxy.dashboard.routes import safe_redirect
from qproxy.server.authentication import Access
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import world

FENCE = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "frame-ancestors 'none'",
    "form-action 'self'",
)


def test_a_session_is_what_we_signed_and_ends():
    """A cookie is good with its key, until its end, and with nothing changed."""
    made = sessions.new_session("k", 1000.0)
    text = sessions.to_cookie(made, "k")
    assert sessions.from_cookie(text, "k", 1000.0) == made
    assert made.created
    assert made.expires == 1000 + sessions.SESSION_SECONDS
    assert sessions.from_cookie(text, "k", made.expires) is None
    assert sessions.from_cookie(text, "another", 1000.0) is None
    assert sessions.from_cookie(text, None, 1000.0) is None
    longer = text.replace(str(made.expires), str(made.expires + 1))
    for broken in (
        longer,
        text[:-1],
        text + "0",
        "",
        "..",
        "a.b.c",
        "a.²." + text[-64:],
        "ä.1.ä",
        "x" * 5000,
    ):
        assert sessions.from_cookie(broken, "k", 1000.0) is None, broken


def test_who_has_not_signed_in_has_a_session_too():
    """It is not that of somebody who has, whatever it is sent as."""
    made = sessions.new_session(None, 0.0)
    assert not made.created
    assert sessions.from_cookie(sessions.to_cookie(made, None), "k", 0.0) is None
    assert made.token != sessions.new_session(None, 0.0).token


def test_a_session_hides_what_it_is():
    """Neither its name nor its token is in its repr."""
    made = sessions.new_session("k", 0.0)
    assert made.name not in repr(made)
    assert made.token not in repr(made)


async def test_without_a_session_every_page_leads_to_the_login():
    """And after it to where one wanted to go."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        asked = await browser.get("/dashboard/keys")
        assert (asked.status, asked.headers["location"]) == (303, "/dashboard/login?next=/dashboard/keys")
        form = await browser.get(asked.headers["location"])
        entered = await browser.fill(form, "/dashboard/login", key=ADMIN_KEY)
        assert (entered.status, entered.headers["location"]) == (303, "/dashboard/keys")
        page = await browser.get("/dashboard/keys")
        assert page.status == 200
        assert "No API keys" in page.text
        assert (await browser.get("/dashboard/login")).status == 303, "who is in needs no login"


async def test_no_page_is_shown_to_who_has_not_signed_in():
    """Every route but the login's and the files', by every method, leads to the login."""
    async with world(admin_key=ADMIN_KEY) as it:
        routes = [r for r in it.app.url_map.iter_rules() if r.rule.startswith("/dashboard")]
        assert len(routes) > 12
        for rule in routes:
            assert it.server.routes[rule.endpoint].access is Access.SESSION
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                if rule.rule not in ("/dashboard/login", "/dashboard/logout", "/dashboard/static/<name>"):
                    answer = await Browser(it.app).ask(method, rule.rule)
                    assert answer.status == 303, (method, rule.rule)
                    assert answer.headers["location"].startswith("/dashboard/login?next=/dashboard")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_cookie_is_for_this_server_alone(scheme):
    """HttpOnly, SameSite=Strict, bounded in time and place, and Secure where the connection is."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app, scheme=scheme)
        form = await browser.get("/dashboard/login")
        before = browser.cookie
        entered = await browser.fill(form, "/dashboard/login", key=ADMIN_KEY)
        flags = entered.headers["set-cookie"].split("; ")[1:]
        secure = ["Secure"] if scheme == "https" else []
        seconds = f"Max-Age={sessions.SESSION_SECONDS}"
        assert flags == ["Path=/dashboard", seconds, "HttpOnly", "SameSite=Strict", *secure]
        assert browser.cookie != before, "the session of before the login is not that of after it"


async def test_a_wrong_key_waits_and_few_may_guess(autojump_clock):
    """Each wrong key takes half a second; after ten the address hears to wait, and after a while may go
    on."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        for _ in range(Config().wrong_keys_per_minute):
            began = trio.current_time()
            wrong = await browser.login("wrong")
            assert wrong.status == 401
            assert "Incorrect admin key" in wrong.text
            assert trio.current_time() - began >= 0.5
        refused = await browser.login()
        assert refused.status == 429
        assert "retry-after" in refused.headers
        assert (await Browser(it.app, peer="192.0.2.9").login()).status == 200, "others are not locked out"
        await trio.sleep(60)
        assert (await browser.login()).status == 200


async def test_logging_out_ends_the_session():
    """The cookie is taken away, and worth nothing to whoever kept it."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        page = await browser.login()
        kept = browser.cookie
        left = await browser.fill(page, "/dashboard/logout")
        assert (left.status, left.headers["location"]) == (303, "/dashboard/login")
        assert "Max-Age=0" in left.headers["set-cookie"]
        browser.cookie = kept
        assert (await browser.get("/dashboard")).status == 303


async def test_a_logout_is_known_everywhere(tmp_path):
    """A cookie after its logout is good in no other worker, and in none that starts later."""
    settings = {"admin_key": ADMIN_KEY, "access_file": str(tmp_path / "access.sqlite3")}
    async with world(**settings) as one, world(**settings) as two:
        browser, other = Browser(one.app), Browser(two.app)
        page = await browser.login()
        other.cookie = browser.cookie
        assert (await other.get("/dashboard")).status == 200, "workers accept each other's"
        async with world(**settings) as restarted:
            browser.app = restarted.app
            assert (await browser.get("/dashboard")).status == 200, "a restart ends no session"
            await browser.fill(page, "/dashboard/logout")
        assert (await other.get("/dashboard")).status == 303
        async with world(**settings) as restarted:
            other.app = restarted.app
            assert (await other.get("/dashboard")).status == 303


async def test_an_admin_key_that_comes_back_brings_no_session_back(tmp_path):
    """Another admin_key ends the sessions of the one before, also for when that is set again."""
    settings = {"access_file": str(tmp_path / "access.sqlite3")}
    async with world(admin_key=ADMIN_KEY, **settings) as it:
        browser = Browser(it.app)
        await browser.login()
        kept = browser.cookie
    async with world(admin_key="another-admin-key", **settings) as it:
        browser.app = it.app
        assert (await browser.get("/dashboard")).status == 303
    async with world(admin_key=ADMIN_KEY, **settings) as it:
        browser.app, browser.cookie = it.app, kept
        assert (await browser.get("/dashboard")).status == 303


async def test_a_record_of_sessions_holds_digests_only(tmp_path):
    """Neither the cookie nor the form's token can be made from it."""
    path = tmp_path / "access.sqlite3"
    async with world(admin_key=ADMIN_KEY, access_file=str(path)) as it:
        browser = Browser(it.app)
        page = await browser.login()
        name, _, signature = browser.cookie.partition("=")[2].split(".")
        kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        texts = [secret.encode() for secret in (name, signature, page.token, ADMIN_KEY)]
        for secret in (*texts, bytes.fromhex(signature), bytes.fromhex(page.token)):
            assert secret not in kept


async def test_a_record_that_cannot_be_read_lets_nobody_in(tmp_path):
    """It is a 503 that says so, not a page."""
    path = tmp_path / "access.sqlite3"
    async with world(admin_key=ADMIN_KEY, access_file=str(path)) as it:
        browser = Browser(it.app)
        await browser.login()
        for file in tmp_path.iterdir():
            file.write_bytes(b"no database at all" * 100)
        await it.server.state.grants.aclose()
        page = await browser.get("/dashboard")
        assert page.status == 503
        assert "access_file" in page.html


async def test_another_admin_key_ends_every_session():
    """What was signed with the old one is not taken."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        async with world(admin_key="another") as other:
            browser.app = other.app
            assert (await browser.get("/dashboard")).status == 303


FOREIGN = {
    "no token": ({"token": ""}, None),
    "a wrong token": ({"token": "0" * 64}, None),
    "a token that is no ASCII": ({"token": "é"}, None),
    "another origin": ({}, [(b"origin", b"http://evil.test")]),
    "no origin at all": ({}, [(b"origin", b"null")]),
    "an origin that is no URL": ({}, [(b"origin", b"http://[")]),
    "another port of this host": ({}, [(b"origin", b"http://in-process:8080")]),
    "a browser that says cross-site": ({}, [(b"sec-fetch-site", b"cross-site")]),
    "a browser that says same-site": ({}, [(b"sec-fetch-site", b"same-site")]),
}


@pytest.mark.parametrize(("fields", "headers"), FOREIGN.values(), ids=FOREIGN)
async def test_a_form_from_elsewhere_is_not_taken(tmp_path, fields, headers):
    """The session's cookie is not enough: the form must come from a page of ours."""
    async with world(admin_key=ADMIN_KEY, keys_file=str(tmp_path / "keys.json")) as it:
        browser = Browser(it.app)
        await browser.login()
        page = await browser.get("/dashboard/keys")
        filled = {**page.forms["/dashboard/keys"], "name": "x", **fields}
        answer = await browser.post("/dashboard/keys", filled, headers)
        assert answer.status == 403
        assert "The form was rejected" in answer.text
        assert not (tmp_path / "keys.json").exists()


async def test_every_form_of_every_page_has_the_token():
    """No POST is accepted without one, so none is offered without."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        for route in it.server.route_groups:
            for each in route.routes():
                if each.path.startswith("/dashboard") and "<" not in each.path and "POST" not in each.methods:
                    page = await browser.get(each.path)
                    for tag, values in page.elements:
                        if tag == "form" and values.get("method") == "post":
                            assert page.forms[values["action"]]["token"], each.path
        for action in (
            "/dashboard/keys",
            "/dashboard/keys/revoke",
            "/dashboard/accounts/one/login",
            "/dashboard/logout",
        ):
            assert (await browser.post(action, {})).status == 403, action


HERE: dict[str, Any] = {"server": "127.0.0.1", "host": "localhost:8787"}
LOCAL = {
    "on the same machine": (HERE, (), 200),
    "from another machine": ({**HERE, "peer": "192.0.2.7"}, (), 403),
    "on an address of the network": ({**HERE, "server": "192.0.2.1"}, (), 403),
    "by another name": ({**HERE, "host": "evil.test"}, (), 403),
    "through a proxy": (HERE, [(b"x-forwarded-for", b"192.0.2.7")], 403),
    "from a page of another program here": (HERE, [(b"origin", b"http://localhost:3000")], 403),
    "from an origin that is no URL": (HERE, [(b"origin", b"http://[")], 403),
    "from a page elsewhere": (HERE, [(b"origin", b"https://evil.test")], 403),
}


@pytest.mark.parametrize(("place", "headers", "status"), LOCAL.values(), ids=LOCAL)
async def test_without_an_admin_key_it_is_for_this_machine(place, headers, status):
    """A browser on loopback needs no login, and nobody else comes in."""
    async with world() as it:
        page = await Browser(it.app, **place).get("/dashboard", headers)
        assert page.status == status
        assert page.headers["content-type"].startswith("text/html")


async def test_without_an_admin_key_forms_want_the_token_too(tmp_path):
    """A page of another program on this machine has the address, but not the token."""
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        browser = Browser(it.app, **HERE)
        page = await browser.get("/dashboard/keys")
        refused = await browser.post("/dashboard/keys", {"name": "x", "token": "0" * 64})
        assert refused.status == 403
        other = Browser(it.app, **HERE)
        stolen = {**page.forms["/dashboard/keys"], "name": "x"}
        assert (await other.post("/dashboard/keys", stolen)).status == 403, "a token is good for its browser"
        assert (await browser.fill(page, "/dashboard/keys", name="x")).status == 201


@pytest.mark.parametrize(
    "path", ["/dashboard", "/dashboard/login", "/dashboard/nowhere-else", "/dashboard/static/style.css"]
)
async def test_every_answer_is_fenced_in(path):
    """A page loads from this server alone, runs nothing inline, and cannot be framed."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        page = await browser.get(path)
        policy = page.headers["content-security-policy"]
        wanted = FENCE if page.headers["content-type"].startswith("text/html") else FENCE[:1]
        assert all(words in policy for words in wanted), policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"


async def test_a_body_that_is_no_form():
    """Another type, too many fields, bytes that are no text: each is refused as a page."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        form = [(b"content-type", b"application/x-www-form-urlencoded")]
        asked = [
            await browser.ask("POST", "/dashboard/keys", [(b"content-type", b"application/json")], b"{}"),
            await browser.ask("POST", "/dashboard/keys", form, b"a=1&" * 100),
            await browser.ask("POST", "/dashboard/keys", form, b"\xff=1"),
            await browser.ask("POST", "/dashboard/keys", form, b"a=" + b"x" * 100_000),
            await browser.get("/dashboard?" + "a=1&" * 100),
        ]
        assert [page.status for page in asked[:4]] == [415, 400, 400, 413]
        assert all("Error" in page.text for page in asked[:4])
        assert asked[4].status == 400


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/dashboard/keys", "/dashboard/keys"),
        ("/dashboard", "/dashboard"),
        ("", "/dashboard"),
        ("//evil.test", "/dashboard"),
        ("https://evil.test/dashboard/", "/dashboard"),
        ("/dashboardevil", "/dashboard"),
        ("/dashboard/../admin", "/dashboard"),
        ("/dashboard/\r\nset-cookie: x", "/dashboard"),
        ("/dashboard/\\evil", "/dashboard"),
    ],
)
def test_the_login_leads_to_the_dashboard_alone(target, expected):
    """Whatever an address asks for."""
    assert safe_redirect(target) == expected
