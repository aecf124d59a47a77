"""What is measured: started for the run, each on a core of its own, and ended with it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
CORES = sorted(os.sched_getaffinity(0))
NGINX = """
worker_processes 1; daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {home}; proxy_temp_path {home}; client_max_body_size 64m;
  client_body_buffer_size 4m;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header connection ""; proxy_buffering off;
    }}
  }}
}}
"""


class Server:
    """A process (with its children) that answers on a port of this machine."""

    def __init__(self, name: str, port: int, pid: int | None) -> None:
        self.name = name
        self.port = port
        self.pid = pid
        self.first_answer: float | None = None
        """Seconds from its start to its first answer."""

    def _pids(self) -> list[int]:
        if self.pid is None:
            return []
        found, parents = [], [self.pid]
        while parents:
            found.append(parents.pop())
            with suppress(OSError):
                children = Path(f"/proc/{found[-1]}/task/{found[-1]}/children").read_text()
                parents += map(int, children.split())
        return found

    def cpu(self) -> float:
        """Seconds of CPU used so far."""
        total = 0.0
        for pid in self._pids():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / TICK
        return total

    def memory(self) -> float:
        """Resident memory in KB."""
        lines = (
            line for pid in self._pids() for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return sum(float(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    @staticmethod
    def leave_its_core() -> None:
        """Run elsewhere than what is measured."""
        if len(CORES) > 1:
            os.sched_setaffinity(0, CORES[1:])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _on_first_core() -> None:
    os.sched_setaffinity(0, CORES[:1])


def _run(
    stack: ExitStack,
    name: str,
    port: int,
    command: list[object],
    *,
    move: Callable[[], None] | None = _on_first_core,
) -> Server:
    """Start a process and wait until it answers."""
    began = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=move
    )
    stack.callback(_end, process)
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(
                b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            )
            if sock.recv(1):
                break
        if process.poll() is not None:
            raise SystemExit(f"{name} does not start: {' '.join(map(str, command))}")
        time.sleep(0.01)
    server = Server(name, port, process.pid)
    server.first_answer = time.perf_counter() - began
    return server


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def started(here: Path, others: list[str]) -> Iterator[tuple[Path, list[Server], Callable[[], list[Server]]]]:
    """The load generator, everything that is measured, and what starts qproxy with one worker and with
    two."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("The benchmark needs a C compiler for its upstream and its load generator.")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        for name in ("upstream", "load"):
            subprocess.run([compiler, "-O2", "-o", home / name, here / f"{name}.c"], check=True)
        up = free_port()
        direct = _run(stack, "direct", up, [home / "upstream", up], move=Server.leave_its_core)
        direct.pid = direct.first_answer = None
        servers = [direct, _forwarder(stack, here, up)]
        if shutil.which("nginx"):
            servers.append(_nginx(stack, home, up))
        servers.append(_qproxy(stack, home, up, "qproxy"))
        for other in others:
            name, _, where = other.partition("=")
            port, _, pid = where.partition(":")
            servers.append(Server(name, int(port), int(pid) if pid else None))
        yield home / "load", servers, partial(_several, stack, home, up)


def _forwarder(stack: ExitStack, here: Path, up: int) -> Server:
    port = free_port()
    return _run(stack, "forwarder", port, [sys.executable, here / "forwarder.py", port, up])


def _nginx(stack: ExitStack, home: Path, up: int) -> Server:
    port = free_port()
    (home / "nginx.conf").write_text(NGINX.format(home=home, upstream=up, port=port))
    return _run(stack, "nginx", port, ["nginx", "-e", home / "nginx.log", "-c", home / "nginx.conf"])


def _qproxy(stack: ExitStack, home: Path, up: int, name: str, *more: object, pinned: bool = True) -> Server:
    port = free_port()
    os.environ["QPROXY_HOME"] = str(home / name)
    command = [Path(sys.executable).with_name("qproxy"), "serve", "--port", port, "--api-keys", "sk-bench"]
    command += ["--upstream", f"http://127.0.0.1:{up}/v1", *more]
    return _run(stack, name, port, command, move=_on_first_core if pinned else None)


def _several(stack: ExitStack, home: Path, up: int) -> list[Server]:
    """On all cores."""
    return [
        _qproxy(stack, home, up, f"workers-{count}", "--workers", count, pinned=False) for count in (1, 2)
    ]
