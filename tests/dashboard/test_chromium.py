"""The dashboard works in a real Chromium: focus, colors, widths, the script, the policy.

The server and the emulator run in the test's own Trio program, on real sockets; Selenium, which blocks, runs
in a thread. One browser serves all tests; each has its own server, and so its own origin.
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
    """Run one browser, with its own directory."""
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
            yield User(driver)
        finally:
            driver.quit()


class User:
    """A user of the browser."""

    def __init__(self, driver):
        self.driver = driver
        self.url = ""

    def open_page(self, path):
        self.driver.get(f"{self.url}/dashboard{path}")

    def find(self, css):
        """Return the element as soon as it exists."""
        return self.wait_for(lambda: self.driver.find_element("css selector", css))

    def click(self, css):
        self.find(css).click()

    def type_text(self, css, text):
        self.find(css).send_keys(text)

    def run_script(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, condition):
        """Wait until the condition is true, even if the page is replaced meanwhile."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, SECONDS, 0.05, (WebDriverException,)).until(lambda _: condition())

    def wait_for_text(self, text, css="main"):
        self.wait_for(lambda: text in self.find(css).text)

    def log_in(self):
        self.open_page("")
        self.type_text("input[name=key]", f"{KEY}\n")
        self.wait_for(lambda: self.find("h1").text == "Overview")

    def set_window(self, width, *, dark=False):
        """Set the window to this width, in light or dark."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def console_messages(self):
        """Return the browser's console messages since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@asynccontextmanager
async def dashboard_server(user, folder, **settings):
    """Run a server with a working account and one to log in, on a free port; yield the emulator behind it."""
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
        user.url = urls[0]
        user.driver.execute_cdp_cmd("Network.clearBrowserCookies", {})  # cookies are not separated by port
        user.set_window(1280)
        user.console_messages()
        yield emulator
        nursery.cancel_scope.cancel()


async def run_steps(user, *steps):
    """Run a user's steps in a thread."""
    for step in steps:
        await trio.to_thread.run_sync(step)


async def test_by_keyboard_alone(chromium, tmp_path):
    """Enter logs in, the first tab stop skips the menu, every stop shows its focus, and the last logs out."""
    from selenium.webdriver.common.keys import Keys

    def user():
        chromium.log_in()
        focus_script = (
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.textContent.trim(), s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        seen = []
        for _ in range(12):
            chromium.driver.switch_to.active_element.send_keys(Keys.TAB)
            seen.append(chromium.run_script(focus_script))
        labels = [word for word, *_ in seen]
        assert labels[0] == "Skip to the page"
        assert labels[2:9] == ["Overview", "Requests", "Accounts", "Keys", "Tools", "Connect", "Log out"]
        assert all(style != "none" and width >= 2 for _, style, width in seen), seen
        chromium.click(".out button")
        chromium.wait_for(lambda: chromium.find("h1").text == "Log in")
        chromium.open_page("/keys")
        assert chromium.find("h1").text == "Log in"
        assert chromium.console_messages() == []

    async with dashboard_server(chromium, tmp_path):
        await run_steps(chromium, user)


async def test_the_live_part_updates_itself(chromium, tmp_path):
    """A request that starts and ends is shown without user interaction."""
    async with dashboard_server(chromium, tmp_path) as emulator:
        emulator.delay = 0.5
        await run_steps(chromium, chromium.log_in)
        assert "0 requests in flight" in await trio.to_thread.run_sync(lambda: chromium.find("main").text)
        ask = (
            "fetch('/v1/chat/completions', {method: 'POST', headers: {'content-type': 'application/json'}, "
            "body:"
            "JSON.stringify({model: 'qwen3.7-plus', stream: true, messages: [{role: 'user', content: 'Hello "
            "there'}]})})"
        )
        await run_steps(
            chromium,
            partial(chromium.run_script, ask),
            partial(chromium.wait_for_text, "1 request in flight"),
        )
        emulator.delay = 0
        await run_steps(chromium, partial(chromium.wait_for_text, "0 requests in flight"))
        assert await trio.to_thread.run_sync(chromium.console_messages) == []


async def test_the_playground_streams_a_response(chromium, tmp_path):
    """A click streams a real response; stopping it stops the upstream; an error is shown."""

    def user():
        chromium.log_in()
        chromium.open_page("/connect")
        chromium.click("#try-send")
        chromium.wait_for_text("Done in", "#try-state")
        chromium.wait_for_text("tokens in", "#try-state")
        assert "Say hello" in chromium.find("#try-answer .words").text
        assert chromium.console_messages() == []
        chromium.run_script("document.getElementById('try-model').value = 'fault-429'")
        chromium.click("#try-send")
        chromium.wait_for_text("Failed", "#try-state")
        assert chromium.find("#try-answer .error").text

    def stop_early():
        chromium.open_page("/connect")
        chromium.click("#try-send")
        chromium.wait_for_text("Streaming", "#try-state")
        chromium.click("#try-stop")
        chromium.wait_for_text("Stopped", "#try-state")

    async with dashboard_server(chromium, tmp_path) as emulator:
        await run_steps(chromium, user)
        emulator.delay = 1.0
        await run_steps(chromium, stop_early)


async def test_a_key_is_created_copied_used_and_revoked(chromium, tmp_path):
    """A key from the form works in the playground, and is shown once."""

    def user():
        chromium.log_in()
        chromium.open_page("/keys")
        chromium.type_text("input[name=name]", "bob\n")
        secret = chromium.wait_for(lambda: chromium.find("#secret").text)
        chromium.click("[data-copy=secret]")
        chromium.wait_for(lambda: chromium.find("[data-copy=secret]").text in ("Copied", "Selected"))
        chromium.open_page("/connect")
        chromium.click("#try-send")
        chromium.wait_for_text("Failed", "#try-state")
        chromium.type_text("#try-key", secret)
        chromium.click("#try-send")
        chromium.wait_for_text("Done in", "#try-state")
        chromium.open_page("/keys")
        assert secret not in chromium.driver.page_source
        chromium.click(".sure summary")
        chromium.click(".sure button")
        chromium.wait_for_text("revoked")

    async with dashboard_server(chromium, tmp_path):
        await run_steps(chromium, user)


async def test_a_login_is_followed(chromium, tmp_path):
    """The page shows the code and the QR code, and updates by itself after the approval."""
    async with dashboard_server(chromium, tmp_path) as emulator:

        def start_login():
            chromium.log_in()
            chromium.open_page("/accounts")
            chromium.click(".account form button")
            assert chromium.find("svg.qr").size["width"] > 150
            return chromium.find(".code").text

        code = await trio.to_thread.run_sync(start_login)
        assert emulator.identity.decide(code)
        await run_steps(chromium, partial(chromium.wait_for_text, "Logged in."))
        assert await trio.to_thread.run_sync(chromium.console_messages) == []


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
    """Text has a contrast of 4.5:1, no page is wider than 360 points or loads from elsewhere, and none breaks
    the policy."""

    def user():
        chromium.log_in()
        chromium.open_page("/connect")
        chromium.click("#try-send")
        chromium.wait_for_text("Done in", "#try-state")
        chromium.open_page("/keys")
        chromium.type_text("input[name=name]", "bob")
        chromium.type_text("input[name=requests]", "100\n")
        chromium.wait_for(lambda: chromium.find("#secret"))
        for width, dark in ((1280, False), (1280, True), (360, False), (360, True)):
            chromium.set_window(width, dark=dark)
            for page in PAGES:
                chromium.open_page(page)
                chromium.run_script(
                    "document.querySelectorAll('details').forEach((each) => each.open = true)"
                )
                where = (page, width, dark)
                assert chromium.run_script(CONTRAST) == [], where
                assert chromium.run_script("return document.documentElement.scrollWidth") <= width, where
                loaded = chromium.run_script(
                    "return performance.getEntriesByType('resource').map((each) => each.name)"
                )
                assert all(name.startswith(chromium.url) for name in loaded), where
        assert chromium.console_messages() == []

    async with dashboard_server(chromium, tmp_path):
        await run_steps(chromium, user)
