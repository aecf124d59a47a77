"""Factory of finished request records."""

from qproxy.telemetry import FailedAttempt, RelayRecord, RequestRecord, ToolRunRecord
from qproxy.wire.events import Usage


def record(**changes):
    """Return the record of a streamed request of bob's that succeeded on the second attempt."""
    relay_record = RelayRecord(
        model="qwen3.7-plus",
        served_model="qwen3.7-plus",
        account="one",
        attempts=2,
        failures=[FailedAttempt("two", "upstream_error")],
        upstream_status=200,
        upstream_request_id="up-1",
        rules=("merge_system_messages", "reasoning_effort"),
        usage=Usage(100, 21, 121, {"cached_tokens": 40}, {"reasoning_tokens": 5}),
        upstream_seconds=1.4,
    )
    relay_record.repairs.update({"closer_missing": 2})
    made = RequestRecord(
        "req_1",
        "POST",
        "/v1/chat/completions",
        "/chat/completions",
        operation="chat",
        key="bob",
        started_at=100.0,
        ended_at=101.5,
        status=200,
        stream=True,
        outcome="ok",
        first_byte=0.4,
        response_started=1.4,
        finish_reason="stop",
        chunks=30,
        tools=[ToolRunRecord("clock", True, 0.02), ToolRunRecord("clock", False, 0.2)],
        relay=relay_record,
    )
    for name, value in changes.items():
        setattr(made if hasattr(made, name) else relay_record, name, value)
    return made
