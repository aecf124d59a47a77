"""A running server exposes its metrics, health and log, with access control, over several workers."""

import json
import logging
import platform
import socket
import time

import pytest
import trio

from qproxy.access.api_keys import Quota
from qproxy.config import Config
from qproxy.emulator import FAULTS, Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import DONE, chunk
from qproxy.limits.circuit_breaker import THRESHOLD
from qproxy.process.log_setup import configure_logging
from qproxy.server.health import health
from qproxy.telemetry.peers import Peers
from qproxy.version import VERSION
from qproxy.wire.errors import RetryHint, UpstreamError
from tests.auth.helpers import signed
from tests.helpers import HELLO, MODEL, accounts, world
from tests.telemetry.test_metrics import samples, value

BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
ADMIN = [(b"authorization", b"Bearer the-admins")]


async def metrics_of(it, headers=()):
    async with it.client.request("GET", "/metrics", headers=headers) as response:
        return response.status, await response.read()


async def numbers(it):
    status, text = await metrics_of(it, ADMIN)
    assert status == 200
    return samples(text)


async def test_a_request_is_counted():
    """/metrics counts requests, responses, tokens and held resources, but not the scrape itself."""
    async with world(admin_key="the-admins") as it:
        await it.post(HELLO)
        await it.post({**HELLO, "model": "made-up"})
        await it.stream(HELLO)
        for _ in range(2):
            found = await numbers(it)
        labels = {"endpoint": "/chat/completions", "status": "200", "outcome": "ok"}
        assert value(found, "qproxy_requests_total", model=MODEL, **labels) == 2
        unknown = {"endpoint": "/chat/completions", "status": "404", "outcome": "error"}
        assert value(found, "qproxy_requests_total", model="other", **unknown) == 1
        assert not [name for name in found if "/metrics" in str(name)]
        assert value(found, "qproxy_health", state="ready") == 1
        assert value(found, "qproxy_account_state", account="one", state="ready") == 1
        assert value(found, "qproxy_upstream_connections", state="busy") == 0
        assert value(found, "qproxy_upstream_connections_made_total") == 1
        assert [value(found, "qproxy_requests_waiting", queue=queue) for queue in ("server", "account")] == [
            0,
            0,
        ]
        assert value(found, "qproxy_tokens_total", model=MODEL, kind="prompt") > 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
async def test_a_client_that_leaves_early_is_charged_for_its_prompt(path, autojump_clock):
    """The upstream has the prompt before its response starts, so leaving then does not evade a budget."""
    text, model = "word " * 400, MODEL if "chat" in path else "text-embedding-v4"
    body = {"model": model, "input": text, "messages": [{"role": "user", "content": text}]}
    async with world(admin_key="the-admins") as it:
        it.emulator.script(ScriptedReply((PauseStep(1000),)))
        with trio.move_on_after(1):
            await it.post(body, path)
        found = await numbers(it)
    tokens = [value for name, value in found.items() if name[0] == "qproxy_tokens_total"]
    assert 450 < sum(tokens) < 550


async def test_metrics_for_operators(tmp_path):
    """Metrics have versions, the process, an account's last success and remaining budgets, not the
    dashboard."""
    settings = {"keys_file": str(tmp_path / "keys.json"), "ledger": str(tmp_path / "ledger")}
    async with world(admin_key="the-admins", models=["in-the-settings"], **settings) as it:
        store = it.server.state.authentication.api_keys
        _, secret = await store.create(name="bob", budgets=(Quota("day", 10, None),))
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        assert not [name for name in await numbers(it) if name[0].startswith("qproxy_account_last_success")]
        it.emulator.script(ScriptedReply((BEGUN, chunk({}, "stop") + DONE)))
        assert (await it.post({**HELLO, "model": "served-though-not-listed"}, headers=headers))[0] == 200
        assert (await it.post({**HELLO, "model": "in-the-settings"}, headers=headers))[0] == 404
        async with it.client.request("GET", "/dashboard/login") as response:
            await response.read()
        found = await numbers(it)
    assert value(found, "qproxy_build_info", version=VERSION, python=platform.python_version()) == 1
    assert (
        abs(value(found, "qproxy_account_last_success_timestamp_seconds", account="one") - time.time()) < 60
    )
    assert value(found, "qproxy_key_budget_remaining", key="bob", window="day", unit="requests") == 8
    assert found[("process_resident_memory_bytes",)] > 1e6
    models = {dict(labels).get("model") for name, *labels in found if name == "qproxy_requests_total"}
    assert models == {"served-though-not-listed", "in-the-settings"}
    assert value(found, "qproxy_unpriced_requests_total", model="served-though-not-listed") == 1
    assert not [labels for labels in found if "dashboard" in str(labels)]


async def test_requests_in_flight():
    """A request in flight holds an account and a socket, and releases all of it."""
    async with world(admin_key="the-admins") as it:
        it.emulator.script(ScriptedReply((BEGUN, PauseStep(1000))))
        body = json.dumps({**HELLO, "stream": True}).encode()
        async with it.client.request("POST", "/v1/chat/completions", body=body) as response:
            await response.receive()
            found = await numbers(it)
            assert value(found, "qproxy_requests_in_flight") == 1
            assert value(found, "qproxy_account_requests_in_flight", account="one") == 1
            assert value(found, "qproxy_requests_admitted") == 1
            assert value(found, "qproxy_upstream_connections", state="busy") == 1
        found = await numbers(it)
        assert value(found, "qproxy_upstream_connections", state="busy") == 0
        disconnected = {
            "endpoint": "/chat/completions",
            "model": MODEL,
            "status": "200",
            "outcome": "client_disconnected",
        }
        assert value(found, "qproxy_requests_total", **disconnected) == 1


async def test_failed_attempts_are_counted(autojump_clock):
    """A failed attempt is an upstream error of its account, and the next one a retry."""
    async with world(admin_key="the-admins", accounts=accounts("one", "two")) as it:
        it.emulator.script(FAULTS["fault-500"][1])
        status, _, _ = await it.post(HELLO)
        assert status == 200
        found = await numbers(it)
        assert value(found, "qproxy_retries_total", endpoint="/chat/completions") == 1
        errors = {name: count for name, count in found.items() if name[0] == "qproxy_upstream_errors_total"}
        assert sum(errors.values()) == 1


async def test_a_stream_truncated_by_the_upstream():
    """A truncated stream counts as upstream_truncated, separate from a complete one."""
    async with world() as it:
        it.emulator.script(FAULTS["fault-end"][1])
        await it.stream(HELLO)
        await it.stream(HELLO)
        assert it.server.state.counters.outcomes == {"upstream_truncated": 1, "ok": 1}


ACCESS = {
    "a stranger": ("admin", [], 401),
    "a client": ("admin", [(b"authorization", b"Bearer the-clients")], 401),
    "the admin": ("admin", ADMIN, 200),
    "a client, where clients may": ("key", [(b"authorization", b"Bearer the-clients")], 200),
    "a stranger, where clients may": ("key", [], 401),
    "a stranger, where anybody may": ("open", [], 200),
}


@pytest.mark.parametrize(("access", "headers", "status"), ACCESS.values(), ids=ACCESS)
async def test_access_to_the_metrics(access, headers, status):
    """metrics_access opens them to the admin, any client or everyone."""
    settings = {"metrics_access": access, "admin_key": "the-admins", "api_keys": ["the-clients"]}
    async with world(**settings) as it:
        assert (await metrics_of(it, headers))[0] == status


@pytest.mark.parametrize(
    ("states", "draining", "state"),
    [
        (["ready", "cooling_down"], False, "ready"),
        (["at_capacity"], False, "ready"),
        (["cooling_down", "failing"], False, "ready"),
        (["rate_limited"], False, "ready"),
        (["unknown", "failing"], False, "ready"),
        (["failing", "failing"], False, "unusable"),
        (["login_needed"], False, "unusable"),
        ([], False, "unusable"),
        (["ready"], True, "draining"),
    ],
)
def test_health(states, draining, state):
    """A server is ready while an account can serve, and draining whatever the accounts' state."""
    found = health(states, draining=draining)
    assert (found.state, found.ready) == (state, state == "ready")


def test_without_a_probe_the_server_stays_ready():
    """Failing accounts make a server unready only if a probe will notice their recovery."""
    assert health(["failing"], draining=False, failing_are_down=False).ready
    assert not health(["failing", "login_needed"], draining=False, failing_are_down=True).ready
    assert not health([], draining=False, failing_are_down=False).ready


async def test_readyz_follows_the_accounts():
    """/readyz is 503 only while all accounts are failing, and counts them by state; /livez checks none."""
    async with world(accounts=accounts("one", "two"), probe_interval=60) as it:
        assert await it.get("/readyz") == (200, {"status": "ok", "accounts": {"unknown": 2}, "usable": 0})
        for account in it.server.state.relay.accounts.accounts:
            account.record_failure(UpstreamError("x", code="insufficient_quota"), trio.current_time())
        assert await it.get("/readyz") == (
            200,
            {"status": "ok", "accounts": {"cooling_down": 2}, "usable": 0},
        )
        for account in it.server.state.relay.accounts.accounts:
            for _ in range(THRESHOLD):
                account.record_failure(UpstreamError("x", retry=RetryHint.SOON), trio.current_time(), "m")
        assert await it.get("/readyz") == (
            503,
            {"status": "unusable", "accounts": {"failing": 2}, "usable": 0},
        )
        assert await it.get("/livez") == (200, {"status": "ok"})
        it.server.state.in_flight.draining = True
        assert (await it.get("/readyz"))[1]["status"] == "draining"


async def test_an_account_that_is_not_logged_in(tmp_path):
    """An account without a valid token is not usable, and /metrics has its refreshes."""
    async with signed(tmp_path) as identity, world(admin_key="the-admins", accounts=accounts("me")) as it:
        (account,) = it.server.state.relay.accounts.accounts
        account.source = identity.source(keep=False)
        status, body = await it.get("/readyz")
        assert (status, body["accounts"]) == (503, {"login_needed": 1})
        found = await numbers(it)
        assert value(found, "qproxy_account_state", account="me", state="login_needed") == 1
        assert value(found, "qproxy_token_refreshes_total", account="me") == 0
        assert not [name for name in found if "qproxy_token_expiry_timestamp_seconds" in str(name)]


async def test_peers_respond_to_each_other(tmp_path):
    """Each worker gets its peers' responses; a killed or silent peer costs nothing."""
    first, second = Peers(tmp_path / "7"), Peers(tmp_path / "7")
    second._socket_path = tmp_path / "7" / "other"  # two workers of one process
    async with trio.open_nursery() as nursery:
        await nursery.start(first.listen, {})
        await nursery.start(second.listen, {"metrics": lambda: b"[2]"})
        dead = tmp_path / "7" / "dead"
        with socket.socket(socket.AF_UNIX) as dead_listener:
            dead_listener.bind(str(dead))
        assert await first.query("metrics") == [b"[2]"]
        assert not dead.exists()
        assert await first.query("nonsense") == [b""]
        assert (tmp_path / "7").stat().st_mode & 0o777 == 0o700
        nursery.cancel_scope.cancel()
    assert not (tmp_path / "7").exists()


async def test_no_path_for_a_socket(tmp_path, caplog):
    """A path that is too long for a socket is a warning, and the worker keeps serving."""
    peers = Peers(tmp_path / ("x" * 120))
    await peers.listen({})
    assert "covers this worker only" in caplog.text
    assert await peers.query("metrics") == []  # nor is there a directory


SECRETS = ("sk-the-clients-key", "opaque-account-key", "admin-opaque-key")


@pytest.mark.parametrize("log_format", ["json", "text"])
async def test_no_secret_and_no_prompt_is_logged(log_format, capsys):
    """At the finest level, with tracebacks, no line has a key, a token or a prompt."""
    before = list(logging.getLogger().handlers), logging.getLogger().level
    settings = {
        "accounts": accounts("one"),
        "api_keys": [SECRETS[0]],
        "admin_key": SECRETS[2],
        "log_level": "debug",
        "log_format": log_format,
    }
    configure_logging(Config(**settings))
    try:
        async with world(**settings) as it:
            headers = [(b"authorization", f"Bearer {SECRETS[0]}".encode())]
            await it.post(HELLO, headers=headers)
            it.emulator.script(ScriptedReply((BEGUN,)))
            await it.post(HELLO, headers=headers)
        logging.getLogger("anybody").error("the key of one is %s", "sk-test-key")
        try:
            raise ValueError(f"refused {SECRETS[2]}")
        except ValueError:
            logging.getLogger("anybody").exception("fault")
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    lines = capsys.readouterr().err
    assert "/v1/chat/completions" in lines
    assert "[hidden]" in lines
    for secret in (*SECRETS, "sk-test-key", "Hello there"):
        assert secret not in lines


async def test_bodies_are_logged_only_on_request(caplog):
    """log_bodies logs requests and responses, streamed or not, without secrets."""
    caplog.set_level(logging.INFO)
    talk = {**HELLO, "messages": [{"role": "user", "content": "my key is sk-abcdefghijkl"}]}
    async with world(log_bodies=True) as it:
        await it.post(talk)
        await it.stream(talk)
    bodies = [line.fields["body"] for line in caplog.records if line.name == "qproxy.body"]
    assert len(bodies) == 4
    assert '"my key is [hidden]"' in bodies[0]
    assert "chat.completion" in bodies[1]
    assert bodies[3].endswith("data: [DONE]\n\n")
    caplog.clear()
    async with world() as it:
        await it.post(talk)
    assert not [line for line in caplog.records if line.name == "qproxy.body"]


async def test_no_part_of_a_streamed_secret_is_logged(caplog):
    """A secret split over the chunks of a call's arguments is hidden."""
    caplog.set_level(logging.INFO)
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"pass'}}
    pieces = [
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        for piece in ('word": "qx9', "zk4-vv", '-w7", "a": 1}')
    ]
    emulator = Emulator()
    emulator.script(ScriptedReply((chunk({"tool_calls": [call]}), *pieces, chunk({}, "tool_calls") + DONE)))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    async with world(log_bodies=True, emulator=emulator) as it:
        await it.stream({**HELLO, "tools": [tool]})
    body = [line.fields["body"] for line in caplog.records if line.name == "qproxy.body"][1]
    assert not any(piece in body for piece in ("qx9", "zk4", "-w7"))
    assert "[hidden]" in body
