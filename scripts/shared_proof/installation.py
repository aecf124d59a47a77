"""Two homes of qproxy, each with two workers, one valkey-server, and an emulated Qwen in this process."""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import trio

from qproxy.emulator import Emulator
from tests.backends.redis.members import KEY
from tests.backends.redis.server import Server
from tests.dashboard.browser import ADMIN_KEY

START_SECONDS = 60.0
COMMAND_SECONDS = 60.0
TOKEN_LIFETIME = 40.0
"""Tokens of the account that has logged in are refreshed every few seconds."""
SETTINGS = """
port = {port}
workers = 2
log_level = "info"
log_format = "json"
graceful_timeout = 2
admin_key = "{admin_key}"
shared_state = "redis://127.0.0.1:{link}"
shared_state_key_file = "{seal}"
oauth_hosts = ["{upstream}"]
oauth_device_url = "{upstream}/api/v1/oauth2/device/code"
oauth_token_url = "{upstream}/api/v1/oauth2/token"
oauth_interval = 1
oauth_refresh_margin = 30

[[accounts]]
name = "sound"
base_url = "{upstream}/compatible-mode/v1"
key = "sk-proof"
models = ["qwen-plus"]

[[accounts]]
name = "person"
kind = "oauth"
models = ["qwen3-coder-plus"]
rpm = 100000
"""


class Link:
    """The network between a home and the server, over TCP: it can be cut."""

    def __init__(self, server: Server) -> None:
        self.port = 0
        self._server = server
        self._is_cut = False
        self._scopes: set[trio.CancelScope] = set()

    async def serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Forward connections until cancelled."""
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    def cut(self) -> None:
        """Break all connections, and each new one."""
        self._is_cut = True
        for scope in self._scopes:
            scope.cancel()

    def restore(self) -> None:
        """Forward connections again."""
        self._is_cut = False

    async def _forward(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope, suppress(OSError):
            self._scopes.add(scope)
            if not self._is_cut:
                server = await trio.open_unix_socket(self._server.path)
                async with server, trio.open_nursery() as nursery:
                    nursery.start_soon(copy, client, server, nursery.cancel_scope)
                    await copy(server, client, nursery.cancel_scope)
        self._scopes.discard(scope)
        await trio.aclose_forcefully(client)


async def copy(source: trio.SocketStream, target: trio.abc.SendStream, scope: trio.CancelScope) -> None:
    """Copy bytes until either side closes; then end the other direction."""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await target.send_all(data)
    scope.cancel()


class Home:
    """A machine: a data directory and `qproxy serve`."""

    def __init__(self, directory: Path, port: int, link: Link) -> None:
        self.directory = directory
        self.url = f"http://127.0.0.1:{port}"
        self.link = link
        self.is_killed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
            "DASHSCOPE_API_KEY": "",
            "QPROXY_HOME": str(directory),
        }

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "qproxy", *arguments]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                self._command("serve"),
                cwd=self.directory,  # where qproxy.toml is
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    async def start(self) -> None:
        """Start the server and wait until it is ready."""
        self._process = self._spawn()
        with trio.fail_after(START_SECONDS):
            async with httpx2.AsyncClient() as client:
                while not await is_ready(client, self.url):
                    if self._process.poll() is not None:
                        raise RuntimeError(f"qproxy serve ended; see {self.directory / 'log'}")
                    await trio.sleep(0.05)
        self.is_killed = False

    def workers(self) -> list[int]:
        """Return the processes that serve."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def kill(self) -> None:
        """Kill all processes as a loss of power would."""
        self.is_killed = True
        if self._process is not None and self._process.poll() is None:
            for pid in [*self.workers(), self._process.pid]:  # each worker has a process group of its own
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    async def stop(self) -> int:
        """End the server in order; return its exit code."""
        assert self._process is not None
        self.is_killed = True
        self._process.terminate()
        return await trio.to_thread.run_sync(self._process.wait)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code and the output of a command of this home."""
        with trio.fail_after(COMMAND_SECONDS):
            done = await trio.run_process(
                self._command(*arguments),
                cwd=self.directory,
                env=self._environment,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
        return done.returncode, done.stdout.decode()

    async def create_key(self, name: str, *limits: str) -> str:
        """Create an API key and return it."""
        code, output = await self.command("keys", "create", "--name", name, *limits)
        found = re.search(r"sk-[\w-]{20,}", output)
        assert code == 0, output
        assert found, output
        return found[0]

    def tracebacks(self) -> int:
        """Return how many tracebacks the log has."""
        return (self.directory / "log").read_text(errors="replace").count("Traceback (most recent")


async def is_ready(client: httpx2.AsyncClient, url: str) -> bool:
    """Return whether a server is ready."""
    try:
        return (await client.get(f"{url}/readyz", timeout=2)).status_code == 200
    except httpx2.HTTPError:
        return False


class Installation:
    """All parts."""

    def __init__(self, directory: Path, server: Server, emulator: Emulator, homes: list[Home]) -> None:
        self.directory = directory
        self.server = server
        self.emulator = emulator
        self.homes = homes
        self.server_started = -math.inf
        """When the server of the state was started again."""

    @property
    def one(self) -> Home:
        return self.homes[0]

    @property
    def two(self) -> Home:
        return self.homes[1]


async def free_port() -> int:
    """Return a port that is free now."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return int(listener.socket.getsockname()[1])


def prepare_home(directory: Path, port: int, link: Link, emulator: Emulator) -> Home:
    """Return a home with its settings."""
    directory.mkdir()
    seal = directory / "seal"
    seal.write_text(KEY)
    seal.chmod(0o600)
    text = SETTINGS.format(
        port=port, link=link.port, seal=seal, upstream=emulator.origin, admin_key=ADMIN_KEY
    )
    (directory / "qproxy.toml").write_text(text)
    return Home(directory, port, link)


async def log_in(it: Installation) -> None:
    """Log the account `person` in from the first home, as its owner does at the page."""
    async with trio.open_nursery() as nursery:

        async def approve() -> None:
            flows = it.emulator.identity.flows
            while not any(it.emulator.identity.decide(flow.user_code) for flow in flows.values()):  # noqa: ASYNC110 - the emulator has no event for it
                await trio.sleep(0.05)

        nursery.start_soon(approve)
        code, output = await it.one.command("login", "--account", "person", "--no-browser")
        nursery.cancel_scope.cancel()
    assert code == 0, output


@asynccontextmanager
async def installation(directory: Path) -> AsyncIterator[Installation]:
    """Run all parts."""
    server, emulator = Server("--appendonly", "yes", "--appendfsync", "everysec"), Emulator()
    emulator.identity.token_lifetime = TOKEN_LIFETIME
    homes: list[Home] = []
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(emulator.serve)
            for name in ("one", "two"):
                link = Link(server)
                await nursery.start(link.serve)
                homes.append(prepare_home(directory / name, await free_port(), link, emulator))
            it = Installation(directory, server, emulator, homes)
            await log_in(it)
            for home in homes:
                await home.start()
            yield it
            nursery.cancel_scope.cancel()
    finally:
        for home in homes:
            home.kill()
        server.close()
