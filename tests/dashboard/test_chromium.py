"""The dashboard in a real Chromium: what only a browser knows (focus, colours, widths, the script, the
policy).

The server and the emulator run in the test's own Trio program, on real sockets; Selenium, which blocks, runs
in a thread. One browser serves all tests; each has a server, and so an origin, of its own.
"""

import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from qproxy.bootstrap import app
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator, IdentityServer

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver: scripts/browser installs them"
)
KEY = "an admin key of the tests"
SECONDS = 20
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
PAGES = ("", "/requests", "/accounts", "/keys", "/tools", "/connect", "/accounts/me/login")


@pytest.fixture(scope="module")
def chromium():
    """One browser, with a directory of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = webdriver.ChromeOptions()
        options.binary_location = str(BROWSER)
        for flag in (*FLAGS, f"--user-data-dir={folder}", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        driver.set_page_load_timeout(SECONDS)
        try:
            yield Person(driver)
        finally:
            driver.quit()


class Person:
    """Somebody before the browser."""

    def __init__(self, driver):
        self.driver = driver
        self.url = ""

    def opens(self, path):
        self.driver.get(f"{self.url}/dashboard{path}")

    def finds(self, css):
        """The element, as soon as there is one."""
        return self.waits(lambda: self.driver.find_element("css selector", css))

    def presses(self, css):
        self.finds(css).click()

    def types(self, css, text):
        self.finds(css).send_keys(text)

    def runs(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def waits(self, condition):
        """Until the condition holds; meanwhile a page may be replaced, and what is looked at with it."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, SECONDS, 0.05, (WebDriverException,)).until(lambda _: condition())

    def reads(self, text, css="main"):
        self.waits(lambda: text in self.finds(css).text)

    def logs_in(self):
        self.opens("")
        self.types("input[name=key]", f"{KEY}\n")
        self.waits(lambda: self.finds("h1").text == "Overview")

    def sees(self, width, *, dark=False):
        """A window of this width, in light or dark."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def complaints(self):
        """What the browser's console says, since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@asynccontextmanager
async def serving_to(person, folder, **settings):
    """A server with an account that answers and one to sign in, on a free port; the emulator behind it."""
    emulator = Emulator(identity=IdentityServer(interval=0.05))
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        origin = emulator.base_url.removesuffix(f"/{emulator.base_url.split('/', 3)[3]}")
        oauth = {
            "oauth_hosts": [origin],
            "oauth_device_url": f"{origin}/api/v1/oauth2/device/code",
            "oauth_token_url": f"{origin}/api/v1/oauth2/token",
        }
        config = Config(
            port=0,
            admin_key=KEY,
            accounts=(
                AccountConfig(
                    "one", base_url=emulator.base_url, key="sk-emulator", rpm=600, allowance={"5h": 100}
                ),
                AccountConfig("me", kind="oauth", credentials=str(folder / "me")),
            ),
            ledger=str(folder / "ledger.sqlite3"),
            keys_file=str(folder / "keys.json"),
            default_model="qwen3.7-plus",
            **{**oauth, **settings},
        )
        urls = await nursery.start(app.serve, config)
        person.url = urls[0]
        person.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})  # they do not tell ports apart
        person.sees(1280)
        person.complaints()
        yield emulator
        nursery.cancel_scope.cancel()


async def by(person, *steps):
    """What a person does, in a thread."""
    for step in steps:
        await trio.to_thread.run_sync(step)


async def test_by_keyboard_alone(chromium, tmp_path):
    """Log in with Enter; the first stop is the way past the menu; every stop shows where one is; log out."""
    from selenium.webdriver.common.keys import Keys

    def person():
        chromium.logs_in()
        place = (
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        seen = []
        for _ in range(12):
            chromium.driver.switch_to.active_element.send_keys(Keys.TAB)
            seen.append(chromium.runs(place))
        words = [word for word, *_ in seen]
        assert words[0] == "Skip to the page"
        assert words[2:9] == ["Overview", "Requests", "Accounts", "Keys", "Tools", "Connect", "Log out"]
        assert all(style != "none" and width >= 2 for _, style, width in seen), seen
        chromium.presses(".out button")
        chromium.waits(lambda: chromium.finds("h1").text == "Log in")
        chromium.opens("/keys")
        assert chromium.finds("h1").text == "Log in"
        assert chromium.complaints() == []

    async with serving_to(chromium, tmp_path):
        await by(chromium, person)


async def test_what_moves_moves_by_itself(chromium, tmp_path):
    """A request that begins and ends is seen without anybody touching the page."""
    async with serving_to(chromium, tmp_path) as emulator:
        emulator.delay = 0.5
        await by(chromium, chromium.logs_in)
        assert "0 requests in flight" in await trio.to_thread.run_sync(lambda: chromium.finds("main").text)
        ask = (
            "fetch('/v1/chat/completions', {method: 'POST', headers: {'content-type': 'application/json'}, "
            "body:"
            "JSON.stringify({model: 'qwen3.7-plus', stream: true, messages: [{role: 'user', content: 'Hello "
            "there'}]})})"
        )
        await by(chromium, partial(chromium.runs, ask), partial(chromium.reads, "1 request in flight"))
        emulator.delay = 0
        await by(chromium, partial(chromium.reads, "0 requests in flight"))
        assert await trio.to_thread.run_sync(chromium.complaints) == []


async def test_the_box_streams_an_answer(chromium, tmp_path):
    """A press of the button streams a real answer; stopped, it stops upstream too; an error is said."""

    def person():
        chromium.logs_in()
        chromium.opens("/connect")
        chromium.presses("#try-send")
        chromium.reads("Done in", "#try-state")
        chromium.reads("tokens in", "#try-state")
        assert "Say hello" in chromium.finds("#try-answer .words").text
        assert chromium.complaints() == []
        chromium.runs("document.getElementById('try-model').value = 'fault-429'")
        chromium.presses("#try-send")
        chromium.reads("Failed", "#try-state")
        assert chromium.finds("#try-answer .error").text

    def impatient():
        chromium.opens("/connect")
        chromium.presses("#try-send")
        chromium.reads("Streaming", "#try-state")
        chromium.presses("#try-stop")
        chromium.reads("Stopped", "#try-state")

    async with serving_to(chromium, tmp_path) as emulator:
        await by(chromium, person)
        emulator.delay = 1.0
        await by(chromium, impatient)


async def test_a_key_is_made_copied_tried_and_revoked(chromium, tmp_path):
    """From the form to the box, with the key that is shown once."""

    def person():
        chromium.logs_in()
        chromium.opens("/keys")
        chromium.types("input[name=name]", "bob\n")
        secret = chromium.waits(lambda: chromium.finds("#secret").text)
        chromium.presses("[data-copy=secret]")
        chromium.waits(lambda: chromium.finds("[data-copy=secret]").text in ("Copied", "Selected"))
        chromium.opens("/connect")
        chromium.presses("#try-send")
        chromium.reads("Failed", "#try-state")
        chromium.types("#try-key", secret)
        chromium.presses("#try-send")
        chromium.reads("Done in", "#try-state")
        chromium.opens("/keys")
        assert secret not in chromium.driver.page_source
        chromium.presses(".sure summary")
        chromium.presses(".sure button")
        chromium.reads("revoked")

    async with serving_to(chromium, tmp_path):
        await by(chromium, person)


async def test_signing_in_is_followed(chromium, tmp_path):
    """The page shows the code and the QR code, and says by itself that it was approved."""
    async with serving_to(chromium, tmp_path) as emulator:

        def begins():
            chromium.logs_in()
            chromium.opens("/accounts")
            chromium.presses(".account form button")
            assert chromium.finds("svg.qr").size["width"] > 150
            return chromium.finds(".code").text

        code = await trio.to_thread.run_sync(begins)
        assert emulator.identity.decide(code)
        await by(chromium, partial(chromium.reads, "Logged in."))
        assert await trio.to_thread.run_sync(chromium.complaints) == []


CONTRAST = """
const colour = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
  return .2126 * r + .7152 * g + .0722 * b; };
const ground = (e) => { let c = [0, 0, 0, 0]; const stack = [];
  for (; e; e = e.parentElement) stack.push(colour(getComputedStyle(e).backgroundColor));
  return stack.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1]); };
const bad = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest('svg, noscript, script')) continue;
  const below = ground(element), text = over(colour(getComputedStyle(element).color), below);
  const [a, b] = [light(text), light(below)].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) bad.push([walker.currentNode.textContent.trim().slice(0, 40), (a + .05) / (b + .05)]);
}
return bad;
"""


async def test_every_page_is_readable_in_light_and_dark_and_on_a_phone(chromium, tmp_path):
    """4.5:1 for all text, nothing wider than 360 points, nothing fetched from elsewhere, nothing that breaks
    the policy."""

    def person():
        chromium.logs_in()
        chromium.opens("/connect")
        chromium.presses("#try-send")
        chromium.reads("Done in", "#try-state")
        chromium.opens("/keys")
        chromium.types("input[name=name]", "bob")
        chromium.types("input[name=requests]", "100\n")
        chromium.waits(lambda: chromium.finds("#secret"))
        for width, dark in ((1280, False), (1280, True), (360, False), (360, True)):
            chromium.sees(width, dark=dark)
            for page in PAGES:
                chromium.opens(page)
                chromium.runs("document.querySelectorAll('details').forEach((each) => each.open = true)")
                where = (page, width, dark)
                assert chromium.runs(CONTRAST) == [], where
                assert chromium.runs("return document.documentElement.scrollWidth") <= width, where
                loaded = chromium.runs(
                    "return performance.getEntriesByType('resource').map((each) => each.name)"
                )
                assert all(name.startswith(chromium.url) for name in loaded), where
        assert chromium.complaints() == []

    async with serving_to(chromium, tmp_path):
        await by(chromium, person)
