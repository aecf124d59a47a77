"""The cause of a failure is in the log line, the ledger's row, and the request's page."""

import logging

import pytest

from qproxy.dashboard import summaries
from qproxy.emulator import FAULTS, Emulator, ScriptedReply
from qproxy.emulator.faults import DONE, chunk, json_reply
from tests.helpers import HELLO, MODEL, accounts, world

SECRET = "opaque-account-key-1"
LOST = json_reply({"error": {"message": f"the key {SECRET} is unknown", "code": "invalid_api_key"}}, 401)
LATE = json_reply({"error": {"message": "the key has expired", "code": "invalid_api_key"}}, 401)


def lines(caplog):
    """Return the log lines of requests."""
    return [line for line in caplog.records if line.name == "qproxy.request"]


async def rows(it):
    """Return the ledger's rows, newest first."""
    return list(await it.server.state.ledger.recent_requests(10))


async def test_the_message_of_a_failure_is_everywhere(tmp_path, caplog):
    """The final error and every failed attempt have their messages, without the secrets of the settings."""
    caplog.set_level(logging.WARNING)
    settings = {
        "upstream_key": SECRET,
        "ledger": str(tmp_path / "ledger"),
        "accounts": accounts("one", "two"),
    }
    async with world(**settings) as it:
        it.emulator.script(LOST, LATE)
        status, _, body = await it.post(HELLO)
        (row,) = await rows(it)
        (line,) = lines(caplog)
    assert (status, line.levelno) == (502, logging.WARNING)
    assert row["message"] == line.fields["message"] == body["error"]["message"]
    assert row["causes"] == line.fields["causes"]
    story = " ".join(summaries.summarize(row))
    for text in (row["causes"], story):
        assert "the key [hidden] is unknown" in text
        assert "the key has expired" in text
    assert SECRET not in repr((row, line.fields))


async def test_a_failed_stream_is_a_warning(tmp_path, caplog):
    """A stream that fails after its head, with status 200, is a warning with the cause."""
    caplog.set_level(logging.INFO)
    async with world(ledger=str(tmp_path / "ledger")) as it:
        it.emulator.script(FAULTS["fault-end"][1])
        await it.stream(HELLO)
        await it.stream(HELLO)
        second, first = await rows(it)
        failed, fine = lines(caplog)
    assert (first["status"], first["outcome"], bool(first["message"])) == (200, "upstream_truncated", True)
    assert (second["outcome"], second["message"]) == ("ok", None)
    assert (failed.levelno, fine.levelno) == (logging.WARNING, logging.INFO)
    assert failed.fields["message"] == first["message"]


REJECTED = {
    "an invalid field": ({**HELLO, "messages": "hi"}, 400, MODEL),
    "a model that is no text": ({**HELLO, "model": "\ud800"}, 400, "?"),
    "no model": ({"messages": HELLO["messages"]}, 400, ""),
    "not JSON": (b"{", 400, ""),
    "no object": (b"[1]", 400, ""),
    "too large": (b'"' + b"x" * 200 + b'"', 413, ""),
}


@pytest.mark.parametrize(("body", "status", "model"), REJECTED.values(), ids=REJECTED)
async def test_a_rejection_by_qproxy_is_in_the_ledger(tmp_path, caplog, body, status, model):
    """A request that reached no account has a row with its reason, and with the model if it names one."""
    caplog.set_level(logging.INFO)
    async with world(ledger=str(tmp_path / "ledger"), max_body_bytes=150, models=[MODEL]) as it:
        it.emulator.script(
            json_reply({"error": {"message": "no such model", "code": "model_not_found"}}, 404)
        )
        received, _, reply = await it.post(body)
        assert received == status
        (row,) = await rows(it)
        (line,) = lines(caplog)
    assert (row["model"], row["status"], row["outcome"]) == (model, status, "error")
    assert row["message"] == reply["error"]["message"] == line.fields["message"]
    assert line.levelno == logging.INFO
    assert "The request reached no account." in summaries.summarize(row)


async def test_unauthenticated_requests_leave_no_row(tmp_path):
    """A request without a valid key, and one to another route, leave no row."""
    async with world(ledger=str(tmp_path / "ledger"), api_keys=["sk-client-key"]) as it:
        assert (await it.post(HELLO))[0] == 401
        headers = [(b"authorization", b"Bearer sk-client-key")]
        assert (await it.get("/v1/responses/resp_nothing", headers))[0] == 404
        assert await rows(it) == []


async def test_tool_rounds_are_no_retries(tmp_path, caplog):
    """A response in two rounds is one attempt and two rounds, in the line, the row and the page."""
    caplog.set_level(logging.INFO)

    def look() -> str:
        """Look."""
        return "seen"

    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    emulator = Emulator()
    emulator.script(ScriptedReply((chunk({"tool_calls": [call]}), chunk({}, "tool_calls") + DONE)))
    async with world(ledger=str(tmp_path / "ledger"), emulator=emulator, functions=[look]) as it:
        assert (await it.post({**HELLO, "stream": False}))[0] == 200
        (row,) = await rows(it)
        (line,) = lines(caplog)
    assert (row["attempts"], row["rounds"]) == (1, 2)
    assert (line.fields.get("attempts"), line.fields["rounds"]) == (None, 2)
    assert "in 2 rounds of tools." in " ".join(summaries.summarize(row))
