"""A soak: many requests of every kind at once against `qproxy serve`, with faults behind it and clients that
leave.

Two processes on one machine: qproxy, and this one, which is the clients and the emulated Qwen. Every question
holds a number that its answer must repeat, so answers that were mixed up are noticed. At the end everything
must be as it was: connections to the upstream, open files, and the memory must not have grown with the number
of requests.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import trio

from qproxy.bootstrap.limits import transport_limits
from qproxy.config import Config
from qproxy.emulator import Emulator
from qproxy.transport import UpstreamTransport
from qproxy.wire.errors import UpstreamError
from qproxy.wire.http_request import HTTPRequest

CLIENTS = 64
LONGEST = 1800.0
"""Seconds after which it ends in any case."""
FLAT = 0.05
"""Growth of the memory in the second half, as a share of it, that still counts as flat."""
FAULTS = (
    "fault-500", "fault-503", "fault-html", "fault-filter", "fault-empty", "fault-cut", "fault-end",
    "fault-garbage",
    "fault-error-late", "fault-reset", "fault-reset-first", "fault-drop", "fault-not-http", "fault-interim",
    "fault-interim-flood", "fault-header-flood", "fault-endless-head", "fault-truncated", "fault-surplus",
    "fault-length", "fault-chunking", "fault-gzip", "fault-type", "fault-page-error", "fault-json-cut",
    "fault-json-odd",
)  # fmt: skip
"""Those that neither last for minutes nor make the account rest."""
SILENT = ("fault-hang", "fault-silent", "fault-drip", "fault-drip-head")
"""Those that a client has to leave."""
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
    },
}
KINDS = {
    "whole": 20, "stream": 25, "tools": 8, "tools, streamed": 8, "responses": 6, "responses, streamed": 6,
    "a fault": 8, "a fault, streamed": 8, "left while streaming": 8, "left before the answer": 5,
    "left a silent server": 4, "wrong": 4, "models": 2,
}  # fmt: skip


SETTINGS = """
port = {port}
log_level = "error"
log_format = "json"
pool_idle_timeout = 1
client_idle_timeout = 2

[[accounts]]
name = "sound"
base_url = "{upstream}"
key = "sk-soak"
models = ["qwen*"]

[[accounts]]
name = "faulty"
base_url = "{upstream}"
key = "sk-soak"
models = ["fault-*", "qwq*"]
"""
"""Faults have an account of their own: its circuit, when it opens, refuses nobody else. Sound requests keep
it closed."""
SOUND = "qwq-plus"


class Wrong(Exception):
    """An answer that must not be."""


class Soak:
    """The clients."""

    def __init__(self, url: str, emulator: Emulator, total: int) -> None:
        self._url = url
        self._emulator = emulator
        self._left = total
        self._random = random.Random(1)
        self._transport = UpstreamTransport(
            replace(
                transport_limits(Config()),
                max_connections=4 * CLIENTS,
                first_byte_timeout=60,
                idle_timeout=60,
            )
        )
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.done = 0
        self.wrong: list[str] = []

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client)
        await self._transport.aclose()

    async def _client(self) -> None:
        while self._left > 0:
            self._left -= 1
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                outcome = await self._one(kind)
            except Wrong as error:
                outcome = "WRONG"
                self.wrong.append(f"{kind}: {error}")
            except UpstreamError as error:
                outcome = "no answer"
                self.wrong.append(f"{kind}: {error.message}")
            self.outcomes[kind][outcome] += 1
            self.done += 1
            self._emulator.requests.clear()

    async def _one(self, kind: str) -> str:
        number = str(self._random.getrandbits(60))
        streams = "streamed" in kind or kind in ("stream", "left while streaming")
        if kind == "models":
            return await self._models()
        if kind.startswith("left"):
            return await self._leave(kind, number, streams)
        path = "/responses" if "responses" in kind else "/chat/completions"
        status, text = await self._ask(path, self._body(kind, number, streams))
        return judged(kind, status, text, number, streams)

    def _body(self, kind: str, number: str, stream: bool) -> dict:
        model = "qwen-plus"
        if "fault" in kind:
            model = self._random.choice((*FAULTS, *(SOUND,) * 2 * len(FAULTS)))
        elif kind == "left a silent server":
            model = self._random.choice(SILENT)
        question = f"look up '{number}' " + "word " * self._random.randrange(200)
        body: dict = {"model": model, "stream": stream}
        if "responses" in kind:
            return {**body, "input": question, "store": False}
        body["messages"] = [{"role": "user", "content": question}]
        if "tools" in kind:
            body["tools"] = [TOOL]
        if kind == "wrong":
            body["temperature"] = "warm"
        return body

    def _request(self, path: str, body: dict) -> HTTPRequest:
        head = ((b"content-type", b"application/json"),)
        return HTTPRequest("POST", self._url + path, head, json.dumps(body).encode())

    async def _ask(self, path: str, body: dict) -> tuple[int, str]:
        async with await self._transport.send(self._request(path, body)) as response:
            return response.status, (await response.read(10_000_000)).decode()

    async def _models(self) -> str:
        async with await self._transport.send(HTTPRequest("GET", f"{self._url}/models", (), b"")) as response:
            if response.status != 200 or b"qwen-plus" not in await response.read(1_000_000):
                raise Wrong(f"status {response.status}")
        return "ok"

    async def _leave(self, kind: str, number: str, stream: bool) -> str:
        """Ask, and go away: after so many bytes, or after so many milliseconds."""
        enough = self._random.randrange(20_000)
        with trio.move_on_after(self._random.random() * (0.05 if "before" in kind else 0.3)):
            request = self._request("/chat/completions", self._body(kind, number, stream))
            async with await self._transport.send(request) as response:
                while (data := await response.receive()) and enough > 0:
                    enough -= len(data)
                return "left in mid-answer" if data else "had it all"
        return "left"


def judged(kind: str, status: int, text: str, number: str, streams: bool) -> str:
    """What became of a request; Wrong when it cannot be."""
    if status >= 500 and not kind.startswith("a fault"):
        raise Wrong(f"status {status}: {text[:300]}")
    if status == 500:
        raise Wrong(f"status 500: {text[:300]}")
    if status != 200:
        return f"{status} {json.loads(text)['error']['code']}"
    if streams and kind.startswith("a fault"):
        last = text.rstrip().rpartition("data: ")[2]
        return "ok" if last == "[DONE]" else f"frame {json.loads(last)['error']['code']}"
    if kind.startswith("a fault"):
        return "ok"
    plain = "".join(json.loads(piece) for piece in pieces(text)) if streams else text
    if number not in plain:
        raise Wrong(f"the answer is not to its question: {text[-300:]}")
    if streams and "[DONE]" not in text and "response.completed" not in text:
        raise Wrong("a stream without its end")
    return "ok"


def pieces(text: str):
    """The JSON strings of a stream's deltas, whatever they are of."""
    for line in text.split("\n"):
        if line.startswith("data: {"):
            chunk = json.loads(line[6:])
            if isinstance(chunk.get("delta"), str):
                yield json.dumps(chunk["delta"])
            for choice in chunk.get("choices", ()):
                delta = choice["delta"]
                yield json.dumps(delta.get("content") or "")
                for call in delta.get("tool_calls", ()):
                    yield json.dumps(call["function"].get("arguments") or "")


class Process:
    """What the kernel says of the server."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        self.samples: list[tuple[int, float]] = []
        """(requests done, MB resident)"""

    def files(self) -> int:
        return len(os.listdir(self._proc / "fd"))

    def megabytes(self) -> float:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def watch(self, soak: Soak) -> None:
        while True:
            self.samples.append((soak.done, self.megabytes()))
            print(
                f"\r{soak.done} requests, {self.samples[-1][1]:.1f} MB, {self.files()} files",
                end="",
                flush=True,
            )
            await trio.sleep(1)

    def slope(self) -> float:
        """MB per 1,000 requests in the second half, by least squares."""
        half = [sample for sample in self.samples if sample[0] >= self.samples[-1][0] / 2]
        if len(half) < 2:
            return 0.0
        x = sum(done for done, _ in half) / len(half)
        y = sum(size for _, size in half) / len(half)
        spread = sum((done - x) ** 2 for done, _ in half)
        return 1000 * sum((done - x) * (size - y) for done, size in half) / spread if spread else 0.0


async def settled(url: str, emulator: Emulator, process: Process) -> tuple[int, int]:
    """Connections to the upstream and open files, once one more request has swept the pool."""
    await trio.sleep(2.5)
    transport = UpstreamTransport(transport_limits(Config()))
    body = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hi"}]}
    request = HTTPRequest(
        "POST",
        f"{url}/chat/completions",
        ((b"content-type", b"application/json"),),
        json.dumps(body).encode(),
    )
    async with await transport.send(request) as response:
        await response.read(100_000)
    await transport.aclose()
    await trio.sleep(0.5)
    return emulator.open_connections, process.files()


async def soak(total: int, port: int, home: str, log: TextIO) -> int:
    emulator, url = Emulator(), f"http://127.0.0.1:{port}/v1"
    async with trio.open_nursery() as nursery:
        await nursery.start(emulator.serve)
        child = serve(port, emulator.base_url, home, log)
        try:
            problems = await measured(child, url, emulator, total)
        finally:
            child.kill()
            child.wait()
        nursery.cancel_scope.cancel()
    log.seek(0)
    errors = [line for line in log if '"error"' in line[:90] or "Traceback" in line]
    problems += [f"in the log: {line[:300]}" for line in errors[:5]]
    for problem in problems:
        print(f"PROBLEM: {problem}")
    print("nothing leaked, nothing was wrong" if not problems else f"{len(problems)} problems")
    return 1 if problems else 0


async def measured(child: subprocess.Popen, url: str, emulator: Emulator, total: int) -> list[str]:
    """Run, print, and say what was wrong."""
    await ready(int(url.split(":")[2].split("/")[0]))
    process, clients = Process(child.pid), Soak(url, emulator, total)
    before = await settled(url, emulator, process)
    began = time.monotonic()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.watch, clients)
        with trio.move_on_after(LONGEST):
            await clients.run()
        nursery.cancel_scope.cancel()
    seconds = time.monotonic() - began
    after = await settled(url, emulator, process)
    child.send_signal(signal.SIGTERM)
    with trio.move_on_after(60):
        await trio.to_thread.run_sync(child.wait, abandon_on_cancel=True)
    report(clients, process, seconds, before, after, child.returncode)
    return problems_of(clients, process, total, before, after, child.returncode)


def report(
    clients: Soak, process: Process, seconds: float, before: tuple, after: tuple, code: int | None
) -> None:
    print(f"\r{clients.done} requests in {seconds:.0f} s, {CLIENTS} at a time, seed 1" + " " * 20)
    for kind, outcomes in clients.outcomes.items():
        print(f"  {kind + ':':26}", ", ".join(f"{count} {what}" for what, count in outcomes.most_common()))
    half = [size for done, size in process.samples if done >= clients.done / 2]
    print(
        f"upstream connections: {before[0]} before, {after[0]} after; "
        f"open files: {before[1]} before, {after[1]} after"
    )
    print(
        f"resident memory: {process.samples[0][1]:.1f} MB at first, "
        f"{half[0]:.1f} MB at half, {half[-1]:.1f} MB at last"
    )
    print(f"slope of the second half: {process.slope() * 1000:+.1f} KB per 1,000 requests; exit code {code}")


def problems_of(
    clients: Soak, process: Process, total: int, before: tuple, after: tuple, code: int | None
) -> list[str]:
    problems = list(clients.wrong[:10])
    if clients.done < total:
        problems.append(f"only {clients.done} of {total} requests in {LONGEST:.0f} s")
    if after[0] > before[0]:
        problems.append(f"{after[0] - before[0]} connections to the upstream leaked")
    if after[1] > before[1]:
        problems.append(f"{after[1] - before[1]} open files leaked")
    half = clients.done / 2
    grown, size = process.slope() * half / 1000, process.samples[-1][1]
    if grown > FLAT * size:
        problems.append(f"memory grew by {grown:.1f} MB in the second half")
    if code != 0:
        problems.append(f"the server ended with exit code {code}")
    return problems


def serve(port: int, upstream: str, home: str, log: TextIO) -> subprocess.Popen:
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    path = Path(home, "qproxy.toml")
    path.write_text(SETTINGS.format(port=port, upstream=upstream))
    return subprocess.Popen(
        [sys.executable, "-m", "qproxy", "serve", "--config", str(path)],
        env={**kept, "DASHSCOPE_API_KEY": "", "QPROXY_HOME": home},
        stdout=subprocess.DEVNULL,
        stderr=log,
    )


async def ready(port: int) -> None:
    with trio.fail_after(60):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                return
            except OSError:
                await trio.sleep(0.05)


async def free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return int(listener.socket.getsockname()[1])


def main() -> int:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    home = tempfile.mkdtemp(prefix="qproxy-soak-")
    try:
        with Path(home, "log").open("w+") as log:
            return trio.run(soak, total, trio.run(free_port), home, log)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
