"""The requests in flight and the counts of finished ones.

A finished record is counted, logged, and passed to each listener (the metrics, the ledger) in turn. A
listener must be quick and must not wait: it runs as the request ends, even if it failed or was cancelled.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

from qproxy.telemetry.records import RequestRecord
from qproxy.wire.tool_calls.repairs import REPAIRS

log = logging.getLogger("qproxy.request")
repairs_log = logging.getLogger("qproxy.repairs")
FAILED_OUTCOMES = frozenset(("internal_error", "upstream_truncated"))
"""Outcomes of a response that had started, with status 200, and failed then."""
Listener: TypeAlias = Callable[[RequestRecord], None]


class RequestCounters:
    """The requests of this process."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.rules: Counter[str] = Counter()
        self.repairs: Counter[str] = Counter()
        self.in_flight: dict[str, RequestRecord] = {}
        """The records of the requests in flight, by id."""

    def __repr__(self) -> str:
        return f"<RequestCounters {len(self.in_flight)} in flight, {dict(self.outcomes)}>"

    def request_started(self, record: RequestRecord) -> None:
        """Count a request as in flight until `request_finished`."""
        self.in_flight[record.id] = record

    def request_finished(self, record: RequestRecord) -> None:
        """Count a finished request and write its log line."""
        self.in_flight.pop(record.id, None)
        record.ended_at = time.perf_counter()
        self.outcomes[record.outcome] += 1
        self.statuses[record.status] += 1
        if record.relay.rules:
            self.rules.update(record.relay.rules)
        if record.relay.repairs:
            self.repairs.update(record.relay.repairs)
        level = _level(record)
        if log.isEnabledFor(level):
            _write_line(record, level)
        if repairs_log.isEnabledFor(logging.DEBUG):
            _log_repairs(record)


def notify(listeners: Iterable[Listener], record: RequestRecord) -> None:
    """Pass a finished request's record to listeners."""
    for listener in listeners:
        try:
            listener(record)
        except Exception:  # the other listeners and the rest of the request's exit stack must still run
            log.exception("%r failed", listener)


_LINE = logging.LogRecord(log.name, logging.INFO, "", 0, "", None, None)
"""Source location in every request's log record."""


def _level(record: RequestRecord) -> int:
    """Return the level of the request's line: a warning for every failure of the server or an upstream."""
    failed = record.status >= 500 or record.outcome in FAILED_OUTCOMES
    return logging.WARNING if failed else logging.INFO


def _write_line(record: RequestRecord, level: int) -> None:
    """Write the request's log line, without looking up caller, process and thread."""
    line, now = logging.LogRecord.__new__(logging.LogRecord), time.time()
    line.__dict__.update(
        _LINE.__dict__,
        process=os.getpid(),
        created=now,
        msecs=now % 1 * 1000,
        relativeCreated=_LINE.relativeCreated + (now - _LINE.created) * 1000,
        levelno=level,
        levelname=logging.getLevelName(level),
        msg=record.path,
        fields=record.to_json(),
    )
    log.handle(line)


def _log_repairs(record: RequestRecord) -> None:
    """Log each kind of repair that the response needed."""
    story = record.relay
    for kind, count in story.repairs.items():
        fields = {
            "request_id": record.id,
            "repair": kind,
            "count": count,
            "meaning": REPAIRS.get(kind),
            "model": story.served_model,
            "account": story.account,
        }
        repairs_log.debug("repair", extra={"fields": fields})
