"""One log line per request: every field as JSON, aligned columns as text."""

import json
import logging
import sys

import pytest

from qproxy.telemetry import LogFormatter, RequestCounters, RequestRecord
from qproxy.telemetry.counters import notify
from qproxy.wire.tool_calls.repairs import REPAIRS
from tests.telemetry.factories import record


def _formatted(as_json, fields, worker=None):
    log_record = logging.makeLogRecord(
        {"name": "qproxy.request", "msg": "/v1", "levelname": "INFO", "created": 0.0, "msecs": 0}
    )
    log_record.fields = fields
    return LogFormatter(as_json=as_json, worker=worker).format(log_record)


def test_the_json_line():
    """The JSON line has the request, its account, time, tokens and repairs."""
    line = json.loads(_formatted(True, record().to_json()))
    assert line == {
        "time": "1970-01-01T00:00:00.000Z",
        "level": "info",
        "logger": "qproxy.request",
        "request_id": "req_1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "ok",
        "key": "bob",
        "model": "qwen3.7-plus",
        "account": "one",
        "stream": True,
        "finish_reason": "stop",
        "attempts": 2,
        "failures": "two:upstream_error",
        "prompt_tokens": 100,
        "completion_tokens": 21,
        "first_byte_ms": 400.0,
        "total_ms": 1500.0,
        "overhead_ms": 100.0,
        "upstream_request_id": "up-1",
        "rules": "merge_system_messages,reasoning_effort",
        "repairs": "closer_missing:2",
        "tools": "clock:1,clock!:1",
    }


def test_the_text_line():
    """Status, time, tokens, model, account and place are in columns; other fields follow by name."""
    line = _formatted(False, record().to_json())
    head, _, rest = line.partition("  request_id=")
    assert head == (
        "00:00:00.000Z 200 ok              1.50s (400ms)    100→21 tok       qwen3.7-plus        "
        "bob → one  POST /v1/chat/completions (stream)"
    )
    assert rest.startswith("req_1 finish_reason=stop attempts=2 failures=two:upstream_error")


def test_a_request_without_a_model():
    """A line without a model has the same columns."""
    bare = record(
        status=404,
        outcome="error",
        error="unknown_url",
        key=None,
        first_byte=None,
        stream=False,
        finish_reason=None,
        tools=[],
    )
    bare.relay = type(bare.relay)()
    line = _formatted(False, bare.to_json())
    assert line.split() == [
        "00:00:00.000Z", "404", "error", "1.50s", "-", "-", "POST", "/v1/chat/completions",
        "request_id=req_1", "error=unknown_url",
    ]  # fmt: skip


def test_lines_of_a_worker():
    """One of several workers adds its number to request lines and others."""
    assert json.loads(_formatted(True, record().to_json(), worker=2))["worker"] == 2
    assert _formatted(False, record().to_json(), worker=2).endswith(" worker=2")
    assert _formatted(False, {"message": "x"}, worker=2).endswith(" worker=2")


def test_text_of_a_client_is_escaped():
    """A path or a model with control characters neither breaks the line nor reaches the terminal; long ones
    are truncated."""
    fields = record(path="/v1/\n[fake] \x1b[31m" + "x" * 1000, model="a\r\nb").to_json()
    line = _formatted(False, fields)
    assert line.isprintable()
    assert len(line) < 700
    assert json.loads(_formatted(True, fields))["model"] == "a\r\nb"


ENDS = "\x0b\x0c\x1c\x1d\x1e\x7f\x80\x85\x9b\x9f\u2028\u2029\u202e\u2066\ufeff\ud800\U000e0041"
"""Characters that end a line, control a terminal, reverse a line, or cannot be encoded."""


@pytest.mark.parametrize("char", ENDS, ids=ascii)
def test_no_character_breaks_a_line(char):
    """Each is escaped in JSON and replaced in text, in messages, fields and exceptions."""
    text = f"a{char}b"
    fields = {**record().to_json(), "model": text}
    line = _formatted(True, fields)
    assert json.loads(line)["model"] == text
    assert line.isprintable()
    assert _formatted(False, fields).isprintable()
    try:
        raise ValueError(f"a\n21:40:12.310Z 200 ok{char}")
    except ValueError:
        log_record = logging.makeLogRecord(
            {"name": "x", "msg": text, "levelname": "INFO", "exc_info": sys.exc_info()}
        )
    line = LogFormatter(as_json=True).format(log_record)
    assert line.isprintable()
    assert json.loads(line)["message"] == text
    first, *lines = LogFormatter(as_json=False).format(log_record).split("\n")
    assert all(one.isprintable() for one in (first, *lines))
    assert all(one.startswith("  ") for one in lines)


def test_a_failing_listener(caplog):
    """An error in one listener is logged and does not affect the others."""
    counts = RequestCounters()
    received: list[RequestRecord] = []

    def fail(record):
        raise RuntimeError("disk")

    log_record = record()
    counts.request_started(log_record)
    assert counts.in_flight == {"req_1": log_record}
    counts.request_finished(log_record)
    notify([fail, received.append], log_record)
    assert received == [log_record]
    assert not counts.in_flight
    assert "RuntimeError: disk" in caplog.text


def test_repairs_are_logged_at_debug_level(caplog):
    """With debug on, a finished request logs each kind of repair once, without text of its response."""
    log_record = record()
    log_record.relay.repairs.update({"id_missing": 1})
    with caplog.at_level(logging.DEBUG, "qproxy.repairs"):
        RequestCounters().request_finished(log_record)
    repair_lines = [line.fields for line in caplog.records if line.name == "qproxy.repairs"]
    assert [(line["repair"], line["count"], line["meaning"]) for line in repair_lines] == [
        (kind, count, REPAIRS[kind]) for kind, count in (("closer_missing", 2), ("id_missing", 1))
    ]
    assert all(line["request_id"] == "req_1" for line in repair_lines)
    caplog.clear()
    with caplog.at_level(logging.INFO, "qproxy.repairs"):
        RequestCounters().request_finished(log_record)
    assert not [line for line in caplog.records if line.name == "qproxy.repairs"]
