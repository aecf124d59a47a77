"""`qproxy serve --workers 2` with real processes: signals, reloads and shared state."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from qproxy import cli
from qproxy.backends.local import key_file
from qproxy.emulator import Emulator, PauseStep, ScriptedReply
from qproxy.emulator.faults import HANG, chunk
from tests.helpers import HELLO
from tests.integration.test_commands import (
    BODY,
    JSON_HEADER,
    PATIENCE,
    ask,
    connected,
    count_requests,
    serving,
    wait_for_exit,
)
from tests.process.test_reload import listens

BEGUN = chunk({"role": "assistant", "content": ""}) + chunk({"content": "Hel"})
SLOW = ScriptedReply((BEGUN, PauseStep(1), chunk({"content": "lo"}, "stop"), b"data: [DONE]\n\n"))
SETTINGS = """
{extra}
[[accounts]]
name = "one"
kind = "openai_compatible"
base_url = "{url}"
"""


def children(pid):
    """Return the process IDs of a supervisor's workers."""
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def owner(client, pids):
    """Return which of these processes a client is connected to."""
    port = client.stream.socket.getsockname()[1]
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = row.split()
        if words[2].endswith(f":{port:04X}"):
            wanted = f"socket:[{words[9]}]"
    for pid in pids:
        with suppress(FileNotFoundError):  # a descriptor that was closed meanwhile
            if any(os.readlink(fd) == wanted for fd in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
    return None


@asynccontextmanager
async def notifications(path):
    """Yield a function that waits for the next notification to systemd."""
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as listening:
        await listening.bind(str(path))

        async def next_message():
            with trio.fail_after(PATIENCE):
                return await listening.recv(100)

        yield next_message


async def read_rest(client):
    """Return the rest of a stream."""
    body = b""
    with trio.fail_after(PATIENCE):
        while data := getattr(await client.event(), "data", b""):
            body += data
    await client.aclose()
    return body


async def start_stream(port):
    client = await connected(port)
    await client.send(
        "POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}).encode(), [JSON_HEADER]
    )
    assert (await client.event()).status_code == 200
    return client


def ready_workers(home, pid, without=()):
    """Return the two workers of a supervisor if both are ready and neither is in `without`, otherwise []."""
    now = children(pid)
    sockets = {path.name for path in Path(home, "workers", str(pid)).glob("*")}
    listen = {str(one) for one in now} <= sockets
    return now if len(now) == 2 and listen and not set(now) & set(without) else []


async def until(condition, *arguments):
    """Wait until a condition of other processes is true and return its value."""
    with trio.fail_after(PATIENCE):
        while not (found := condition(*arguments)):  # noqa: ASYNC110 - other processes
            await trio.sleep(0.02)
    return found


def have_exited(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def test_crash_reload_and_shutdown_of_two_workers(tmp_path, monkeypatch, capsys):
    """A killed worker is replaced while the other's stream continues; metrics cover all workers; a reload
    reaches all, an invalid one none; SIGTERM drains streams and exits with code 0."""
    emulator = Emulator()
    monkeypatch.setenv("QPROXY_HOME", str(tmp_path))
    path = tmp_path / "qproxy.toml"

    async def reload(port, extra):
        path.write_text(SETTINGS.format(extra=extra, url=emulator.base_url))
        code = await trio.to_thread.run_sync(cli.main, ["reload", "--port", str(port)])
        return code, capsys.readouterr()

    async with trio.open_nursery() as nursery, notifications(tmp_path / "notify") as next_message:
        await nursery.start(emulator.serve)
        path.write_text(SETTINGS.format(extra="workers = 2", url=emulator.base_url))
        environ = {"QPROXY_HOME": str(tmp_path), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        async with serving("--config", str(path), **environ) as (child, port):
            assert await next_message() == b"READY=1"
            before = await until(ready_workers, tmp_path, child.pid)
            emulator.script(SLOW)
            client = await start_stream(port)
            (victim,) = set(before) - {owner(client, before)}
            os.kill(victim, signal.SIGKILL)
            assert (await ask(port))[0] == 200
            assert (await read_rest(client)).endswith(b"data: [DONE]\n\n")
            after = await until(ready_workers, tmp_path, child.pid, [victim])
            assert len(set(after) & set(before)) == 1
            assert [await count_requests(port) for _ in range(4)] == [2] * 4
            code, output = await reload(port, 'workers = 2\ndefault_model = "m"')
            assert (code, "changed: default_model" in output.out) == (0, True)
            code, output = await reload(port, "[")
            assert (code, "qproxy.toml" in output.err) == (1, True)
            os.kill(after[0], signal.SIGKILL)
            assert (
                len(await until(ready_workers, tmp_path, child.pid, [after[0]])) == 2
            )  # the file is still invalid
            emulator.script(SLOW)
            client = await start_stream(port)
            child.send_signal(signal.SIGTERM)
            assert await next_message() == b"STOPPING=1"
            assert (await read_rest(client)).endswith(b"data: [DONE]\n\n")
            assert await wait_for_exit(child) == 0
        nursery.cancel_scope.cancel()
    assert not list((tmp_path / "workers").iterdir())


async def test_a_second_signal_quits(tmp_path):
    """A second signal kills all workers and sets the exit code."""
    emulator = Emulator()
    emulator.script(ScriptedReply((BEGUN, HANG)))
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        options = ("--workers", "2", "--upstream", emulator.base_url)
        async with serving(*options, QPROXY_HOME=str(tmp_path)) as (child, port):
            client = await start_stream(port)
            pids = children(child.pid)
            child.send_signal(signal.SIGTERM)
            while await listens(port):  # noqa: ASYNC110 - another process
                await trio.sleep(0.02)
            child.send_signal(signal.SIGTERM)
            assert await wait_for_exit(child) == 128 + signal.SIGTERM
            await until(have_exited, pids)
            await client.aclose()
        nursery.cancel_scope.cancel()


async def connected_to(port, pid, pids):
    """Return a client of one worker, connected while the others are stopped."""
    others = set(pids) - {pid}
    for other in others:
        os.kill(other, signal.SIGSTOP)
    client = await connected(port)
    try:
        await until(owner, client, [pid])
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)
    return client


async def test_shared_rate_limits_and_no_orphans(tmp_path):
    """All workers share a key's requests per minute, and workers exit when their supervisor is killed."""
    emulator = Emulator()
    _, secret = key_file.create(tmp_path / "keys.json", name="bob", rpm=5)
    fields = [JSON_HEADER, ("authorization", f"Bearer {secret}")]
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        options = ("--workers", "2", "--upstream", emulator.base_url)
        async with serving(*options, QPROXY_HOME=str(tmp_path)) as (child, port):
            pids = await until(ready_workers, tmp_path, child.pid)
            clients = [await connected_to(port, pid, pids) for pid in pids]
            statuses = []
            for _ in range(4):
                for client in clients:
                    await client.send("POST", "/v1/chat/completions", BODY, fields)
                    statuses.append((await client.response())[0])
                    client.http.start_next_cycle()
            assert statuses == [200] * 5 + [429] * 3
            child.kill()
            await wait_for_exit(child)
            await until(have_exited, pids)
            for client in clients:
                await client.aclose()
        nursery.cancel_scope.cancel()


FAILURES = {
    "an address in use": (("--upstream", "http://127.0.0.1:1/v1"), 1, "Address already in use"),
    "settings that are wrong": (
        ("--upstream", "http://127.0.0.1:1/v1", "--metrics-access", "x"),
        2,
        "one of",
    ),
    "settings that a worker finds wrong": (
        ("--upstream", "http://127.0.0.1:1/v1", "--port", "0", "--rules", "nope=true"),
        2,
        "unknown rule nope",
    ),
}


@pytest.mark.parametrize(("flags", "code", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_a_start_that_fails(flags, code, words, tmp_path):
    """A failed start prints one line and has the exit code of a single process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "qproxy", "serve", "--workers", "2", "--port", port, *flags]
        environ = {**os.environ, "QPROXY_HOME": str(tmp_path), "QPROXY_LOG_LEVEL": "error"}
        found = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    lines = [line for line in found.stderr.splitlines() if '"logger": "qproxy.process"' not in line]
    assert (found.returncode, found.stdout, len(lines)) == (code, "", 1)
    assert words in lines[0]
