"""The pages show their content and their forms work: HTML through the app in memory, read by a parser."""

import fcntl
import json
import re
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from qproxy.accounts.cooldowns import Cooldown
from qproxy.backends.local import api_keys as local_api_keys
from qproxy.backends.local import key_file
from qproxy.config.accounts import AccountConfig, ConfigError, resolve_account
from qproxy.config.tools import ToolConfig
from qproxy.dashboard import summaries
from qproxy.dashboard.views import connect, overview
from qproxy.emulator import Emulator, IdentityServer
from qproxy.ledger import Pricing
from qproxy.ledger.rows import to_row
from qproxy.sandbox import SystemSandbox
from qproxy.sandbox.bubblewrap import SandboxUnavailable
from qproxy.telemetry import RelayRecord
from qproxy.telemetry.records import FailedAttempt, RequestRecord, ToolRunRecord
from qproxy.wire.errors import LimitKind, UpstreamError
from qproxy.wire.events import Usage
from tests.accounts.factories import refusal
from tests.dashboard.browser import ADMIN_KEY, Browser
from tests.helpers import HELLO, accounts, world

STATIC = (
    "/dashboard",
    "/dashboard/requests",
    "/dashboard/accounts",
    "/dashboard/keys",
    "/dashboard/tools",
    "/dashboard/connect",
)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def dashboard_world(tmp_path, **settings):
    """Return a server with all files that a page can show."""
    files = {"ledger": str(tmp_path / "ledger.sqlite3"), "keys_file": str(tmp_path / "keys.json")}
    files["audit_file"] = str(tmp_path / "audit.jsonl")
    return world(**{"admin_key": ADMIN_KEY, **files, **settings})


async def log_in(it):
    browser = Browser(it.app)
    assert (await browser.login()).status == 200
    return browser


def record(number=1, **fields):
    entry = RequestRecord(f"req_{number}", "POST", "/v1/chat/completions", "/chat/completions")
    entry.relay = RelayRecord(model="qwen3.7-plus", served_model="qwen3.7-plus", account="one", attempts=1)
    entry.status, entry.outcome, entry.ended_at = 200, "ok", entry.started_at + 2.5
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry


async def test_every_page_is_valid_and_self_contained(tmp_path):
    """A page has balanced elements, one h1, no inline script or style, and no external reference."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        assert (await it.post(HELLO))[0] == 200
        for path in STATIC:
            page = await browser.get(path)
            assert page.status == 200, path
            assert not page.unclosed, (path, page.unclosed)
            assert [tag for tag, _ in page.elements].count("h1") == 1, path
            assert page.all("html")[0]["lang"] == "en"
            assert "width=device-width" in page.html
            for tag, values in page.elements:
                assert not any(name.startswith("on") or name == "style" for name in values), (
                    path,
                    tag,
                    values,
                )
                assert tag != "style"
                for name in ("src", "href", "action"):
                    assert not values.get(name, "/").startswith(("http", "//", "javascript")), (path, values)
            assert [values["src"] for values in page.all("script")] == [
                f"/dashboard/static/script.js?{mark(page)}"
            ]
            assert sum(values.get("aria-current") == "page" for values in page.all("a")) == 1
        ids = [values["id"] for _, values in page.elements if "id" in values]
        assert len(ids) == len(set(ids))


def mark(page):
    return re.findall(r"style\.css\?(\w+)", page.html)[0]


async def test_every_control_has_a_label(tmp_path):
    """A control is within a label, hidden, or a button with text."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        for path in STATIC:
            page = await browser.get(path)
            loose = re.sub(r"<label.*?</label>", "", page.html, flags=re.DOTALL)
            for control in re.findall(r"<(?:input|select|textarea)[^>]*>", loose):
                assert 'type="hidden"' in control, (path, control)


@pytest.mark.parametrize("name", ["style.css", "script.js", "icon.svg"])
async def test_static_files_are_served(name, tmp_path):
    """Static files are public, and cached as immutable."""
    async with dashboard_world(tmp_path) as it:
        page = await Browser(it.app).get(f"/dashboard/static/{name}")
        assert page.status == 200
        assert "immutable" in page.headers["cache-control"]
        assert (await Browser(it.app).get("/dashboard/static/..%2f__init__.py")).status == 404


async def test_a_live_request_and_its_end(tmp_path):
    """A streaming request is listed as in flight with its client and model, and later in the list with its
    summary."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        body = b"""{"model": "qwen3.7-plus", "stream": true,
            "messages": [{"role": "user", "content": "my secret question"}]}"""
        fields = [(b"content-type", b"application/json")]
        async with it.client.request("POST", "/v1/chat/completions", headers=fields, body=body) as response:
            await response.receive()
            live = await browser.get("/dashboard/live")
            assert "1 request in flight" in live.text
            assert "streaming" in live.text
            assert "qwen3.7-plus" in live.text
            assert "one" in live.text
            await response.read()
        page = await browser.get("/dashboard")
        assert "0 requests in flight" in page.text
        links = [v["href"] for v in page.all("a") if v["href"].startswith("/dashboard/requests/")]
        summary = await browser.get(links[0])
        assert (
            "A client without an API key requested qwen3.7-plus from /chat/completions, streamed."
            in summary.text
        )
        assert "Account one was used for qwen3.7-plus." in summary.text
        assert "my secret question" not in page.html + summary.html + live.html


async def test_the_live_part_is_not_counted(tmp_path):
    """The part that refreshes every second leaves no log line and no count."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        before = it.server.state.counters.outcomes.total()
        for _ in range(3):
            await browser.get("/dashboard/live")
        assert it.server.state.counters.outcomes.total() == before


@pytest.mark.parametrize("period", ["1h", "24h", "7d", "30d", "nonsense"])
async def test_charts_and_sums(tmp_path, period):
    """The page has requests, tokens, errors and speeds of the period, as charts and numbers."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        usage = Usage(prompt_tokens=1000, completion_tokens=500)
        for number in range(4):
            entry = record(number, first_byte=0.25)
            entry.relay.usage = usage
            entry.outcome = "upstream_truncated" if number == 3 else "ok"
            it.server.state.ledger.record(entry)
        page = await browser.get(f"/dashboard?period={period}")
        assert "Requests 4 Failed 1 25.0%" in page.text
        assert "Tokens in 4,000 Tokens out 2,000" in page.text
        assert "First event, median 250 ms" in page.text
        names = [v["aria-label"].partition(" over time")[0] for v in page.all("svg")]
        assert names == ["Requests", "Tokens", "Errors", "Time to first event", "Total time"]
        assert "3 answered, 1 failed" in page.text
        assert sum(values.get("class") == "s0" for values in page.all("rect")) == 2


async def test_pages_without_a_ledger():
    """A page without a ledger explains that it is off."""
    async with world(admin_key=ADMIN_KEY, ledger="none") as it:
        browser = await log_in(it)
        for path in ("/dashboard", "/dashboard/requests", "/dashboard/accounts"):
            page = await browser.get(path)
            assert page.status == 200
            assert "The usage ledger is off (setting ledger)." in page.text
        assert (await browser.get("/dashboard/requests/x")).status == 503
        assert (await browser.get("/dashboard/keys")).status == 200


async def test_pages_with_a_broken_ledger(tmp_path):
    """An invalid ledger file is reported on the page, which still works."""
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database" * 100)
    async with dashboard_world(tmp_path) as it:
        page = await (await log_in(it)).get("/dashboard")
        assert page.status == 200
        assert "The usage ledger did not respond" in page.text


async def test_the_list_is_filtered_and_paged(tmp_path):
    """The list filters by outcome and model, and links to older requests after fifty."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        for number in range(60):
            it.server.state.ledger.record(
                record(number, outcome="ok" if number else "error", error=None if number else "boom")
            )
        first = await browser.get("/dashboard/requests")
        older = next(v["href"] for v in first.all("a") if "before=" in v["href"])
        second = await browser.get(older)
        rows = [len(page.all("tr")) - 1 for page in (first, second)]
        assert rows == [50, 10]
        bad = await browser.get("/dashboard/requests?outcome=error")
        assert len(bad.all("tr")) == 2
        assert "boom" in bad.text
        assert "No matching requests" in (await browser.get("/dashboard/requests?model=other")).text
        assert len((await browser.get("/dashboard/requests?before=nonsense")).all("tr")) == 51
        assert (await browser.get("/dashboard/requests/req_99")).status == 404


def test_a_summary_is_complete():
    """The summary has attempts, tools, rules, repairs, tokens and times, each in a sentence."""
    entry = record(
        key="bob",
        stream=True,
        first_byte=0.4,
        finish_reason="stop",
        tools=[ToolRunRecord("calc", True, 0.1), ToolRunRecord("calc", False, 0.1)],
    )
    summary = entry.relay
    summary.failures, summary.attempts, summary.account = (
        [FailedAttempt("one", "rate_limit_exceeded")],
        2,
        "two",
    )
    summary.rules, summary.usage = (
        ("developer_role",),
        Usage(100, 50, 150, {"cached_tokens": 10}, {"reasoning_tokens": 20}),
    )
    summary.repairs["index_missing"] = 2
    summary_lines = summaries.summarize(to_row(entry, 1.0, Pricing()))
    assert summary_lines[0] == "API key bob requested qwen3.7-plus from /chat/completions, streamed."
    assert summary_lines[1] == "Account one failed: rate_limit_exceeded."
    assert summary_lines[2] == "Account two was used for qwen3.7-plus on attempt 2."
    assert summary_lines[3].startswith("First event after 400 ms; finished after 2.5 s")
    assert summary_lines[3].endswith("answered, status 200, finish reason stop.")
    assert summary_lines[4].startswith("100 tokens in (10 cached), 50 out (20 reasoning).")
    assert summary_lines[5:7] == [
        "The server ran tool calc 1 time.",
        "The server ran tool calc 1 time, which failed.",
    ]
    assert summary_lines[7].startswith("Rule developer_role: ")
    assert summary_lines[8].startswith("Repaired 2 times, index_missing: an entry without an index")


def test_the_summary_of_a_request_without_an_account():
    """A request that reached no account has neither tokens nor a first event."""
    entry = record(outcome="error", error="account_unavailable", status=503)
    entry.relay.account, entry.relay.attempts = None, 0
    summary_lines = summaries.summarize(to_row(entry, 1.0, Pricing()))
    assert summary_lines[1] == "The request reached no account."
    assert summary_lines[2] == "Finished after 2.5 s: refused, status 503, error account_unavailable."
    assert len(summary_lines) == 3


async def test_the_page_of_accounts(tmp_path):
    """The page has state, cooldowns, rejected models, quota and its windows as bars."""
    names = accounts("one", allowance={"5h": 10}, rpm=60) + accounts("two")
    async with dashboard_world(tmp_path, accounts=names) as it:
        browser = await log_in(it)
        one, two = it.server.state.relay.accounts.accounts
        now = trio.current_time()
        for number in range(9):
            it.server.state.ledger.record(record(number))
        one.record_success("m")
        two.record_failure(refusal(LimitKind.QUOTA, "Your plan is used up."), now)
        two.record_failure(refusal(LimitKind.MODEL, "No such model."), now, "qwen-x")
        page = await browser.get("/dashboard/accounts")
        assert "9 of 10 requests" in page.text
        assert "0 of 60 requests" in page.text
        bars = [v for v in page.all("svg") if "bar" in v.get("class", "")]
        assert {"bar near", "bar calm"} == {v["class"] for v in bars}
        assert any(v["aria-label"] == "90.0 % used" for v in bars)
        assert [v.condition(now).state for v in (one, two)] == ["ready", "cooling_down"]
        assert "Ready." in page.text
        assert re.search(r"Cooling down until (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d UTC: quota\.", page.text)
        assert "cools down until" in page.text
        assert "quota message Your plan is used up." in page.text
        assert "last error 429" in page.text
        assert "not for qwen-x this model; available in 10 min" in page.text


async def test_a_button_ends_cooldowns(tmp_path):
    """The button, with the session's token, ends what makes an account wait."""
    async with dashboard_world(tmp_path, accounts=accounts("one")) as it:
        browser = await log_in(it)
        (one,) = it.server.state.relay.accounts.accounts
        page = await browser.get("/dashboard/accounts")
        assert "unknown" in page.text
        assert "last success unknown" in page.text
        assert "End cooldowns now" not in page.text
        one.record_failure(UpstreamError("Boom.", status=502), trio.current_time())
        page = await browser.get("/dashboard/accounts")
        assert ("failing" in page.text, "End cooldowns now" in page.text) == (True, False)
        one.record_failure(refusal(LimitKind.QUOTA, "Your plan is used up."), trio.current_time())
        page = await browser.get("/dashboard/accounts")
        assert "End cooldowns now" in page.text
        action = "/dashboard/accounts/one/wake"
        rejected = await browser.post(action, {"token": "guessed"})
        assert (rejected.status, list(one.cooldowns)) == (403, [""])
        await browser.fill(page, action)
        assert (one.cooldowns, one.quota) == ({}, None)
        missing = await browser.post("/dashboard/accounts/nobody/wake", {"token": page.token})
        assert missing.status == 404


async def test_learned_rules_are_shown_and_forgotten(tmp_path):
    """Rules learned from rejections are on the account's card, with a button that forgets them."""
    async with dashboard_world(tmp_path, accounts=accounts("one")) as it:
        browser = await log_in(it)
        (one,) = it.server.state.relay.accounts.accounts
        one.learned_rules.add("m", ["temperature"], one.wall_clock())
        page = await browser.get("/dashboard/accounts")
        assert "learned for m temperature" in page.text
        await browser.fill(page, "/dashboard/accounts/one/rules/forget")
        assert "learned for" not in (await browser.get("/dashboard/accounts")).text
        assert not list(one.learned_rules)


def test_an_allowance_requires_a_known_window():
    """A misspelled window is a configuration error that names it."""
    with pytest.raises(ConfigError, match="'fortnight'"):
        resolve_account(AccountConfig("one", base_url="http://one.test", key="k", allowance={"fortnight": 1}))


async def test_a_key_is_shown_once_and_revoked(tmp_path):
    """The response to the form has the key, which works and is never shown again."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        page = await browser.get("/dashboard/keys")
        form_fields = {
            "name": "bob",
            "expires": "30d",
            "rpm": "60",
            "models": "qwen3*, qwen-max",
            "window": "month",
            "requests": "100",
        }
        created = await browser.fill(page, "/dashboard/keys", **form_fields)
        assert created.status == 201
        assert created.headers["cache-control"] == "no-store"
        secret = re.findall(r"sk-qproxy-[\w-]+", created.html)[0]
        (key,) = key_file.read(tmp_path / "keys.json")
        assert (key.name, key.rpm, key.models) == ("bob", 60, ("qwen3*", "qwen-max"))
        assert (key.budgets[0].window, key.budgets[0].requests) == ("month", 100)
        assert (await it.post(HELLO))[0] == 401, "from now on a key is demanded"
        assert (await it.post(HELLO, headers=[(b"authorization", b"Bearer " + secret.encode())]))[0] == 200
        again = await browser.get("/dashboard/keys")
        assert secret not in again.html
        assert "1 of 100 requests" in again.text
        revoked = await browser.fill(again, "/dashboard/keys/revoke", id=key.id)
        assert revoked.status == 303
        assert (await it.post(HELLO, headers=[(b"authorization", b"Bearer " + secret.encode())]))[0] == 401
        assert "revoked" in (await browser.get("/dashboard/keys")).text
    audit = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(entry["actor"], entry["action"], entry["subject"]) for entry in audit] == [
        ("dashboard 127.0.0.1", "key.create", f"{key.id} bob"),
        ("dashboard 127.0.0.1", "key.revoke", f"{key.id} bob"),
    ]
    assert secret not in json.dumps(audit)


WRONG = {
    "no name": {"name": ""},
    "a name of control characters": {"name": "a\nb"},
    "an end that is none": {"expires": "soon"},
    "an end that is over": {"expires": "2001-01-01"},
    "an end that is too far": {"expires": "9" * 20 + "w"},
    "a limit that is no number": {"rpm": "ten"},
    "a limit of nothing": {"tpm": "0"},
    "a number that is too long": {"requests": "9" * 30},
    "no such window": {"window": "fortnight", "requests": "1"},
    "a budget without a window": {"window": "", "tokens": "1"},
}


@pytest.mark.parametrize("fields", WRONG.values(), ids=WRONG)
async def test_a_form_with_a_mistake(tmp_path, fields):
    """A mistake is reported, the form keeps its values, and no key is created."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        page = await browser.get("/dashboard/keys")
        answer = await browser.fill(page, "/dashboard/keys", **{"name": "bob", **fields})
        assert answer.status == 400
        assert any(values.get("role") == "alert" for values in answer.all("p"))
        assert answer.forms["/dashboard/keys"]["name"] == fields.get(
            "name", "bob"
        ).strip() or "\n" in fields.get("name", "")
        assert not (tmp_path / "keys.json").exists()


async def test_two_keys_of_one_name(tmp_path):
    """A second key with a used name is rejected, and so is revoking an unknown key."""
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        page = await browser.get("/dashboard/keys")
        assert (await browser.fill(page, "/dashboard/keys", name="bob")).status == 201
        assert (await browser.fill(page, "/dashboard/keys", name="bob")).status == 409
        missing = await browser.post("/dashboard/keys/revoke", {"token": page.token, "id": "key_nobody"})
        assert missing.status == 409


async def test_a_locked_key_file(tmp_path, monkeypatch):
    """The wait for the lock of the key file ends with an error page."""
    monkeypatch.setattr(local_api_keys, "CHANGE_TIMEOUT", 0.05)
    async with dashboard_world(tmp_path) as it:
        browser = await log_in(it)
        page = await browser.get("/dashboard/keys")
        with (tmp_path / "keys.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            answer = await browser.fill(page, "/dashboard/keys", name="bob")
        assert answer.status == 503
        assert "locked by another process" in answer.text


async def test_tools_and_their_sandbox(tmp_path):
    """Each tool has its sandbox; without one, tools that require it are unavailable, with the reason."""

    async def none():
        return SandboxUnavailable("there is no bubblewrap here")

    tools = (
        ToolConfig(name="fenced", description="Held", argv=["/bin/true"]),
        ToolConfig(name="free", description="Not held", argv=["/bin/true"], sandbox="none", policy="always"),
    )
    async with dashboard_world(tmp_path, tools=tools, site=SystemSandbox(none)) as it:
        page = await (await log_in(it)).get("/dashboard/tools")
        assert "no sandbox is available: there is no bubblewrap here" in page.text
        assert "fenced Held unavailable" in page.text
        assert "free Not held available command without a sandbox always" in page.text
    async with dashboard_world(tmp_path) as it:
        page = await (await log_in(it)).get("/dashboard/tools")
        assert "This server runs no tools" in page.text
        assert "Not required by any tool" in page.text


async def test_a_login_on_the_dashboard(tmp_path):
    """The login shows code, link and QR code; approval logs in, and cancelling ends it."""
    emulator = Emulator(identity=IdentityServer(interval=0.01))
    emulator.identity.resource_url = "http://identity.test"
    urls = {
        f"oauth_{endpoint}_url": f"http://localhost/api/v1/oauth2/{path}"
        for endpoint, path in (("device", "device/code"), ("token", "token"))
    }
    me = AccountConfig("me", kind="oauth", credentials=str(tmp_path / "me"))
    async with dashboard_world(
        tmp_path,
        emulator=emulator,
        accounts=(me, *accounts("keyed")),
        oauth_hosts=["http://identity.test"],
        **urls,
    ) as it:
        browser = await log_in(it)
        path = "/dashboard/accounts/me/login"
        begin = await browser.get(path)
        assert "No login in progress" in begin.text
        for action in (f"{path}/cancel", path):
            page = await browser.get(path)
            assert (await browser.fill(page, path)).status == 303
            page = await browser.get(path)
            code = (await it.server.state.login_sessions.progress("me")).user_code
            assert code in page.text
            assert f"user_code={code}" in next(
                v["href"] for v in page.all("a") if v.get("target") == "_blank"
            )
            assert any(v.get("class") == "qr" for v in page.all("svg"))
            assert not any("style" in v for _, v in page.elements)
            assert "Waiting for approval" in (await browser.get(f"{path}/progress")).text
            if action.endswith("cancel"):
                assert (await browser.fill(page, action)).status == 303
                assert "was cancelled" in (await browser.get(path)).text
        assert it.emulator.identity.decide(code)
        await it.server.state.login_sessions._logins["me"].flow.finished.wait()
        done = await browser.get(f"{path}/progress")
        assert "Logged in." in done.text
        assert "data-over" in done.html
        await it.server.state.relay.accounts.accounts[0].source.credential()  # it reads the file on its own
        assert "token expires" in (await browser.get("/dashboard/accounts")).text
        assert (await browser.get("/dashboard/accounts/keyed/login")).status == 400
        assert (await browser.get("/dashboard/accounts/nobody/login")).status == 404


async def test_recipes_are_those_of_the_docs(tmp_path):
    """The recipes to copy equal docs/clients.md, with this server's address, model and key."""
    page = Path(__file__).parents[2].joinpath("docs/clients.md").read_text()
    found = connect.recipes()
    assert len(found) >= 6
    for recipe in found:
        section = page.partition(f"\n## {recipe.name}\n")[2].partition("\n## ")[0]
        assert recipe.text.strip() in section, recipe.name
        assert recipe.note.strip() in section
    async with dashboard_world(tmp_path, default_model="qwen-mine") as it:
        browser = await log_in(it)
        browser.host = "qproxy.example:8443"
        browser.scheme = "https"
        shown_page = await browser.get("/dashboard/connect")
        assert "OPENAI_BASE_URL=https://qproxy.example:8443/v1 OPENAI_API_KEY=any" in shown_page.text
        assert "qwen3.7-plus" not in "".join(re.findall(r"<pre.*?</pre>", shown_page.html, re.DOTALL))
        assert "127.0.0.1" not in shown_page.html
        key_file.create(tmp_path / "keys.json", name="x")
        shown_page = await browser.get("/dashboard/connect")
        assert "OPENAI_API_KEY=YOUR-KEY" in shown_page.text
        assert any(v.get("id") == "try-key" for v in shown_page.all("input"))


async def test_nothing_from_outside_becomes_html(tmp_path):
    """A script in any field of the ledger, the accounts, the keys, the tools and the address is shown as
    text."""
    script = EVIL
    one = AccountConfig("e" + script.replace("/", ""), base_url="http://one.test/v1", key="k", plan=script)

    tools = (ToolConfig(name="t", description=script, argv=["/bin/true"], sandbox="none"),)
    async with dashboard_world(
        tmp_path, accounts=(one,), tools=tools, default_model=script, models=[script]
    ) as it:
        browser = await log_in(it)
        (account,) = it.server.state.relay.accounts.accounts
        account.quota = account.last_error = script
        account.last_error_at = time.time()
        account.cooldowns[script] = account.cooldowns[""] = _cooldown(script)
        entry = record(
            1,
            key=script,
            endpoint=script,
            error=script,
            finish_reason=script,
            tools=[ToolRunRecord(script, True, 0.1)],
        )
        summary = entry.relay
        summary.model = summary.served_model = summary.account = summary.upstream_request_id = script
        summary.failures, summary.attempts, summary.rules = [FailedAttempt(script, script)], 2, (script,)
        summary.repairs[script] = 1
        it.server.state.ledger.record(entry)
        live = record(2, key=script, endpoint=script, ended_at=None)
        live.relay.model = live.relay.account = script
        it.server.state.counters.request_started(live)
        key_file.create(tmp_path / "keys.json", name=script, models=(script,))
        paths = [
            *STATIC,
            "/dashboard/live",
            "/dashboard/requests/req_1",
            f"/dashboard/requests?model={_quoted(script)}",
        ]
        for path in [
            *paths,
            f"/dashboard/login?next={_quoted(script)}",
            "/dashboard/requests/" + _quoted(script.replace("/", "")),
        ]:
            page = await browser.get(path)
            _check_escaped(page, path)
        out = Browser(it.app, host=script.replace(" ", ""))
        _check_escaped(await out.get(f"/dashboard/login?next={_quoted(script)}"), "login")
        form = await browser.get("/dashboard/keys")
        _check_escaped(
            await browser.fill(form, "/dashboard/keys", name=script[:60], rpm=script), "a form with a mistake"
        )
        _check_escaped(await browser.fill(form, "/dashboard/keys", name=script[:50]), "a key that was made")


def _cooldown(why):
    return Cooldown(trio.current_time() + 1000, trio.current_time(), why)


def _quoted(text):
    return quote(text, safe="")


def _check_escaped(page, where):
    assert page.status in (200, 201, 303, 400, 404), (where, page.status)
    assert "<script>" not in page.html, where
    assert "<img src=x" not in page.html, where
    for tag, values in page.elements:
        assert not any(name.startswith("on") for name in values), (where, tag, values)


@pytest.mark.parametrize("name", overview.PERIODS)
def test_periods_are_on_whole_slots(name):
    """Charts begin and end at round times, and the present is in the last slot."""
    period = overview.PERIODS[name]
    width = period.seconds / period.slots
    for now in (1_760_000_000.0, 1_760_000_000.25, 1_760_003_599.9):
        since, until = period.span(now)
        assert (since % width, until % width, until - since) == (0, 0, period.seconds)
        assert until - width <= now < until


async def test_the_path_of_no_page_is_a_page():
    """It has status 404, the message, and a way back; without a login it is the login page."""
    async with world(admin_key=ADMIN_KEY) as it:
        browser = Browser(it.app)
        assert (await browser.get("/dashboard/nope/x")).status == 303
        await browser.login()
        page = await browser.get("/dashboard/nope/x")
        assert page.status == 404
        assert "There is no page /dashboard/nope/x." in page.text
        assert page.headers["content-type"].startswith("text/html")
