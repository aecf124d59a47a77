"""A finished record to look at."""

from qproxy.telemetry import Failure, Record, Story, ToolRun
from qproxy.wire.events import Usage


def record(**changes):
    """A streamed request of bob's that was answered at the second try."""
    story = Story(
        model="qwen3.7-plus",
        served_model="qwen3.7-plus",
        account="one",
        tries=2,
        failures=[Failure("two", "upstream_error")],
        upstream_status=200,
        upstream_request_id="up-1",
        rules=("one_system", "effort"),
        usage=Usage(100, 21, 121, {"cached_tokens": 40}, {"reasoning_tokens": 5}),
        upstream_seconds=1.4,
    )
    story.repairs.update({"closer_missing": 2})
    made = Record(
        "req_1",
        "POST",
        "/v1/chat/completions",
        "/chat/completions",
        key="bob",
        began=100.0,
        ended=101.5,
        status=200,
        stream=True,
        outcome="ok",
        first_byte=0.4,
        answered=1.4,
        finish="stop",
        pieces=30,
        tools=[ToolRun("clock", True, 0.02), ToolRun("clock", False, 0.2)],
        story=story,
    )
    for name, value in changes.items():
        setattr(made if hasattr(made, name) else story, name, value)
    return made
