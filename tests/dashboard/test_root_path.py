"""The dashboard works behind a reverse proxy that serves it under a path."""

from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from qproxy.config import Config
from qproxy.config.accounts import ConfigError
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import HELLO, accounts, world

ROOT = "/tools/qproxy"
PAGES = ("", "/requests", "/accounts", "/keys", "/tools", "/connect", "/live")
TARGETS = ("href", "src", "action", "data-refresh", "data-url")


def proxied(app, *, strips):
    """Return an app behind a reverse proxy, which removes the prefix or keeps it."""

    async def serve(scope, receive, send):
        assert scope["path"].startswith(f"{ROOT}/"), scope["path"]
        path = scope["path"].removeprefix(ROOT) if strips else scope["path"]
        await app({**scope, "path": path}, receive, send)

    return serve


@pytest.mark.parametrize("strips", [True, False], ids=["prefix removed", "prefix kept"])
async def test_a_visit(strips, tmp_path):
    """Links, forms, redirects, scripts' URLs and the cookie of every page include the prefix."""
    settings = {"admin_key": ADMIN_KEY, "root_path": ROOT, "keys_file": str(tmp_path / "keys.json")}
    async with world(ledger=str(tmp_path / "ledger.sqlite3"), **settings) as it:
        assert (await it.post(HELLO))[0] == 200
        browser = Browser(proxied(it.app, strips=strips))
        first = await browser.get(f"{ROOT}/dashboard")
        assert first.status == 303
        login = f"{ROOT}/dashboard/login"
        assert first.headers["location"] == f"{login}?next=/dashboard"
        logged_in = await browser.fill(await browser.get(login), login, key=ADMIN_KEY)
        assert (logged_in.status, logged_in.headers["location"]) == (303, f"{ROOT}/dashboard")
        assert f"Path={ROOT}/dashboard;" in logged_in.headers["set-cookie"]
        for path in PAGES:
            page = await browser.get(f"{ROOT}/dashboard{path}")
            assert page.status == 200
            local = [
                values[name]
                for _, values in page.elements
                for name in TARGETS
                if name in values and not values[name].startswith(("#", "http"))
            ]
            assert all(target.startswith(f"{ROOT}/") for target in local), (path, local)
            for target in local:
                if "/static/" in target:
                    assert (await browser.get(urlsplit(target).path)).status == 200
        assert f"{ROOT}/v1" in (await browser.get(f"{ROOT}/dashboard/connect")).text
        created = await browser.fill(
            await browser.get(f"{ROOT}/dashboard/keys"), f"{ROOT}/dashboard/keys", name="bob"
        )
        assert created.status == 201


@pytest.mark.parametrize("strips", [True, False], ids=["prefix removed", "prefix kept"])
async def test_the_api(strips, autojump_clock):
    """Model requests and the server's description work under the path, with either kind of proxy."""
    async with world(root_path=ROOT) as it:
        it = replace(it, client=type(it.client)(proxied(it.app, strips=strips)))
        assert (await it.post(HELLO, f"{ROOT}/v1/chat/completions"))[0] == 200
        assert (await it.get(f"{ROOT}/openapi.json"))[1]["servers"] == [{"url": ROOT}]
        assert (await it.get(f"{ROOT}/toolsqproxy"))[0] == 404


async def test_the_root_path_of_the_asgi_server():
    """Without the setting, the path that the ASGI server announces applies."""
    async with world(admin_key=ADMIN_KEY) as it:

        async def serve(scope, receive, send):
            await it.app({**scope, "root_path": ROOT, "path": ROOT + scope["path"]}, receive, send)

        page = await Browser(serve).get("/dashboard")
        assert page.headers["location"].startswith(f"{ROOT}/dashboard/login")


@pytest.mark.parametrize("path", ["qproxy", "/", "/a/", "//a", "/a b", "/a;b", "/a\nb", '/"', "http://x/a"])
def test_an_invalid_root_path(path):
    """Anything but a path without a slash at its end is rejected at the start."""
    with pytest.raises(ConfigError, match="root_path"):
        Config(root_path=path, accounts=accounts("one")).check(lambda config: False)
