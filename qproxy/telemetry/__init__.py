"""Telemetry: one record per request, and its log line, metrics and spans.

    records    the facts of one request: names, numbers and codes
    counters   requests in flight and counts of finished ones; notifies listeners
    log_format a record as a log line
    response_tokens  the tokens of an upstream response, reported or estimated
    redaction  removes secrets from logged text
    fragments  redacts secrets split across the events of a stream
    body_log   request and response bodies in the log (setting log_bodies)
    metrics    /metrics
    tracing    OpenTelemetry spans (the extra `qproxy[otel]`)
    audit      who changed keys, accounts, settings and stored data
    peers      queries between the workers of one server

Data flows one way: server and relay fill in the record, `RequestCounters.request_finished` passes it on.
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
from qproxy.telemetry.response_tokens import ResponseTokens

__all__ = [
    "FailedAttempt",
    "LogFormatter",
    "RelayRecord",
    "RequestCounters",
    "RequestRecord",
    "ResponseTokens",
    "ToolRunRecord",
    "TraceProtocol",
    "TracerProtocol",
]
