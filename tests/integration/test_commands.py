"""qproxy runs via its command, Hypercorn's command, TLS with HTTP/2, and a Trio program."""

import atexit
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import h2.events
import pytest
import trio
import trustme

import qproxy
from qproxy import cli
from qproxy.backends.local import ledger_schema as schema
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig
from qproxy.emulator import Emulator, demo
from tests.helpers import HELLO, H1Client, H2Client
from tests.telemetry.test_metrics import samples

BODY = json.dumps(HELLO).encode()
JSON_HEADER = ("content-type", "application/json")
PATIENCE = 100
"""Seconds to wait for another process, however busy the machine is; a failing test takes this long."""
HOME = tempfile.mkdtemp(prefix="qproxy-test-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)


@asynccontextmanager
async def process(*command, stdout=subprocess.DEVNULL, inherited=(), **environ):
    """Run a child process and kill it by pid at the end; it inherits the descriptors `inherited`."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    child = await trio.lowlevel.open_process(
        [sys.executable, "-m", *command],
        env={**kept, "QPROXY_HOME": HOME, **environ},
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        pass_fds=inherited,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@asynccontextmanager
async def serving(*options, **environ):
    """Run `qproxy serve` on any free port; yield the process and the port that it prints."""
    command = ("qproxy", "serve", "--port", "0", *options)
    async with process(*command, stdout=subprocess.PIPE, **environ) as child, child.stdout:
        printed = b""
        with trio.fail_after(PATIENCE):
            while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)/v1", printed)):
                piece = await child.stdout.receive_some()
                assert piece, printed
                printed += piece
        yield child, int(found[1])


@asynccontextmanager
async def listening():
    """Listen on any free port with a socket for a process to inherit; yield the socket and its port.

    Clients may connect before the process runs: no other process can take the port meanwhile.
    """
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener.socket, listener.socket.getsockname()[1]


async def connected(port):
    """Return a client of a server that may still be starting."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                return H1Client(await trio.open_tcp_stream("127.0.0.1", port))
            except OSError:
                await trio.sleep(0.05)


async def ask(port):
    client = await connected(port)
    await client.send("POST", "/v1/chat/completions", BODY, [JSON_HEADER])
    status, body = await client.response()
    await client.aclose()
    return status, json.loads(body)


async def wait_for_exit(child):
    with trio.fail_after(PATIENCE):
        return await child.wait()


async def test_the_command():
    """`qproxy serve --upstream` serves an open server, and SIGTERM ends it with exit code 0."""
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        async with serving("--upstream", emulator.base_url) as (child, port):
            status, body = await ask(port)
            assert (status, body["object"]) == (200, "chat.completion")
            child.send_signal(signal.SIGTERM)
            assert await wait_for_exit(child) == 0
        nursery.cancel_scope.cancel()


async def count_requests(port):
    """Return the number of requests in /metrics."""
    client = await connected(port)
    await client.send("GET", "/metrics")
    status, text = await client.response()
    await client.aclose()
    assert status == 200
    return sum(count for name, count in samples(text).items() if name[0] == "qproxy_requests_total")


def worker_sockets():
    """Return the sockets on which the workers of one master query each other."""
    return list(Path(HOME, "workers").glob("*/*"))


async def expect_shared_counts(port, workers):
    """Behind one port any worker serves /metrics for all of them."""
    with trio.fail_after(PATIENCE):
        while True:
            if workers < 2 or len(worker_sockets()) == workers:
                break
            await trio.sleep(0.05)
    for _ in range(8):
        assert (await ask(port))[0] == 200
    assert [await count_requests(port) for _ in range(6)] == [9] * 6


@pytest.mark.parametrize("workers", ["0", "1", "2"])
async def test_hypercorns_command(workers, tmp_path):
    """`hypercorn qproxy:app --worker-class trio` reads the environment; workers share counters and one
    ledger, and a request survives SIGTERM."""
    ledger = str(tmp_path / "ledger.sqlite3")
    emulator = Emulator(delay=0.1)
    async with trio.open_nursery() as nursery, listening() as (listener, port):
        await nursery.start(emulator.serve)
        environ = {"QPROXY_UPSTREAM": emulator.base_url, "QPROXY_HOST": "127.0.0.1", "QPROXY_LEDGER": ledger}
        fd = listener.fileno()
        command = ("hypercorn", "qproxy:app", "--worker-class", "trio", "-w", workers, "-b", f"fd://{fd}")
        async with process(*command, inherited=(fd,), **environ) as child:
            assert (await ask(port))[0] == 200
            await expect_shared_counts(port, int(workers))
            client = await connected(port)
            await client.send(
                "POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}).encode(), [JSON_HEADER]
            )
            await client.event()
            child.send_signal(signal.SIGTERM)
            body = b""
            while data := getattr(await client.event(), "data", b""):
                body += data
            assert body.endswith(b"data: [DONE]\n\n")
            await client.aclose()
            await wait_for_exit(child)
        assert not worker_sockets()
        with closing(schema.open_for_reading(Path(ledger))) as kept:
            assert kept.execute("SELECT outcome, count(*) FROM requests GROUP BY 1").fetchall() == [
                ("ok", 10)
            ]
        nursery.cancel_scope.cancel()


async def test_in_a_trio_program():
    """nursery.start(qproxy.serve, ...) returns the bound address; its trigger stops it."""
    emulator, stop = Emulator(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        config = Config(port=0, accounts=(AccountConfig("emu", base_url=emulator.base_url, key="sk-x"),))
        async with trio.open_nursery() as inner:
            (url,) = await inner.start(partial(qproxy.serve, config, shutdown_trigger=stop.wait))
            assert (await ask(int(url.rpartition(":")[2])))[0] == 200
            stop.set()
        nursery.cancel_scope.cancel()


async def test_without_a_socket():
    """qproxy.in_process calls the app without a socket."""
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        config = Config(accounts=(AccountConfig("emu", base_url=emulator.base_url, key="sk-x"),))
        async with (
            qproxy.in_process(qproxy.create_app(config)) as client,
            client.request(
                "POST", "/v1/chat/completions", headers=[(b"content-type", b"application/json")], body=BODY
            ) as response,
        ):
            assert response.status == 200
            assert json.loads(await response.read())["object"] == "chat.completion"
        nursery.cancel_scope.cancel()


async def test_tls_with_http2(tmp_path):
    """With a certificate, ALPN selects HTTP/2, and HTTP/1.1 still works."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        account = AccountConfig("emu", base_url=emulator.base_url, key="sk-x")
        config = Config(port=0, certfile=str(cert), keyfile=str(key), accounts=(account,))
        (url,) = await nursery.start(partial(qproxy.serve, config))
        assert url.startswith("https://")
        port = int(url.rpartition(":")[2])
        for protocol in ("h2", "http/1.1"):
            context.set_alpn_protocols([protocol])
            tcp = await trio.open_tcp_stream("127.0.0.1", port)
            tls = trio.SSLStream(tcp, context, server_hostname="localhost")
            await tls.do_handshake()
            assert tls.selected_alpn_protocol() == protocol
            if protocol == "h2":
                client = H2Client(tls)
                await client.begin()
                await client.send("POST", "/v1/chat/completions", BODY, [JSON_HEADER])
                head = await client.event(h2.events.ResponseReceived)
                assert dict(head.headers)[b":status"] == b"200"
            else:
                plain = H1Client(tls)
                await plain.send("POST", "/v1/chat/completions", BODY, [JSON_HEADER])
                assert (await plain.response())[0] == 200
            await trio.aclose_forcefully(tls)
        nursery.cancel_scope.cancel()


async def test_http2_with_prior_knowledge():
    """The server accepts h2c over a real socket."""
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        config = Config(port=0, accounts=(AccountConfig("emu", base_url=emulator.base_url, key="sk-x"),))
        (url,) = await nursery.start(partial(qproxy.serve, config))
        client = H2Client(await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])))
        await client.begin()
        await client.send("POST", "/v1/chat/completions", BODY, [JSON_HEADER])
        assert dict((await client.event(h2.events.ResponseReceived)).headers)[b":status"] == b"200"
        await trio.aclose_forcefully(client.stream)
        nursery.cancel_scope.cancel()


def test_the_demo():
    """The demo shows a streamed tool call, its result, and the final text."""
    printed: list[str] = []
    assert demo.run(0, True, printed.append) == 0
    text = "\n".join(printed)
    assert 'get_weather({"city": "Hangzhou"})' in text
    assert "light rain" in text
    if not printed[-1].startswith(demo.NO_TOOL):
        assert "  The server ran a tool in its sandbox: calculate ok" in text
        assert "6.148914691236517e+18" in printed[-2]


def test_ctrl_c_during_the_demo():
    """A signal ends the demo at once with its exit code, not with an error of the request it was sending."""
    lines: list[str] = []

    def say(line):
        lines.append(line)
        if line.startswith("> "):
            signal.raise_signal(signal.SIGINT)

    assert demo.run(0, True, say) == demo.INTERRUPTED
    assert lines[2:] == ["Shutting down: waiting for in-flight requests. Press Ctrl+C again to quit now."]


def test_serving_without_an_account_names_the_setting(monkeypatch, capsys):
    """Serving without an account is a usage error that names DASHSCOPE_API_KEY."""
    for name in ("DASHSCOPE_API_KEY", "BAILIAN_CODING_PLAN_API_KEY", "BAILIAN_TOKEN_PLAN_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["serve"]) == 2
    assert "DASHSCOPE_API_KEY" in capsys.readouterr().err


def test_help_names_every_setting(capsys):
    """The settings table defines the options of `qproxy serve --help`."""
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    text = capsys.readouterr().out
    assert "--default-model" in text
    assert "--upstream-first-byte-timeout" in text
