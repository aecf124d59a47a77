"""Shutdown and reload of a running server: drain, second signal, and a new configuration without a lost
stream."""

import json
import signal
from dataclasses import replace
from functools import partial

import h2.events
import trio

import qproxy
from qproxy import cli
from qproxy.bootstrap.app import build_server
from qproxy.bootstrap.reload import RESTART_REQUIRED, rebuild_state
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.emulator import Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import HANG, chunk
from qproxy.process.reload import Reloader
from qproxy.system import pidfile
from qproxy.system.pidfile import PidFile
from tests.helpers import HELLO, H1Client, H2Client, frames
from tests.integration.test_commands import connected, process, serving, wait_for_exit

JSON_HEADER = ("content-type", "application/json")
PATH = "/v1/chat/completions"
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})


def body(stream):
    return json.dumps({**HELLO, "stream": stream}).encode()


async def test_graceful_timeout_ends_requests():
    """After graceful_timeout a stream ends with an error frame, a plain request with a 503, over both
    versions of HTTP."""
    emulator, stop = Emulator(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        account = AccountConfig("emu", base_url=emulator.base_url, key="sk-x")
        config = Config(port=0, graceful_timeout=0.2, accounts=(account,))
        served = trio.Event()

        async def serve(task_status):
            await qproxy.serve(config, shutdown_trigger=stop.wait, task_status=task_status)
            served.set()

        (url,) = await nursery.start(serve)
        port = int(url.rpartition(":")[2])
        emulator.script(*[ScriptedReply((BEGUN, HANG))] * 2, ScriptedReply((HANG,)))
        one = H1Client(await trio.open_tcp_stream("127.0.0.1", port))
        await one.send("POST", PATH, body(True), [JSON_HEADER])
        assert (await one.event()).status_code == 200
        two = H2Client(await trio.open_tcp_stream("127.0.0.1", port))
        await two.begin()
        await two.send("POST", PATH, body(True), [JSON_HEADER])
        await two.event(h2.events.DataReceived)
        plain = H1Client(await trio.open_tcp_stream("127.0.0.1", port))
        await plain.send("POST", PATH, body(False), [JSON_HEADER])
        while len(emulator.requests) < 3:  # noqa: ASYNC110 - the emulator has no event for it
            await trio.sleep(0.01)
        stop.set()
        text = b""
        while data := getattr(await one.event(), "data", b""):
            text += data
        assert json.loads(frames(text.decode())[-1])["error"]["code"] == "shutting_down"
        last = await two.event(h2.events.DataReceived)
        assert json.loads(frames(last.data.decode())[-1])["error"]["code"] == "shutting_down"
        assert await two.event(h2.events.StreamEnded) is not None
        status, answer = await plain.response()
        assert (status, json.loads(answer)["error"]["code"]) == (503, "shutting_down")
        await served.wait()
        for client in (one, two, plain):
            await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


async def listens(port):
    try:
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except OSError:
        return False
    return True


async def test_a_second_signal_quits():
    """The first signal lets requests finish, the second quits with the code of the signal."""
    emulator = Emulator()
    emulator.script(ScriptedReply((BEGUN, HANG)))
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        async with serving("--upstream", emulator.base_url) as (child, port):
            client = await connected(port)
            await client.send("POST", PATH, body(True), [JSON_HEADER])
            assert (await client.event()).status_code == 200
            child.send_signal(signal.SIGTERM)
            while await listens(port):  # noqa: ASYNC110 - another process
                await trio.sleep(0.02)
            assert child.returncode is None
            child.send_signal(signal.SIGTERM)
            assert await wait_for_exit(child) == 128 + signal.SIGTERM
            await client.aclose()
        nursery.cancel_scope.cancel()


SETTINGS = """
{extra}
[[accounts]]
name = "one"
kind = "openai_compatible"
base_url = "{url}"
"""


async def test_reloading_a_server(tmp_path, monkeypatch, capsys):
    """`qproxy reload` applies a new configuration without a dropped stream; an invalid file changes nothing
    and is reported."""
    emulator, port = Emulator(), 0
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    path = tmp_path / "qproxy.toml"

    async def reload():
        code = await trio.to_thread.run_sync(cli.main, ["reload", "--port", str(port)])
        output = capsys.readouterr()
        return code, output.out + output.err

    def write(extra):
        path.write_text(SETTINGS.format(extra=extra, url=emulator.base_url))

    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        write("")
        async with serving("--config", str(path), QPROXY_HOME=str(tmp_path)) as (child, port):
            client = await connected(port)
            emulator.script(
                ScriptedReply((BEGUN, PauseStep(1), chunk({"content": "lo"}, "stop"), b"data: [DONE]\n\n"))
            )
            await client.send("POST", PATH, body(True), [JSON_HEADER])
            assert (await client.event()).status_code == 200
            write('api_keys = ["secret"]\nport = 1')
            code, output = await reload()
            assert code == 0
            assert "changed: api_keys" in output
            other = await connected(port)
            await other.send("POST", PATH, body(False), [JSON_HEADER])
            assert (await other.response())[0] == 401
            await other.aclose()
            for bad in ("api_kees = []", "idle_timeout = 'x'", "[", 'host = "0.0.0.0"\nkeys_file = "/"'):
                write(bad)
                code, output = await reload()
                assert code == 1, output
                assert "qproxy.toml" in output or "keys_file" in output or "/" in output
            other = await connected(port)
            await other.send("POST", PATH, body(False), [JSON_HEADER])
            assert (await other.response())[0] == 401
            await other.aclose()
            text = b""
            while data := getattr(await client.event(), "data", b""):
                text += data
            assert text.endswith(b"data: [DONE]\n\n")
            await client.aclose()
            child.send_signal(signal.SIGTERM)
            assert await wait_for_exit(child) == 0
        nursery.cancel_scope.cancel()
    code, output = await reload()
    assert (code, "No qproxy server is running" in output) == (1, True)


async def test_an_address_in_use(capsys, monkeypatch, tmp_path):
    """A used address ends the command with exit code 1."""
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    command = ("qproxy", "serve", "--port", str(port), "--upstream", "http://127.0.0.1:1/v1")
    async with process(*command) as child:
        assert await wait_for_exit(child) == 1
    await listener.aclose()


def settings(*names, **changes):
    entries = [
        AccountConfig(n, base_url=f"http://{n}.test/v1", key="sk-" + changes.pop(n, "x")) for n in names
    ]
    return Config(accounts=tuple(entries), **changes)


async def test_keeps_unchanged_parts():
    """Accounts keep their state, and the pool its connections, unless their own settings changed."""
    before = settings("one", "two", "three")
    server = build_server(before)
    one, two, _ = server.state.relay.accounts.accounts
    one.requests, one.in_flight = 99, 3
    accounts, transport, admission = (
        server.state.relay.accounts,
        server.state.relay.transport,
        server.state.concurrency,
    )
    after = settings("two", "one", "four", two="other", api_keys=["k"])
    await server.reconfigure(rebuild_state(after, before, server.state))
    assert server.state.relay.accounts is accounts
    assert [account.name for account in accounts.accounts] == ["two", "one", "four"]
    assert accounts.accounts[1] is one
    assert accounts.accounts[0] is not two
    assert (server.state.relay.transport, server.state.concurrency) == (transport, admission)
    assert server.state.authentication.api_keys.required()
    limiter, sent = server.state.client_keys, [(b"x-forwarded-for", b"192.0.2.1")]
    assert server.state.trusted_proxies.client_address("127.0.0.1", sent) == "127.0.0.1"
    again = settings(
        "two",
        "one",
        "four",
        two="other",
        upstream_read_timeout=9.0,
        max_requests=7,
        trusted_proxies=["127.0.0.1"],
    )
    await server.reconfigure(rebuild_state(again, after, server.state))
    assert server.state.relay.transport is not transport
    assert server.state.relay.transport.limits.idle_timeout == 9.0
    assert server.state.concurrency.slots == 7
    assert server.state.trusted_proxies.client_address("127.0.0.1", sent) == "192.0.2.1"
    assert server.state.client_keys is limiter
    assert accounts.accounts[1] is one


async def test_rejects_an_invalid_configuration(caplog):
    """An invalid configuration is rejected before anything is changed."""
    before = settings("one")
    server = build_server(before)
    state = server.state
    for bad in (
        settings(),
        settings("one", host="0.0.0.0"),
        settings("one", rules={"nope": True}),
        settings("one", ca_bundle="/nope"),
        settings("one", admin_key="short"),
        settings("one", trusted_proxies=["proxy.test"]),
    ):
        reloader = Reloader(server, before, partial(replace, bad))
        applied, message = await reloader.reload()
        assert not applied
        assert message in caplog.text
    assert server.state is state

    def unreadable():
        raise ConfigError("qproxy.toml: gone")

    assert await Reloader(server, before, unreadable).reload() == (False, "qproxy.toml: gone")


async def test_names_settings_that_require_a_restart():
    """A changed setting that only applies at the start is named in the message."""
    before = settings("one")
    changed = settings("one", port=1, default_model="m")
    _, message = await Reloader(build_server(before), before, lambda: changed).reload()
    assert message == "reloaded; changed: default_model; a restart is required for port"


def test_the_pid_file(tmp_path):
    """The file counts only while its server runs and holds the lock; there is one per port."""
    home = tmp_path / "home"
    with PidFile(home, 80) as held:
        state = pidfile._state(held.path)
        assert state is not None
        assert state["reloads"] == 0
        held.record_reload(True, "x")
        with PidFile(home, 80):
            pass
        state = pidfile._state(held.path)
        assert (state or {})["message"] == "x"
    assert pidfile._state(home / "serving-80.json") is None
    (home / "serving-81.json").write_text('{"pid": 1, "reloads": 0}')
    assert pidfile.request_reload(home, 81)[0] is False
    assert pidfile.request_reload(home, None) == (
        False,
        f"No server is running with this data directory ({home}).",
    )
    with PidFile(home, 82), PidFile(home, 83):
        text = (
            f"Servers are running on ports 82, 83 with this data directory ({home}): choose one with --port."
        )
        assert pidfile.request_reload(home, None) == (False, text)
    (tmp_path / "file").write_text("")
    with PidFile(tmp_path / "file", 80) as held:
        held.record_reload(True, "no file")


def test_restart_required_names_settings():
    """RESTART_REQUIRED only names settings that exist."""
    assert set(Config.__dataclass_fields__) >= RESTART_REQUIRED
