"""What is happening and what has happened since the start; whoever wants to hear of a finished request, hears it here.

A finished record is counted, logged, and given to each listener (the metrics, the ledger) in turn.  A listener must
be quick and must not wait: it runs in the request's last moment, whether it ended, failed or was cancelled.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeAlias

from qproxy.telemetry.records import Record
from qproxy.wire.tool_calls.repairs import KINDS

log = logging.getLogger("qproxy.request")
repairs_log = logging.getLogger("qproxy.repairs")
Listener: TypeAlias = Callable[[Record], None]


class Counts:
    """The requests of this process."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.rules: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.live: dict[str, Record] = {}
        """The records of the requests under way, by id."""
        self.listeners: list[Listener] = []

    def __repr__(self) -> str:
        return f"<Counts {len(self.live)} under way, {dict(self.outcomes)}>"

    def began(self, record: Record) -> None:
        """A request is under way until `finished`."""
        self.live[record.id] = record

    def finished(self, record: Record) -> None:
        """Count a request, write its line, and tell the listeners."""
        self.live.pop(record.id, None)
        record.ended = time.perf_counter()
        self.outcomes[record.outcome] += 1
        self.statuses[record.status] += 1
        if record.story.rules:
            self.rules.update(record.story.rules)
        if record.story.repairs:
            self.repairs.update(record.story.repairs)
        if log.isEnabledFor(logging.INFO):
            _write_line(record)
        if repairs_log.isEnabledFor(logging.DEBUG):
            _tell_repairs(record)
        for listener in self.listeners:
            try:
                listener(record)
            except Exception:  # it must not keep the others, or the request's stack, from their work
                log.exception("%r failed", listener)


_LINE = logging.LogRecord(log.name, logging.INFO, "", 0, "", None, None)
"""What every request's line says of where it was written."""


def _write_line(record: Record) -> None:
    """The request's line, without the search for its caller, its process and its thread."""
    line, now = logging.LogRecord.__new__(logging.LogRecord), time.time()
    line.__dict__.update(
        _LINE.__dict__,
        process=os.getpid(),
        created=now,
        msecs=now % 1 * 1000,
        relativeCreated=_LINE.relativeCreated + (now - _LINE.created) * 1000,
        msg=record.path,
        fields=record.fields(),
    )
    log.handle(line)


def _tell_repairs(record: Record) -> None:
    """A line for each kind of repair that the answer needed, for whoever wants to see an upstream's bugs."""
    story = record.story
    for kind, count in story.repairs.items():
        fields = {
            "request_id": record.id,
            "repair": kind,
            "count": count,
            "meaning": KINDS.get(kind),
            "model": story.served_model,
            "account": story.account,
        }
        repairs_log.debug("repair", extra={"fields": fields})
