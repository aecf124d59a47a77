"""What qproxy adds: latency, and CPU per request and per streamed chunk, as ratios within one run.

Three processes on one machine: the emulator, qproxy in front of it, and this one, which asks both in turns.  CPU is
the server process's own, from the kernel's accounting (/proc), so a busy machine moves the latency but hardly the CPU.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from statistics import median

import trio

from qproxy.transport import Transport
from qproxy.wire.http import HTTPRequest

ROUNDS, REQUESTS, STREAMS, CHUNKS = 5, 150, 5, 400
EMULATOR = "import trio, sys; from qproxy.emulator import Emulator; trio.run(Emulator(piece=4).serve, int(sys.argv[1]))"
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def ready(port: int) -> None:
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            return
        except OSError:
            await trio.sleep(0.05)


def request(url: str, words: int, stream: bool) -> HTTPRequest:
    body = {
        "model": "qwen-plus",
        "stream": stream,
        "messages": [{"role": "user", "content": "word " * words}],
    }
    return HTTPRequest(
        "POST",
        f"{url}/chat/completions",
        ((b"content-type", b"application/json"),),
        json.dumps(body).encode(),
    )


async def ask(transport: Transport, url: str, words: int, stream: bool) -> tuple[float, int]:
    """Seconds for an answer, and its number of events."""
    began, events = time.perf_counter(), 0
    async with await transport.send(request(url, words, stream)) as response:
        if response.status != 200:
            raise RuntimeError((await response.read(10_000)).decode())
        while data := await response.receive():
            events += data.count(b"data:")
    return time.perf_counter() - began, events


async def measure(upstream: str, proxy: str, pid: int) -> None:
    transport = Transport()
    latency: dict[str, list[float]] = {"direct": [], "qproxy": []}
    per_request, per_chunk = [], []
    for _ in range(ROUNDS):
        for name, url in (("direct", upstream), ("qproxy", proxy)):
            used = cpu(pid)
            for _ in range(REQUESTS):
                latency[name].append((await ask(transport, url, 100, False))[0])
            if name == "qproxy":
                per_request.append((cpu(pid) - used) / REQUESTS * 1000)
        used, events = cpu(pid), 0
        for _ in range(STREAMS):
            events += (await ask(transport, proxy, CHUNKS, True))[1]
        per_chunk.append((cpu(pid) - used) / events * 1e6)
    await transport.aclose()
    direct, through = (sorted(latency[name]) for name in ("direct", "qproxy"))
    print(
        f"{ROUNDS} rounds of {REQUESTS} whole requests and {STREAMS} streams of about {CHUNKS} chunks, one at a time"
    )
    for share in (0.5, 0.99):
        a, b = direct[int(len(direct) * share)] * 1000, through[int(len(through) * share)] * 1000
        print(f"latency p{share * 100:.0f}: direct {a:.2f} ms, through qproxy {b:.2f} ms ({b / a:.1f} times)")
    print(
        f"CPU of qproxy per whole request: {median(per_request):.2f} ms (the answer is streamed upstream and assembled)"
    )
    print(f"CPU of qproxy per streamed chunk of a burst: {median(per_chunk):.0f} µs")


def main() -> None:
    ports = free_port(), free_port()
    upstream, proxy = (f"http://127.0.0.1:{port}" for port in ports)
    environ = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    serve = ["serve", "--port", str(ports[1]), "--log-level", "warning", "--config", os.devnull]
    home = tempfile.TemporaryDirectory(prefix="qproxy-bench-")
    account = {"DASHSCOPE_API_KEY": "", "QPROXY_UPSTREAM": f"{upstream}/v1", "QPROXY_HOME": home.name}
    children = [
        subprocess.Popen([sys.executable, "-c", EMULATOR, str(ports[0])]),
        subprocess.Popen(
            [sys.executable, "-m", "qproxy", *serve], env={**environ, **account}, stdout=subprocess.DEVNULL
        ),
    ]
    try:
        for port in ports:
            trio.run(ready, port)
        trio.run(measure, f"{upstream}/v1", f"{proxy}/v1", children[1].pid)
    finally:
        for child in children:
            child.kill()
            child.wait()
        home.cleanup()


if __name__ == "__main__":
    main()
