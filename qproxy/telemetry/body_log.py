"""Bodies in the log, for whoever hunts a fault and has set `log_bodies`: off unless asked for.

They pass the redactor, lose their pictures, and end after 64 KiB.  What is collected of a stream is bounded too, and its
events are looked at together: one secret may be in several (`fragments`).
"""

from __future__ import annotations

import logging

from qproxy.telemetry import fragments
from qproxy.telemetry.records import Record
from qproxy.telemetry.redaction import LONGEST_BODY, Redactor

log = logging.getLogger("qproxy.body")


class Bodies:
    """Writes them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def asked(self, record: Record, data: bytes) -> None:
        """A request's body."""
        self._write(record, "request", data)

    def answered(self, record: Record, data: bytes) -> None:
        """An answer's."""
        self._write(record, "response", data)

    def streamed(self, record: Record, data: bytes) -> None:
        """An answer's that came in pieces."""
        self._write(record, "response", fragments.redacted(data, self._redactor.text))

    def streaming(self, record: Record) -> Streamed:
        """An answer's that comes in pieces."""
        return Streamed(self, record)

    def _write(self, record: Record, what: str, data: bytes) -> None:
        fields = {"request_id": record.id, "bytes": len(data), "body": self._redactor.body(data)}
        log.info("%s body", what, extra={"fields": {"message": f"{what} body", **fields}})


class Streamed:
    """The pieces of one answer, until there are enough of them."""

    def __init__(self, bodies: Bodies, record: Record) -> None:
        self._bodies = bodies
        self._record = record
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """A piece that was sent."""
        if len(self._data) <= LONGEST_BODY:
            self._data += data

    def close(self) -> None:
        """That was all."""
        self._bodies.streamed(self._record, bytes(self._data))
