"""Bodies in the log, for debugging: off unless `log_bodies` is set.

Bodies are redacted, without images, and truncated after 64 KiB. What is collected of a stream is bounded too,
and its events are redacted together: a secret may be split across several (`fragments`).
"""

from __future__ import annotations

import logging

from qproxy.telemetry import fragments
from qproxy.telemetry.records import RequestRecord
from qproxy.telemetry.redaction import MAX_BODY_LENGTH, Redactor

log = logging.getLogger("qproxy.body")


class BodyLogger:
    """Writes bodies to the log."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def log_request(self, record: RequestRecord, data: bytes) -> None:
        """Log a request's body."""
        self._write(record, "request", data)

    def log_response(self, record: RequestRecord, data: bytes) -> None:
        """Log a response's body."""
        self._write(record, "response", data)

    def streamed(self, record: RequestRecord, data: bytes) -> None:
        """Log the collected body of a streamed response."""
        self._write(record, "response", fragments.redact_stream(data, self._redactor.text))

    def streaming(self, record: RequestRecord) -> StreamLogger:
        """Return a collector for a streamed response."""
        return StreamLogger(self, record)

    def _write(self, record: RequestRecord, what: str, data: bytes) -> None:
        fields = {"request_id": record.id, "bytes": len(data), "body": self._redactor.body(data)}
        log.info("%s body", what, extra={"fields": {"message": f"{what} body", **fields}})


class StreamLogger:
    """Collects the chunks of one response, up to a limit."""

    def __init__(self, bodies: BodyLogger, record: RequestRecord) -> None:
        self._logger = bodies
        self._record = record
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Add a chunk that was sent."""
        if len(self._data) <= MAX_BODY_LENGTH:
            self._data += data

    def close(self) -> None:
        """Log the collected chunks."""
        self._logger.streamed(self._record, bytes(self._data))
