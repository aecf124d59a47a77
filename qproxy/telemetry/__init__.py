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

from qproxy.telemetry.counters import Counts
from qproxy.telemetry.log_format import Formatter
from qproxy.telemetry.records import BeginsTraces, Failure, Record, Story, ToolRun, Trace

__all__ = ["BeginsTraces", "Counts", "Failure", "Formatter", "Record", "Story", "ToolRun", "Trace"]
