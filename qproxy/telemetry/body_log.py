"""Bodies in the log, for whoever hunts a fault and has set `log_bodies`: off unless asked for.

They pass the redactor, lose their pictures, and end after 64 KiB.  What is collected of a stream is bounded too, and its
events are looked at together: one secret may be in several (`fragments`).
"""

from __future__ import annotations

import logging

from qproxy.telemetry import fragments
from qproxy.telemetry.records import RequestRecord
from qproxy.telemetry.redaction import MAX_BODY_LENGTH, Redactor

log = logging.getLogger("qproxy.body")


class BodyLogger:
    """Writes them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def log_request(self, record: RequestRecord, data: bytes) -> None:
        """A request's body."""
        self._write(record, "request", data)

    def log_response(self, record: RequestRecord, data: bytes) -> None:
        """An answer's."""
        self._write(record, "response", data)

    def streamed(self, record: RequestRecord, data: bytes) -> None:
        """An answer's that came in pieces."""
        self._write(record, "response", fragments.redact_stream(data, self._redactor.text))

    def streaming(self, record: RequestRecord) -> StreamLogger:
        """An answer's that comes in pieces."""
        return StreamLogger(self, record)

    def _write(self, record: RequestRecord, what: str, data: bytes) -> None:
        fields = {"request_id": record.id, "bytes": len(data), "body": self._redactor.body(data)}
        log.info("%s body", what, extra={"fields": {"message": f"{what} body", **fields}})


class StreamLogger:
    """The pieces of one answer, until there are enough of them."""

    def __init__(self, bodies: BodyLogger, record: RequestRecord) -> None:
        self._logger = bodies
        self._record = record
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """A piece that was sent."""
        if len(self._data) <= MAX_BODY_LENGTH:
            self._data += data

    def close(self) -> None:
        """That was all."""
        self._logger.streamed(self._record, bytes(self._data))
