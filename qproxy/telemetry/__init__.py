"""What happened: one record a request, and everybody who reads it.

    records    the facts of one request: names, numbers and codes
    counters   requests under way and counted; tells the listeners when one is over
    log_format a record as a log line
    redaction  secrets out of whatever is logged
    body_log   requests and answers in the log, where the operator wants them
    metrics    /metrics
    tracing    OpenTelemetry spans (the extra `qproxy[otel]`)
    peers      several workers as one

Facts flow one way: server and relay fill in the record, `RequestCounters.request_finished` hands it on.
"""

from qproxy.telemetry.counters import RequestCounters
from qproxy.telemetry.log_format import LogFormatter
from qproxy.telemetry.records import (
    FailedAttempt,
    RelayRecord,
    RequestRecord,
    ToolRunRecord,
    TraceProtocol,
    TracerProtocol,
)

__all__ = [
    "FailedAttempt",
    "LogFormatter",
    "RelayRecord",
    "RequestCounters",
    "RequestRecord",
    "ToolRunRecord",
    "TraceProtocol",
    "TracerProtocol",
]
