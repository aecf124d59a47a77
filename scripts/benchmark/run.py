"""qproxy beside others, in one run: CPU per unit, latency, memory, start.  See README.md here.

`servers` starts what is measured, `cases` says what is asked, `report` writes it down.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import report
from servers import Server, started

HERE = Path(__file__).parent
TOOL = {
    "type": "function",
    "function": {
        "name": "write_file",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}
PICTURE = "data:image/png;base64," + "QUJD" * 170_000


class Case(NamedTuple):
    """What is asked, by how many at once, and what is counted."""

    name: str
    model: str
    connections: int
    unit: str
    content: object = "word " * 200
    tools: bool = False

    def body(self) -> bytes:
        stream = self.unit == "chunk"
        body = {
            "model": self.model,
            "stream": stream,
            "messages": [{"role": "user", "content": self.content}],
        }
        return json.dumps({**body, "tools": [TOOL]} if self.tools else body).encode()


CASES = {
    "whole": Case("whole request, 1 KB answer", "whole-1000", 16, "request"),
    "paced": Case("paced stream, a chunk every 10 ms", "paced-100-10", 20, "chunk"),
    "burst": Case("burst, as fast as it goes", "burst-400", 8, "chunk"),
    "tools": Case("burst of argument fragments", "tools-400", 8, "chunk", tools=True),
    "prompt": Case("whole request, 64 KB prompt", "whole-1000", 16, "request", "word " * 13_000),
    "pictures": Case(
        "whole request, 2 MB of pictures", "whole-1000", 4, "request",
        [
            {"type": "text", "text": "What is this?"},
            *[{"type": "image_url", "image_url": {"url": PICTURE}}] * 3,
        ],
    ),
    "alone": Case("one at a time", "whole-1000", 1, "request"),
}  # fmt: skip


class Measured(NamedTuple):
    """One round of one case at one server."""

    cpu: float
    """Microseconds of the server's CPU for a unit."""
    p50: float
    p99: float
    """Milliseconds from the question to the whole answer."""
    rate: float
    """Units a second."""
    errors: int


def loaded(load: Path, server: Server, case: Case, seconds: float, *, everywhere: bool = False) -> Measured:
    """Ask one server for some seconds, from other cores than its own or from everywhere."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(case.body())
        body.flush()
        before, began = server.cpu(), time.perf_counter()
        command = [load, str(server.port), str(case.connections), str(seconds), body.name]
        said = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=None if everywhere else server.leave_its_core,
        ).stdout
        used, took = server.cpu() - before, time.perf_counter() - began
    count, errors, _, _, p50, p99, chunks = said.split()
    units = max(1, int(chunks) if case.unit == "chunk" else int(count))
    return Measured(used / units * 1e6, float(p50), float(p99), units / took, int(errors))


def held(load: Path, server: Server, count: int) -> tuple[float, float]:
    """KB of memory for a stream that is held open, and the CPU (of one core) that all of them cost."""
    before = server.memory()
    with tempfile.NamedTemporaryFile() as body:
        body.write(Case("held", "held-2", count, "chunk").body())
        body.flush()
        command = [load, str(server.port), str(count), "6", body.name, "held"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, preexec_fn=server.leave_its_core
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()  # all have begun
            cpu, began = server.cpu(), time.perf_counter()
            time.sleep(3)
            idle = (server.cpu() - cpu) / (time.perf_counter() - began)
            memory = (server.memory() - before) / count
            process.wait()
    return memory, idle


def doubled(load: Path, servers: list[Server], rounds: int, seconds: float) -> float:
    """How much more two workers do than one, on two cores that they share with the upstream and the load."""
    case, rates = CASES["whole"]._replace(connections=64), []
    for number in range(rounds):
        print(f"round {number + 1}: one worker, two workers", flush=True)
        one, two = (loaded(load, server, case, seconds, everywhere=True).rate for server in servers)
        rates.append(two / one)
    return median(rates)


def measure(options: argparse.Namespace) -> report.Report:
    cases = {name: CASES[name] for name in options.only.split(",")} if options.only else CASES
    found: dict[tuple[str, str], list[Measured]] = {}
    with started(HERE, options.other) as (load, servers, several):
        start = {s.name: s.first_answer for s in servers if s.first_answer}
        idle = {s.name: s.memory() for s in servers}
        for number in range(options.rounds):
            for key, case in cases.items():
                for server in servers:
                    print(f"round {number + 1}: {case.name}, {server.name}", flush=True)
                    found.setdefault((key, server.name), []).append(
                        loaded(load, server, case, options.seconds)
                    )
        after = {s.name: s.memory() for s in servers}
        count = min(options.held, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 500)
        held_by = {
            s.name: held(load, s, count) for s in servers if count > 0 and s.name in ("forwarder", "qproxy")
        }
        twice = doubled(load, several(), options.rounds, options.seconds) if options.workers else None
    best = {
        key: Measured(*(median(column) for column in zip(*rounds, strict=True)))
        for key, rounds in found.items()
    }
    names = [server.name for server in servers]
    return report.Report(
        names,
        {key: case.name for key, case in cases.items()},
        best,
        idle,
        after,
        (count, held_by),
        start,
        twice,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each case, server and round")
    parser.add_argument("--only", help=f"some of {', '.join(CASES)}")
    parser.add_argument(
        "--held",
        type=int,
        default=5000,
        help="streams to hold open (as many as files may be open, at most); 0 leaves that out",
    )
    parser.add_argument(
        "--workers", action=argparse.BooleanOptionalAction, default=True, help="compare one worker with two"
    )
    parser.add_argument(
        "--other", action="append", default=[], metavar="NAME=PORT[:PID]", help="a server that runs"
    )
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    made = measure(options)
    print(made.table())
    if options.write:
        made.write(HERE.parent.parent / "docs")


if __name__ == "__main__":
    main()
