"""Every way to serve is as safe as `qproxy serve`: real processes, with the same safeguards.

`WAYS` are the columns and `SAFEGUARDS` the rows of the table in docs/operations.md, which is compared with
them.
"""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import h2.events
import pytest
import trio
from hypercorn.config import Config as HypercornConfig

import qproxy
from qproxy.backends.api_keys import has_api_keys
from qproxy.backends.local import ledger_schema as schema
from qproxy.bootstrap import app
from qproxy.config import Config
from qproxy.config.accounts import AccountConfig, ConfigError
from qproxy.emulator import Emulator, ScriptedReply
from qproxy.emulator.faults import HANG, chunk
from qproxy.http_server import Worker
from qproxy.process import asgi
from tests.helpers import HELLO, H1Client, H2Client, accounts, frames
from tests.integration.test_commands import PATIENCE

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
PATH = "/v1/chat/completions"
JSON_HEADER = ("content-type", "application/json")
BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
HYPERCORN = ("-m", "hypercorn", "qproxy:app", "--worker-class", "trio")
PUBLIC = "0.0.0.0"


@dataclass
class Way:
    """A command that serves, and its exit code."""

    command: tuple[str, ...]
    workers: int = 0
    """Worker processes beside the started one."""
    bind: tuple[str, ...] = ()
    """The arguments that set the address; without them, the settings do."""
    failed: int | None = 1
    """The exit code of a failed start; None if Hypercorn's master makes it unpredictable."""


WAYS = {
    "`qproxy serve`": Way(("-m", "qproxy", "serve"), failed=2),
    "`qproxy serve --workers 2`": Way(("-m", "qproxy", "serve", "--workers", "2"), workers=2, failed=2),
    "`hypercorn -w 0`": Way((*HYPERCORN, "-w", "0"), bind=("-b", "{}")),
    "`hypercorn -w 1`": Way((*HYPERCORN, "-w", "1"), workers=1, bind=("-b", "{}"), failed=0),
    "`hypercorn -w 2`": Way((*HYPERCORN, "-w", "2"), workers=2, bind=("-b", "{}"), failed=None),
    "`qproxy.serve`": Way((str(EXAMPLES / "trio_program.py"),)),
    "`hypercorn.trio.serve`": Way((str(EXAMPLES / "trio_hypercorn.py"),), bind=("{}",)),
}
MASTERS = {name: way for name, way in WAYS.items() if way.workers}
SAME_SIGNALS = {
    "`hypercorn -w 2`": "`hypercorn -w 1`",  # Hypercorn's master
    "`hypercorn.trio.serve`": "`qproxy.serve`",  # the program's own receiver
}
"""Ways whose signals are received by the same code as another's."""
INTERRUPTED = {name: way for name, way in WAYS.items() if name not in SAME_SIGNALS}
COMMANDS = {name: way for name, way in WAYS.items() if way.bind and name.startswith("`hypercorn -w")}


class Process:
    """A process that serves, and its output."""

    def __init__(self, child):
        self._child = child
        self.pid = child.pid
        self.output = ""

    async def wait_for(self, pattern):
        """Read until the output matches, and return the match."""
        with trio.fail_after(PATIENCE):
            while not (found := re.search(pattern, self.output)):
                piece = await self._child.stdout.receive_some()
                assert piece, self.output
                self.output += piece.decode()
            return found

    async def end(self):
        """Read until the process and all its workers have exited; return the exit code."""
        with trio.fail_after(PATIENCE):
            while piece := await self._child.stdout.receive_some():
                self.output += piece.decode()
            return await self._child.wait()

    def signal(self, number):
        self._child.send_signal(number)

    def lines(self, *words):
        """Return the lines that contain all of these words."""
        return [line for line in self.output.splitlines() if all(word in line for word in words)]


@asynccontextmanager
async def start(way, home, host="127.0.0.1", *, inherited=(), bind=None, ignored=(), **settings):
    """Run the process, with its output, and without this machine's own settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QPROXY_", "DASHSCOPE_", "BAILIAN_")) and not name.lower().endswith("_proxy")
    }
    settings = {"QPROXY_HOME": str(home), **settings}
    if not way.bind:
        settings |= {"QPROXY_HOST": host, "QPROXY_PORT": "0"}
    arguments = [part.format(bind or f"{host}:0") for part in way.bind]

    def ignore():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    child = await trio.lowlevel.open_process(
        [sys.executable, *way.command, *arguments],
        env={**kept, **settings},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=inherited,
        preexec_fn=ignore,
    )
    try:
        yield Process(child)
    finally:
        if child.returncode is None:
            child.kill()
        with trio.CancelScope(shield=True):
            await child.wait()


@asynccontextmanager
async def upstream():
    emulator = Emulator()
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        yield emulator
        nursery.cancel_scope.cancel()


def body(stream):
    return json.dumps({**HELLO, "stream": stream}).encode()


class Requests:
    """A stream over HTTP/1.1, one over HTTP/2 and a whole request, none of which ends by itself."""

    def __init__(self, one, two, plain):
        self._one, self._two, self._plain = one, two, plain

    @classmethod
    async def begin(cls, emulator, port):
        emulator.script(*[ScriptedReply((BEGUN, HANG))] * 2, ScriptedReply((HANG,)))
        with trio.fail_after(PATIENCE):
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
        return cls(one, two, plain)

    async def check_errors(self):
        """Check that each request ends with the error of a shutdown, in its API's form."""
        with trio.fail_after(PATIENCE):
            text = b""
            while data := getattr(await self._one.event(), "data", b""):
                text += data
            assert code(frames(text.decode())[-1]) == "shutting_down"
            last = await self._two.event(h2.events.DataReceived)
            assert code(frames(last.data.decode())[-1]) == "shutting_down"
            assert await self._two.event(h2.events.StreamEnded) is not None
            status, answer = await self._plain.response()
            assert (status, code(answer)) == (503, "shutting_down")
        await self.close()

    async def close(self):
        for client in (self._one, self._two, self._plain):
            await trio.aclose_forcefully(client.stream)


def code(text):
    return json.loads(text)["error"]["code"]


def outcomes(ledger):
    with closing(schema.open_for_reading(ledger)) as kept:
        return dict(kept.execute("SELECT outcome, count(*) FROM requests GROUP BY 1").fetchall())


def environment(emulator, home):
    return {
        "QPROXY_UPSTREAM": emulator.base_url,
        "QPROXY_LEDGER": str(home / "ledger.sqlite3"),
        "QPROXY_GRACEFUL_TIMEOUT": "0.3",
    }


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_public_address_without_keys(way, tmp_path):
    """A public address without keys does not start, and the error has the remedy; the address is what is
    rejected."""
    settings = {"QPROXY_UPSTREAM": "http://127.0.0.1:9/v1"}
    with closing(socket.socket()) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")  # no other machine reaches it
        held.bind((PUBLIC, 0))
        inherited = (held.fileno(),) if way.bind else ()
        bind = f"fd://{held.fileno()}"
        async with start(way, tmp_path, PUBLIC, inherited=inherited, bind=bind, **settings) as process:
            assert (await process.end() == way.failed) or way.failed is None
    output = process.lines(f"Refusing to listen on {PUBLIC} without API keys", "qproxy keys create")
    assert set(Counter(output).values()) <= {1, way.workers}
    assert len(set(output)) == 1
    assert not process.lines("Running on")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_settings_that_cannot_serve(way, tmp_path):
    """Without an account the server does not start: one line has the remedy, or a program's exception."""
    async with start(way, tmp_path) as process:
        assert (await process.end() == way.failed) or way.failed is None
    assert len(set(process.lines("No account is configured", "DASHSCOPE_API_KEY"))) == 1
    assert not process.lines("Running on")
    if way.command[0] == "-m":
        assert not process.lines("Traceback")


async def check_requests_at_shutdown(way, number, tmp_path):
    async with upstream() as emulator:
        settings = environment(emulator, tmp_path)
        if way.bind:
            settings["QPROXY_PORT"] = "9"
        # A script's background job ignores SIGINT: then SIGTERM must still end it.
        ignored = (signal.SIGINT,) if number == signal.SIGTERM else ()
        async with start(way, tmp_path, ignored=ignored, **settings) as process:
            port = int((await process.wait_for(r"http://127\.0\.0\.1:(\d+)"))[1])
            requests = await Requests.begin(emulator, port)
            if way in COMMANDS.values():  # a worker that is still starting would exit without a line
                await process.wait_for(rf"(?s)(?:Running on .*?){{{max(1, way.workers)}}}")
            process.signal(number)
            await requests.check_errors()
            assert await process.end() == 0
    assert outcomes(tmp_path / "ledger.sqlite3") == {"shutting_down": 3}
    assert not process.lines("Traceback")
    if way in COMMANDS.values():
        assert len(process.lines("Running on")) == max(1, way.workers)
        assert len(process.lines("setting port is ignored", "--bind")) == 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_requests_at_shutdown(way, tmp_path):
    """After SIGTERM and graceful_timeout streams end with an error frame and whole requests with a 503, over
    both versions of HTTP; the ledger has the reason. Hypercorn's lines are logged once per process, and an
    ignored setting is named once."""
    await check_requests_at_shutdown(way, signal.SIGTERM, tmp_path)


@pytest.mark.parametrize("way", INTERRUPTED.values(), ids=INTERRUPTED.keys())
async def test_an_interrupt(way, tmp_path):
    """SIGINT ends requests like SIGTERM, in each piece of code that receives signals."""
    await check_requests_at_shutdown(way, signal.SIGINT, tmp_path)


@pytest.mark.parametrize("way", MASTERS.values(), ids=MASTERS.keys())
async def test_a_master_that_was_killed(way, tmp_path):
    """Workers of a killed master end their requests as at any shutdown, and exit; the port is free."""
    async with upstream() as emulator:
        async with start(way, tmp_path, **environment(emulator, tmp_path)) as process:
            port = int((await process.wait_for(r"http://127\.0\.0\.1:(\d+)"))[1])
            requests = await Requests.begin(emulator, port)
            process.signal(signal.SIGKILL)
            await requests.check_errors()
            assert await process.end() == -signal.SIGKILL
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", port)
    assert process.lines("exited, shutting down this worker")


@pytest.mark.parametrize("way", COMMANDS.values(), ids=COMMANDS.keys())
async def test_another_worker_class(way, tmp_path):
    """Hypercorn's other workers cannot serve qproxy: a line names the right one."""
    command = [part for part in way.command if part not in ("--worker-class", "trio")]
    settings = {"QPROXY_UPSTREAM": "http://127.0.0.1:9/v1"}
    async with start(Way(tuple(command), bind=way.bind), tmp_path, **settings) as process:
        assert (await process.end() == way.failed) or way.failed is None
    assert len(set(process.output.splitlines())) == 1
    assert "--worker-class trio" in process.output


async def test_a_second_signal(tmp_path):
    """Under Hypercorn's command without workers a second signal ends it at once."""
    async with upstream() as emulator:
        settings = {**environment(emulator, tmp_path), "QPROXY_GRACEFUL_TIMEOUT": "600"}
        async with start(COMMANDS["`hypercorn -w 0`"], tmp_path, **settings) as process:
            port = int((await process.wait_for(r"http://127\.0\.0\.1:(\d+)"))[1])
            requests = await Requests.begin(emulator, port)
            process.signal(signal.SIGTERM)
            await process.wait_for("Press Ctrl.C again to quit now")
            process.signal(signal.SIGTERM)
            assert await process.end() in (-signal.SIGTERM, 128 + signal.SIGTERM)
            await requests.close()


SAFEGUARDS = {
    "a public address without keys is not served": test_a_public_address_without_keys,
    "invalid settings are a one-line error, and the server does not start": test_settings_that_cannot_serve,
    "SIGTERM and SIGINT end every request with its API's error, after `graceful_timeout`": (
        test_requests_at_shutdown
    ),
    "workers end when their master was killed": test_a_master_that_was_killed,
    "a worker class other than Trio's is a one-line error, and the server does not start": (
        test_another_worker_class
    ),
}
EXPECTED = {
    test_a_public_address_without_keys: WAYS,
    test_settings_that_cannot_serve: WAYS,
    test_requests_at_shutdown: WAYS,
    test_a_master_that_was_killed: MASTERS,
    test_another_worker_class: COMMANDS,
}


def test_the_table_of_safeguards():
    """docs/operations.md has a row for each safeguard, a column for each way, and a yes for each tested
    one."""
    page = (EXAMPLES.parent / "operations.md").read_text().partition("\n## Safeguards in every server\n")[2]
    lines = [line for line in page.partition("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head[1:] == list(WAYS)
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    assert table == {
        name: {way: "yes" if way in EXPECTED[test] else "–" for way in WAYS}
        for name, test in SAFEGUARDS.items()
    }
    for test, ways in EXPECTED.items():
        (parameters,) = [mark.args[1] for mark in test.pytestmark if mark.args[0] == "way"]
        assert list(parameters) == list(ways.values())


async def test_without_a_socket(tmp_path):
    """The in-process example prints a response, or without an account the reason."""
    way = Way((str(EXAMPLES / "trio_in_process.py"), "Hello there"))
    async with upstream() as emulator:
        settings = {"QPROXY_UPSTREAM": emulator.base_url}
        async with start(way, tmp_path, **settings) as process:
            assert await process.end() == 0
        assert len(emulator.requests) == 1
        assert process.output.strip()
    async with start(way, tmp_path) as process:
        assert await process.end() == 1
    assert process.lines("the app did not start: No account is configured")


async def test_a_shutdown_without_a_socket(autojump_clock):
    """At the end of `in_process`, requests of other tasks get their time, and then an error frame."""
    emulator = Emulator()
    emulator.script(ScriptedReply((BEGUN, HANG)))
    answers = []
    async with trio.open_nursery() as nursery:

        async def connect(host, port):
            client_end, server_end = trio.testing.memory_stream_pair()
            nursery.start_soon(emulator.handle, server_end)
            return client_end

        async def ask(client, task_status):
            fields = [(b"content-type", b"application/json")]
            async with client.request("POST", PATH, headers=fields, body=body(True)) as response:
                task_status.started()
                answers.append((await response.read()).decode())

        server = app.build_server(Config(accounts=accounts("one"), graceful_timeout=7), connect=connect)
        async with qproxy.in_process(server.app()) as client:
            await nursery.start(ask, client)
            started_at = trio.current_time()
        assert trio.current_time() - started_at == pytest.approx(7)
        assert code(frames(answers[0])[-1]) == "shutting_down"
        nursery.cancel_scope.cancel()


class Server:
    """Calls an app and collects its messages."""

    def __init__(self, app):
        self._app = app
        self.sent = []

    async def call(self, kind="http", **scope):
        self.sent = []

        async def receive():
            return {"type": "lifespan.startup"}

        async def send(message):
            self.sent.append(message)

        await self._app({"type": kind, **scope}, receive, send)
        return self.sent


async def test_an_app_without_lifespan():
    """The app is built in its lifespan only: before it, after a failed one and after the last one a request
    is a 503, even once the settings are valid."""
    found: list[Config] = [Config()]
    app = asgi.LazyApp(lambda: found[0])
    server = Server(app)

    async def refused():
        head, answer = await server.call(method="POST", path=PATH, headers=[])
        assert (head["status"], code(answer["body"])) == (503, "not_started")
        (close,) = await server.call("websocket", path="/v1/realtime", headers=[])
        assert (close["type"], close["code"]) == ("websocket.close", 1013)

    await refused()
    (failed,) = await server.call("lifespan")
    assert failed["type"] == "lifespan.startup.failed"
    assert "No account is configured" in failed["message"]
    assert "\n" not in failed["message"]
    found[0] = Config(accounts=accounts("one"), store_responses=False)
    await refused()
    for _ in range(2):
        async with qproxy.in_process(app) as client:
            async with client.request("GET", "/livez") as response:
                assert response.status == 200
            (failed,) = await server.call("lifespan")
            assert "create_app" in failed["message"]
        await refused()


async def test_an_exception_at_the_start_is_reported(caplog):
    """An unexpected exception is a failed start too, with its traceback in the log."""

    def broken():
        raise ZeroDivisionError("that was not foreseen")

    (failed,) = await Server(asgi.LazyApp(broken)).call("lifespan")
    assert failed["message"] == "ZeroDivisionError: that was not foreseen; see the log for the traceback"
    assert caplog.records[-1].exc_info


def run_without_trio(coroutine):
    """Return the result of a coroutine that never waits."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    return done.value.value


def test_without_trio():
    """Under another event loop the lifespan fails and a request is rejected, both with a message."""
    server = Server(asgi.LazyApp())
    (failed,) = run_without_trio(server.call("lifespan"))
    assert "--worker-class trio" in failed["message"]
    head, _ = run_without_trio(server.call(method="POST", path=PATH, headers=[]))
    assert head["status"] == 503


@pytest.mark.parametrize(
    ("bind", "refused"),
    [
        (["127.0.0.1:0"], None),
        (["localhost:0", "[::1]:0", "unix:/nowhere/socket"], None),
        (["127.0.0.1:0", "0.0.0.0:0"], "0.0.0.0"),
        (["[::]:0"], "::"),
        (["192.0.2.1"], "192.0.2.1"),
        ([":8000"], ":8000"),
        (["a.test:80"], "a.test"),
    ],
)
def test_addresses_of_a_program(bind, refused):
    """The first address that other machines reach is rejected, of all that Hypercorn is given."""
    hypercorn_config = HypercornConfig()
    hypercorn_config.bind, hypercorn_config.insecure_bind = bind[:1], bind[1:]
    config, worker = Config(accounts=accounts("one")), Worker(hypercorn_config, None)

    def check():
        for host in worker.hosts():
            config.check_address(host, has_api_keys)

    if refused is None:
        check()
    else:
        with pytest.raises(ConfigError, match=re.escape(f"Refusing to listen on {refused} without")):
            check()


def test_the_settings_set_the_limits(caplog):
    """The app's settings apply; different ones of Hypercorn are named, its defaults are not."""
    caplog.set_level(logging.WARNING)
    config = HypercornConfig()
    config.keep_alive_timeout = 7
    Worker(config, None).configure(keep_alive_timeout=60.0, graceful_timeout=32.0)
    assert (config.keep_alive_timeout, config.graceful_timeout) == (60, 32)
    assert [record.getMessage() for record in caplog.records] == [
        "Hypercorn setting keep_alive_timeout=7 ignored, using qproxy's 60.0"
    ]


def test_unused_settings_are_named():
    """Each setting that the outer server has itself is named when it is set."""
    config = Config(port=9, workers=3, certfile="x", keyfile="y", host="::1")
    assert [line.split()[1] for line in asgi.unused_settings(config)] == list(asgi.HYPERCORN_OPTIONS)
    assert asgi.unused_settings(Config(accounts=(AccountConfig("one"),))) == []
