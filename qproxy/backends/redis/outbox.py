"""Changes of limits that the server lacks when a process ends: kept in the data directory for the next one.

Each line is one numbered exchange of `limits.lua`, with the number and the process that it had, so that it
counts once even if the server has executed it or two processes send it. After a day the server no longer has
the numbers, and what is older is dropped; the ledger has it. What was taken of a minute ends with it.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from qproxy.backends.redis.client import RedisClient
from qproxy.backends.redis.errors import RedisError, RedisReplyError
from qproxy.backends.redis.exchange import BudgetLimit, Exchange
from qproxy.backends.redis.script import Script
from qproxy.system.private_file import replace_private_file

MAX_AGE = 86400.0
"""Seconds for which the server keeps the numbers of a process that has ended (`limits.lua`)."""
LEVEL_SECONDS = 60.0
log = logging.getLogger("qproxy.backends")


@dataclass(frozen=True, slots=True)
class Entry:
    """One exchange with a subject."""

    key: str
    process: str
    saved_at: float
    """Unix time."""
    exchange: Exchange

    def to_json(self) -> str:
        """Return the line of a file."""
        exchange = self.exchange
        fields = {name: dict(getattr(exchange, name)) for name in ("limits", "taken", "used")}
        rows = [[row.window, row.unit, row.limit] for row in exchange.budgets]
        found = {
            "key": self.key,
            "process": self.process,
            "saved_at": self.saved_at,
            "number": exchange.number,
        }
        return json.dumps({**found, "units": list(exchange.units), "budgets": rows, **fields})


def parse_entry(line: str) -> Entry:
    """Return the entry of a line. Raises ValueError, TypeError or KeyError."""
    found: Mapping[str, Any] = json.loads(line)
    exchange = Exchange(
        number=int(found["number"]),
        limits=found["limits"],
        units=found["units"],
        taken=found["taken"],
        used=found["used"],
        need=None,
        want={},
        budgets=[BudgetLimit(window, unit, float(limit)) for window, unit, limit in found["budgets"]],
        seeds={},
    )
    return Entry(found["key"], found["process"], float(found["saved_at"]), exchange)


class Outbox:
    """The exchanges of ended processes that the server does not have yet."""

    def __init__(self, client: RedisClient, script: Script, directory: Path | None) -> None:
        """Without a directory nothing is kept. Made before the members: what is older is sent first."""
        self._client = client
        self._script = script
        self._directory = directory
        self._unsent: dict[Entry, Path] = {}
        self._left: Counter[Path] = Counter()
        self._in_flight: set[Entry] = set()
        client.on_connect.append(self._send)

    def __repr__(self) -> str:
        return f"<Outbox {len(self._unsent)} exchanges>"

    def __len__(self) -> int:
        return len(self._unsent)

    def load(self) -> None:
        """Read the files of processes that have ended."""
        if self._directory is None:
            return
        for path in sorted(self._directory.glob("*.jsonl")):
            try:
                entries = [*_read_entries(path)]
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("shared state: cannot read %s, which is left there: %s", path, error)
                continue
            self._unsent.update(dict.fromkeys(entries, path))
            self._left[path] = len(entries)
            if not entries:
                path.unlink(missing_ok=True)

    def save(self, unsettled: Iterable[tuple[str, Exchange]]) -> None:
        """Keep exchanges of this process, by their keys, for the next one."""
        now, process = time.time(), self._client.process
        lines = [Entry(key, process, now, exchange).to_json() for key, exchange in unsettled]
        if not lines or self._directory is None:
            return
        path = self._directory / f"{process}.jsonl"
        try:
            replace_private_file(path, "\n".join(lines).encode())
        except OSError as error:
            log.error(
                "shared state: cannot write %s: %d changes of limits are lost: %s", path, len(lines), error
            )
        else:
            log.info("shared state: %d changes of limits are sent at the next start (%s)", len(lines), path)

    def _send(self) -> None:
        """Send everything in its order, over a new connection."""
        now = time.time()
        for entry in [*self._unsent]:
            if entry in self._in_flight:
                continue
            exchange, age = entry.exchange, now - entry.saved_at
            if age > LEVEL_SECONDS:
                exchange = replace(exchange, taken={})
            arguments = exchange.arguments({}, process=entry.process, forgot_at=0.0, processes=1)
            command = self._client.script_command(self._script, entry.key, *arguments)
            try:
                self._client.send(command, partial(self._end, entry))
            except RedisError:  # of another server of a cluster: sent when that one connects
                continue
            self._in_flight.add(entry)

    def _end(self, entry: Entry, reply: Any) -> None:
        """Drop what the server has, or cannot execute."""
        self._in_flight.discard(entry)
        if isinstance(reply, RedisReplyError) and str(reply).startswith("ERR "):
            log.error("shared state: a change of limits from the last start is dropped: %s", reply)
        elif isinstance(reply, Exception):
            return
        path = self._unsent.pop(entry)
        self._left[path] -= 1
        if not self._left[path]:
            path.unlink(missing_ok=True)


def _read_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a file that still count."""
    oldest = time.time() - MAX_AGE
    for line in path.read_text().splitlines():
        entry = parse_entry(line)
        if entry.saved_at >= oldest:
            yield entry
