"""What happened: one record a request, and everybody who reads it.

    record     the facts of one request: names, numbers and codes
    counts     requests under way and counted; tells the listeners when one is over
    lines      a record as a log line
    redaction  secrets out of whatever is logged
    bodies     requests and answers in the log, where the operator wants them
    metrics    /metrics
    tracing    OpenTelemetry spans (the extra `qproxy[otel]`)

Facts flow one way: server and relay fill in the record, `Counts.finished` hands it on.
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
    "TracerProtocol",
    "RequestCounters",
    "FailedAttempt",
    "LogFormatter",
    "RequestRecord",
    "RelayRecord",
    "ToolRunRecord",
    "TraceProtocol",
]
