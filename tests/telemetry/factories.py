"""A finished record to look at."""

from qproxy.telemetry import FailedAttempt, RelayRecord, RequestRecord, ToolRunRecord
from qproxy.wire.events import Usage


def record(**changes):
    """A streamed request of bob's that was answered at the second try."""
    story = RelayRecord(
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
    story.repairs.update({"closer_missing": 2})
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
        relay=story,
    )
    for name, value in changes.items():
        setattr(made if hasattr(made, name) else story, name, value)
    return made
