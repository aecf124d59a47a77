"""The dashboard requires a session, and accepts only its own forms."""

from typing import Any

import pytest
import trio

from qproxy.config import Config
from qproxy.dashboard import sessions
from qproxy.dashboard.routes import safe_redirect
from qproxy.server.authentication import Access
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import world

POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "frame-ancestors 'none'",
    "form-action 'self'",
)


def test_a_session_cookie_is_signed_and_expires():
    """A cookie is valid with its key, until its expiry, and unchanged."""
    session = sessions.new_session("k", 1000.0)
    text = sessions.to_cookie(session, "k")
    assert sessions.from_cookie(text, "k", 1000.0) == session
    assert session.created
    assert session.expires == 1000 + sessions.SESSION_SECONDS
    assert sessions.from_cookie(text, "k", session.expires) is None
    assert sessions.from_cookie(text, "another", 1000.0) is None
    assert sessions.from_cookie(text, None, 1000.0) is None
    extended = text.replace(str(session.expires), str(session.expires + 1))
    for broken in (
        extended,
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


def test_a_session_before_the_login():
    """The session before a login is never accepted as a logged-in one."""
    session = sessions.new_session(None, 0.0)
    assert not session.created
    assert sessions.from_cookie(sessions.to_cookie(session, None), "k", 0.0) is None
    assert session.token != sessions.new_session(None, 0.0).token


def test_a_session_repr_has_no_secret():
    """A session's repr has neither its name nor its token."""
    session = sessions.new_session("k", 0.0)
    assert session.name not in repr(session)
    assert session.token not in repr(session)


async def test_pages_redirect_to_the_login():
    """A page without a session redirects to the login, which leads back to it."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        redirect = await browser.get("/dashboard/keys")
        assert (redirect.status, redirect.headers["location"]) == (
            303,
            "/dashboard/login?next=/dashboard/keys",
        )
        form = await browser.get(redirect.headers["location"])
        logged_in = await browser.fill(form, "/dashboard/login", key=ADMIN_KEY)
        assert (logged_in.status, logged_in.headers["location"]) == (303, "/dashboard/keys")
        page = await browser.get("/dashboard/keys")
        assert page.status == 200
        assert "No API keys" in page.text
        assert (await browser.get("/dashboard/login")).status == 303, "who is in needs no login"


async def test_every_page_requires_a_login():
    """Every route except the login's and the files', by every method, redirects to the login."""
    async with world(admin_key=ADMIN_KEY) as it:
        routes = [r for r in it.app.url_map.iter_rules() if r.rule.startswith("/dashboard")]
        assert len(routes) > 12
        for rule in routes:
            assert it.server.routes[rule.endpoint].access is Access.SESSION
            for method in rule.methods - {"HEAD", "OPTIONS"}:
                if rule.rule not in (
                    "/dashboard/login",
                    "/dashboard/logout",
                    "/dashboard/static/<path:name>",
                ):
                    answer = await Browser(it.app).ask(method, rule.rule)
                    assert answer.status == 303, (method, rule.rule)
                    assert answer.headers["location"].startswith("/dashboard/login?next=/dashboard")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_cookie_is_for_this_server_alone(scheme):
    """The cookie is HttpOnly, SameSite=Strict, limited in time and path, and Secure over https."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app, scheme=scheme)
        form = await browser.get("/dashboard/login")
        before = browser.cookie
        logged_in = await browser.fill(form, "/dashboard/login", key=ADMIN_KEY)
        flags = logged_in.headers["set-cookie"].split("; ")[1:]
        secure = ["Secure"] if scheme == "https" else []
        seconds = f"Max-Age={sessions.SESSION_SECONDS}"
        assert flags == ["Path=/dashboard", seconds, "HttpOnly", "SameSite=Strict", *secure]
        assert browser.cookie != before, "the session of before the login is not that of after it"


async def test_wrong_keys_are_slow_and_limited(autojump_clock):
    """Each wrong key takes half a second; after the limit the address gets a 429, and may log in a minute
    later."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        for _ in range(Config().wrong_keys_per_minute):
            started_at = trio.current_time()
            wrong = await browser.login("wrong")
            assert wrong.status == 401
            assert "Incorrect admin key" in wrong.text
            assert trio.current_time() - started_at >= 0.5
        limited = await browser.login()
        assert limited.status == 429
        assert "retry-after" in limited.headers
        assert (await Browser(it.app, peer="192.0.2.9").login()).status == 200, "others are not locked out"
        await trio.sleep(60)
        assert (await browser.login()).status == 200


async def test_logging_out_ends_the_session():
    """A logout removes the cookie and invalidates it."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        page = await browser.login()
        old_cookie = browser.cookie
        logged_out = await browser.fill(page, "/dashboard/logout")
        assert (logged_out.status, logged_out.headers["location"]) == (303, "/dashboard/login")
        assert "Max-Age=0" in logged_out.headers["set-cookie"]
        browser.cookie = old_cookie
        assert (await browser.get("/dashboard")).status == 303


async def test_a_logout_applies_to_all_workers(tmp_path):
    """After its logout a cookie is invalid in every worker, also in those that start later."""
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


async def test_a_restored_admin_key_restores_no_session(tmp_path):
    """A changed admin_key ends all sessions, even after it is changed back."""
    settings = {"access_file": str(tmp_path / "access.sqlite3")}
    async with world(admin_key=ADMIN_KEY, **settings) as it:
        browser = Browser(it.app)
        await browser.login()
        old_cookie = browser.cookie
    async with world(admin_key="another-admin-key", **settings) as it:
        browser.app = it.app
        assert (await browser.get("/dashboard")).status == 303
    async with world(admin_key=ADMIN_KEY, **settings) as it:
        browser.app, browser.cookie = it.app, old_cookie
        assert (await browser.get("/dashboard")).status == 303


async def test_a_record_of_sessions_holds_digests_only(tmp_path):
    """The record reveals neither the cookie nor the form's token."""
    path = tmp_path / "access.sqlite3"
    async with world(admin_key=ADMIN_KEY, access_file=str(path)) as it:
        browser = Browser(it.app)
        page = await browser.login()
        name, _, signature = browser.cookie.partition("=")[2].split(".")
        old_cookie = b"".join(file.read_bytes() for file in tmp_path.iterdir())
        texts = [secret.encode() for secret in (name, signature, page.token, ADMIN_KEY)]
        for secret in (*texts, bytes.fromhex(signature), bytes.fromhex(page.token)):
            assert secret not in old_cookie


async def test_an_unreadable_record_is_an_error(tmp_path):
    """An unreadable record is a 503 that names it, not a page."""
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
    """A session signed with the old key is rejected."""
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
async def test_a_foreign_form_is_rejected(tmp_path, fields, headers):
    """The session's cookie is not sufficient: the form must come from a page of this server."""
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
    """Every POST requires the token, so every form has it."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        for route in it.server.route_groups:
            for page_route in route.routes():
                if (
                    page_route.path.startswith("/dashboard")
                    and "<" not in page_route.path
                    and "POST" not in page_route.methods
                ):
                    page = await browser.get(page_route.path)
                    for tag, values in page.elements:
                        if tag == "form" and values.get("method") == "post":
                            assert page.forms[values["action"]]["token"], page_route.path
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
async def test_without_an_admin_key_only_this_machine_has_access(place, headers, status):
    """A browser on loopback needs no login, and no other client has access."""
    async with world() as it:
        page = await Browser(it.app, **place).get("/dashboard", headers)
        assert page.status == status
        assert page.headers["content-type"].startswith("text/html")


async def test_without_an_admin_key_forms_require_the_token(tmp_path):
    """A page of another program on this machine has the address, but not the token."""
    async with world(keys_file=str(tmp_path / "keys.json")) as it:
        browser = Browser(it.app, **HERE)
        page = await browser.get("/dashboard/keys")
        limited = await browser.post("/dashboard/keys", {"name": "x", "token": "0" * 64})
        assert limited.status == 403
        other = Browser(it.app, **HERE)
        copied = {**page.forms["/dashboard/keys"], "name": "x"}
        assert (await other.post("/dashboard/keys", copied)).status == 403, "a token is good for its browser"
        assert (await browser.fill(page, "/dashboard/keys", name="x")).status == 201


@pytest.mark.parametrize(
    "path", ["/dashboard", "/dashboard/login", "/dashboard/nowhere-else", "/dashboard/static/style.css"]
)
async def test_every_response_has_the_security_headers(path):
    """A page loads from this server alone, runs nothing inline, and cannot be framed."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        page = await browser.get(path)
        policy = page.headers["content-security-policy"]
        wanted = POLICY if page.headers["content-type"].startswith("text/html") else POLICY[:1]
        assert all(directive in policy for directive in wanted), policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"


async def test_an_invalid_form_body():
    """Another type, too many fields and invalid UTF-8 are each rejected with a page."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        await browser.login()
        form = [(b"content-type", b"application/x-www-form-urlencoded")]
        redirect = [
            await browser.ask("POST", "/dashboard/keys", [(b"content-type", b"application/json")], b"{}"),
            await browser.ask("POST", "/dashboard/keys", form, b"a=1&" * 100),
            await browser.ask("POST", "/dashboard/keys", form, b"\xff=1"),
            await browser.ask("POST", "/dashboard/keys", form, b"a=" + b"x" * 100_000),
            await browser.get("/dashboard?" + "a=1&" * 100),
        ]
        assert [page.status for page in redirect[:4]] == [415, 400, 400, 413]
        assert all("Error" in page.text for page in redirect[:4])
        assert redirect[4].status == 400


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
def test_the_login_redirects_to_the_dashboard_alone(target, expected):
    """A login redirects to the dashboard, whatever target the address has."""
    assert safe_redirect(target) == expected
