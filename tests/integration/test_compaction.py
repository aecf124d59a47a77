"""Compaction through the Responses API: requested, on its own, and within a response."""

import json
from typing import Any

import pytest
import trio
from openai.types.responses import Response, ResponseCompactionItem, ResponseUsage
from openai.types.responses.input_token_count_response import InputTokenCountResponse

from qproxy.bootstrap.app import build_server
from qproxy.bootstrap.reload import rebuild_state
from qproxy.config import Config
from qproxy.emulator import Emulator, ScriptedReply
from qproxy.emulator.faults import DONE, HANG, chunk
from qproxy.wire.compaction import HEADER, PROMPT
from tests.helpers import MODEL, accounts, world
from tests.integration.test_openai_sdk import run, sdk
from tests.openai_types import judge, refusal
from tests.wire.endpoints.responses.test_encoder import read, short

PATH = "/v1/responses"
TRIGGER = {"type": "compaction_trigger"}
RULES = {"role": "developer", "content": "Answer in French."}
QUESTION = {"role": "user", "content": "What is the capital of France?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "Paris"}
TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}
HISTORY = [RULES, QUESTION, CALL, RESULT]
LONG = {"role": "user", "content": "word " * 3000}


def summary_of(text, **usage):
    """Return a scripted reply with a text and its usage."""
    counts = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110, **usage}
    return ScriptedReply((chunk({"content": text}), chunk(finish="stop", usage=counts), DONE))


async def create(w, status=200, path=PATH, **body):
    received, _, answer = await w.post({"model": MODEL, **body}, path)
    assert received == status, answer
    return answer


async def stream(w, **body):
    raw = json.dumps({"model": MODEL, "stream": True, **body}).encode()
    fields = [(b"content-type", b"application/json")]
    async with w.client.request("POST", PATH, headers=fields, body=raw) as response:
        assert response.status == 200
        return read((await response.read()).decode())


def prompts(w):
    return [seen.body["messages"] for seen in w.emulator.requests]


async def test_a_trigger_is_answered_by_exactly_one_compaction():
    """The stream has one item, a compaction, and `response.completed` with usage, as codex requires."""
    async with world() as w:
        w.emulator.script(summary_of("He asks for the capital; it is Paris."))
        events = await stream(w, input=[*HISTORY, TRIGGER], tools=[TOOL], instructions="Be brief.")
        assert short(events) == ["output_item.added", "compaction.compacting", "output_item.done"]
        done, last = events[-2], events[-1]
        assert last["type"] == "response.completed"
        assert judge(Response, last["response"]).usage.total_tokens == 110
        assert last["response"]["output"] == [done["item"]]
        assert judge(ResponseCompactionItem, done["item"]).encrypted_content
        assert "Paris" not in done["item"]["encrypted_content"]
        (sent,) = prompts(w)
        assert sent[-1] == {"role": "user", "content": PROMPT}
        assert sent[-2]["content"] == "Paris"
        assert "tools" not in w.emulator.requests[0].body
        assert w.sound()


async def test_a_compaction_becomes_the_conversation():
    """Fed back, it stands for the model's own items before it; the client's messages stay."""
    async with world() as w:
        w.emulator.script(summary_of("It is Paris."))
        (item,) = (await create(w, input=[*HISTORY, TRIGGER]))["output"]
        await create(w, input=[*HISTORY, item, {"role": "user", "content": "And of Spain?"}])
        assert prompts(w)[1] == [
            {"role": "system", "content": "Answer in French."},
            QUESTION,
            {"role": "user", "content": HEADER + "It is Paris."},
            {"role": "user", "content": "And of Spain?"},
        ]
        w.emulator.script(summary_of("Paris, and Madrid."))
        (again,) = (await create(w, input=[QUESTION, item, TRIGGER]))["output"]
        await create(w, input=[item, {**again, "type": "compaction_summary"}, QUESTION])
        assert prompts(w)[3] == [{"role": "user", "content": HEADER + "Paris, and Madrid."}, QUESTION]


FOREIGN = {
    "a foreign one": {"encrypted_content": "gAAAAABn"},
    "an altered one": {"encrypted_content": "qproxy-c1.AAAA"},
    "none": {},
    "no text": {"encrypted_content": 5},
}


@pytest.mark.parametrize("fields", FOREIGN.values(), ids=FOREIGN)
async def test_a_foreign_compaction_is_rejected(fields):
    """Content that this server did not seal is a 400 that names the field, whole and streamed."""
    async with world() as w:
        for streamed in (False, True):
            body = await create(w, 400, stream=streamed, input=[QUESTION, {"type": "compaction", **fields}])
            assert body["error"]["param"] == "input[1].encrypted_content"
            refusal(body)
        assert not w.emulator.requests


async def test_a_trigger_is_the_last_item():
    """Anywhere else it is a 400 that names it, and without a conversation there is nothing to compact."""
    async with world() as w:
        body = await create(w, 400, input=[TRIGGER, QUESTION])
        assert body["error"]["param"] == "input[0]"
        assert (await create(w, 400, input=[TRIGGER]))["error"]["code"] == "empty_array"


async def test_a_compaction_alone():
    """`/responses/compact` returns the client's messages and the compaction, for the conversation."""
    async with world() as w:
        w.emulator.script(summary_of("It is Paris."))
        body = await create(w, path=f"{PATH}/compact", input=HISTORY, instructions="Be brief.")
        assert (body["object"], set(body)) == (
            "response.compaction",
            {"id", "object", "created_at", "output", "usage"},
        )
        assert [(item["type"], item.get("role")) for item in body["output"]] == [
            ("message", "developer"),
            ("message", "user"),
            ("compaction", None),
        ]
        judge(ResponseCompactionItem, body["output"][-1])
        assert judge(ResponseUsage, body["usage"]).total_tokens == 110
        await create(w, input=[*body["output"], {"role": "user", "content": "And of Spain?"}])
        assert prompts(w)[1][2]["content"] == HEADER + "It is Paris."
        assert (await create(w, 400, path=f"{PATH}/compact"))["error"]["param"] == "input"
        missing = await create(w, 400, path=f"{PATH}/compact", previous_response_id="resp_no")
        assert missing["error"]["code"] == "previous_response_not_found"


async def test_a_stored_conversation_goes_on_from_its_compaction():
    """A response to a trigger is stored, and the next one has the summary instead of the answers."""
    async with world() as w:
        first = await create(w, input=[QUESTION])
        w.emulator.script(summary_of("It is Paris."))
        compacted = await create(w, input=[TRIGGER], previous_response_id=first["id"])
        await create(w, input="And of Spain?", previous_response_id=compacted["id"])
        assert prompts(w)[2] == [
            QUESTION,
            {"role": "user", "content": HEADER + "It is Paris."},
            {"role": "user", "content": "And of Spain?"},
        ]
        w.emulator.script(summary_of("Paris."))
        alone = await create(w, path=f"{PATH}/compact", previous_response_id=first["id"])
        assert [item["type"] for item in alone["output"]] == ["message", "compaction"]


MANAGED = {"context_management": [{"type": "compaction", "compact_threshold": 1000}]}


async def test_a_long_conversation_is_compacted_within_its_response():
    """Above the threshold the response begins with a compaction, and its usage is that of both parts."""
    async with world() as w:
        asked = [RULES, LONG, CALL, RESULT, QUESTION]
        w.emulator.script(summary_of("Many words."), summary_of("Paris.", prompt_tokens=7, total_tokens=17))
        events = await stream(w, input=asked, **MANAGED)
        assert short(events)[:4] == [
            "output_item.added",
            "compaction.compacting",
            "output_item.done",
            "output_item.added",
        ]
        response = judge(Response, events[-1]["response"])
        assert [item.type for item in response.output] == ["compaction", "message"]
        usage = response.usage
        assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (107, 20, 127)
        first, second = prompts(w)
        assert first[-1]["content"] == PROMPT
        assert first[-2]["role"] == "tool", "the question is not summarized"
        compacted = [
            {"role": "system", "content": "Answer in French."},
            {"role": "user", "content": HEADER + "Many words."},
            QUESTION,
        ]
        assert second == compacted
        w.emulator.clear()
        output = events[-1]["response"]["output"]
        await create(w, input=[*asked, *output, {"role": "user", "content": "And of Spain?"}], **MANAGED)
        assert prompts(w)[2] == [
            *compacted,
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Spain?"},
        ]
        assert w.sound()


async def test_a_short_conversation_is_not_compacted():
    """Below the threshold, and where there is nothing before the question, the response is as ever."""
    async with world() as w:
        for asked in ([QUESTION], [LONG]):
            whole = await create(w, input=asked, **MANAGED)
            assert [item["type"] for item in whole["output"]] == ["message"]
        low = {"context_management": [{"type": "compaction"}]}
        whole = await create(w, input=[LONG, QUESTION], **low)
        assert [item["type"] for item in whole["output"]] == ["message"], "far from the model's context"
        body = await create(w, 400, input="hi", context_management=[{"type": "clear"}])
        assert body["error"]["param"] == "context_management[0].type"


def limited():
    return Emulator(context=2000)


async def test_a_stored_conversation_that_does_not_fit_is_compacted_once():
    """With `compact_on_overflow`, what fits of a rejected prompt is summarized; otherwise it is a 400."""
    for on, status in ((True, 200), (False, 400)):
        async with world(emulator=limited(), compact_on_overflow=on) as w:
            first = await create(w, input=[{"role": "user", "content": "word " * 1500}])
            asked = [{"role": "user", "content": "more " * 800}, QUESTION]
            second = await create(w, status, input=asked, previous_response_id=first["id"])
            if on:
                assert [item["type"] for item in second["output"]] == ["compaction", "message"]
                then = await create(w, input="Go on", previous_response_id=second["id"])
                assert [item["type"] for item in then["output"]] == ["message"]
            else:
                assert second["error"]["code"] == "context_length_exceeded"
            assert w.sound()


async def test_truncation_drops_the_oldest_messages():
    """With `truncation: auto` a prompt that does not fit is sent without its oldest messages."""
    words = [{"role": "user", "content": f"number {n} " * 400} for n in range(5)]
    async with world(emulator=limited()) as w:
        asked = [RULES, *words, QUESTION]
        whole = await create(w, input=asked, truncation="auto")
        assert whole["status"] == "completed"
        sent = prompts(w)[-1]
        assert sent[0]["content"] == "Answer in French."
        assert sent[-2:] == [words[-1], QUESTION]
        assert len(sent) < 7
        assert (await create(w, 400, input=asked))["error"]["code"] == "context_length_exceeded"
        too_long = [{"role": "user", "content": "word " * 3000}]
        body = await create(w, 400, input=too_long, truncation="auto")
        assert body["error"]["code"] == "context_length_exceeded"


async def test_a_compaction_that_does_not_fit_summarizes_the_newest_messages():
    """The request for the summary itself is shortened until the model takes it."""
    words = [{"role": "user", "content": f"number {n} " * 400} for n in range(5)]
    async with world(emulator=limited()) as w:
        whole = await create(w, input=[RULES, *words, TRIGGER])
        assert [item["type"] for item in whole["output"]] == ["compaction"]
        sent = prompts(w)[-1]
        assert sent[0]["content"] == "Answer in French."
        assert sent[-2:] == [words[-1], {"role": "user", "content": PROMPT}]


async def test_a_compaction_of_one_long_result_cuts_it():
    """What cannot be dropped, a result or a pasted text, is cut in its middle for the summary."""
    async with world(emulator=limited(), compact_on_overflow=True) as w:
        first = await create(w, input=[QUESTION], tools=[TOOL])
        long = {**RESULT, "output": "begin " + "word " * 9000 + "end"}
        asked = {"input": [CALL, long], "tools": [TOOL], "previous_response_id": first["id"]}
        whole = await create(w, **asked)
        assert whole["output"][0]["type"] == "compaction"
        cut = next(m["content"] for m in prompts(w)[-2] if m["role"] == "tool")
        assert (cut[:6], cut[-4:], "characters left out" in cut) == ("begin ", " end", True)
        assert prompts(w)[-1] == [{"role": "user", "content": prompts(w)[-1][0]["content"]}, QUESTION]


async def test_items_that_change_requests_stay_in_effect():
    """Tools and settings of a compacted conversation are sealed with the summary."""
    update = {"type": "configuration_update", "reasoning": {"effort": "low"}}
    tools = {"type": "additional_tools", "role": "developer", "tools": [TOOL]}
    async with world() as w:
        (item,) = (await create(w, input=[tools, QUESTION, update, TRIGGER]))["output"]
        whole = await create(
            w, input=[item, {"role": "user", "content": "Hello"}], reasoning={"effort": "high"}
        )
        assert whole["reasoning"]["effort"] == "low"
        assert [tool["name"] for tool in whole["tools"]] == ["look_up"]
        later = {**update, "reasoning": {"effort": "medium"}}
        whole = await create(w, input=[update, item, later, {"role": "user", "content": "Hello"}])
        assert whole["reasoning"]["effort"] == "medium"


FAILURES = {
    "empty": (summary_of(""), "compaction_failed"),
    "truncated": (
        ScriptedReply((chunk({"content": "It is"}), chunk(finish="length"), DONE)),
        "compaction_failed",
    ),
    "broken": (ScriptedReply((chunk({"content": "It is"}),)), "upstream_error"),
}


@pytest.mark.parametrize("managed", [False, True])
@pytest.mark.parametrize(("reply", "code"), FAILURES.values(), ids=FAILURES)
async def test_a_bad_summary_is_an_error(reply, code, managed):
    """A summary that is empty, truncated or broken fails the response; it never becomes a compaction."""
    asked = {"input": [LONG, QUESTION], **MANAGED} if managed else {"input": [LONG, TRIGGER]}
    async with world() as w:
        w.emulator.script(reply)
        events = await stream(w, **asked)
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert events[-1]["code"] == code
        assert not [event for event in events if event["type"] == "response.output_item.done"]
        w.emulator.script(reply)
        body = await create(w, 502, **asked)
        assert body["error"]["code"] == code
        assert w.sound()


@pytest.mark.parametrize("asked", [{"input": [LONG, TRIGGER]}, {"input": [LONG, QUESTION], **MANAGED}])
async def test_a_disconnect_cancels_the_summary(asked):
    """A client that leaves while the summary is being written frees the upstream at once."""
    async with world() as w:
        w.emulator.script(ScriptedReply((chunk({"content": "It"}), HANG)))
        raw = json.dumps({"model": MODEL, "stream": True, **asked}).encode()
        fields = [(b"content-type", b"application/json")]
        async with w.client.request("POST", PATH, headers=fields, body=raw) as response:
            assert b"response.created" in await response.receive()
        with trio.fail_after(0.1):
            await w.emulator.requests[-1].disconnected.wait()
        assert w.sound()


async def test_a_second_part_that_fails_is_reported():
    """After the summary, an error of the response itself ends the stream, and the summary's item stays."""
    async with world() as w:
        w.emulator.script(summary_of("Many words."), ScriptedReply((b"{}",), 400, "application/json"))
        events = await stream(w, input=[LONG, QUESTION], **MANAGED)
        assert [event["type"] for event in events[-2:]] == ["response.failed", "error"]
        assert [item["type"] for item in events[-2]["response"]["output"]] == ["compaction"]
        assert w.sound()


async def test_tools_of_this_server_run_after_a_compaction():
    """The response goes on with the server's tools, and its usage is that of all rounds."""

    async def clock() -> str:
        """Return the time."""
        return "noon"

    async with world(functions=[clock]) as w:
        call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        counts = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        calling = ScriptedReply(
            (chunk({"tool_calls": [call]}), chunk(finish="tool_calls", usage=counts), DONE)
        )
        w.emulator.script(summary_of("Many words."), calling, summary_of("It is noon."))
        whole = await create(w, input=[LONG, QUESTION], **MANAGED)
        assert [item["type"] for item in whole["output"]] == ["compaction", "mcp_call", "message"]
        assert whole["usage"]["total_tokens"] == 110 + 2 + 110
        assert w.sound()


@pytest.mark.parametrize("client_tools", [[], [TOOL]])
async def test_max_tool_calls(client_tools):
    """Calls of this server's tools beyond the limit do not run; the model gets an error for them."""
    ran = []

    async def clock() -> str:
        """Return the time."""
        ran.append(1)
        return "noon"

    function = {"name": "clock", "arguments": "{}"}
    calls = [{"index": n, "id": f"c{n}", "type": "function", "function": function} for n in range(3)]
    calling = ScriptedReply((chunk({"tool_calls": calls}), chunk(finish="tool_calls"), DONE))
    async with world(functions=[clock]) as w:
        w.emulator.script(calling, calling if client_tools else summary_of("Noon."), summary_of("Noon."))
        whole = await create(w, input=[QUESTION], max_tool_calls=2, tools=client_tools)
        assert (len(ran), whole["max_tool_calls"]) == (2, 2)
        outputs = [message["content"] for message in prompts(w)[-1] if message["role"] == "tool"]
        assert ["max_tool_calls" in output for output in outputs][:3] == [False, False, True]
        assert ("tools" in w.emulator.requests[1].body) is bool(client_tools)
        assert whole["output"][-1]["type"] == "message"
        assert w.sound()


async def test_the_ledger_gets_the_tokens_of_both_parts():
    """One request with the tokens of the summary and of the response."""
    async with world() as w:
        records: list[Any] = []
        w.server.middleware.listeners += (records.append,)
        w.emulator.script(summary_of("Many words."), summary_of("Paris."))
        await create(w, input=[LONG, QUESTION], **MANAGED)
        (record,) = records
        assert (record.tokens(), record.relay.rounds, record.relay.retries) == ((200, 20), 2, 0)


async def test_keys_survive_a_restart_and_a_reload(tmp_path):
    """A compaction opens after both; without a key file only after a reload."""
    file: dict[str, Any] = {"compaction_key_file": str(tmp_path / "data" / "compaction.key")}
    for settings, status in ((file, 200), ({}, 400)):
        async with world(**settings) as w:
            (item,) = (await create(w, input=[QUESTION, TRIGGER]))["output"]
            before = Config(accounts=accounts("one"), **settings)
            await w.server.reconfigure(rebuild_state(before, before, w.server.state))
            await create(w, input=[item, QUESTION])
        async with world(**settings) as w:
            await create(w, status, input=[item, QUESTION])
    assert (tmp_path / "data" / "compaction.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "data" / "compaction.key").write_text("short")
    with pytest.raises(Exception, match="compaction_key_file"):
        build_server(Config(accounts=accounts("one"), **file))


async def test_shared_keys_open_on_every_machine(tmp_path):
    """Two servers with one `shared_state_key_file` open each other's items."""
    keys = tmp_path / "keys"
    keys.write_text("c2hhcmVkLXNlY3JldC1vZi0zMi1ieXRlcy1oZXJlISE=\n")
    async with world(shared_state_key_file=str(keys)) as w:
        (item,) = (await create(w, input=[QUESTION, TRIGGER]))["output"]
    async with world(shared_state_key_file=str(keys)) as w:
        await create(w, input=[item, QUESTION])


async def test_input_tokens():
    """The estimate of a request's tokens needs no account, and counts the stored conversation too."""
    path = f"{PATH}/input_tokens"
    async with world() as w:
        short_one = judge(InputTokenCountResponse, await create(w, path=path, input="hi"))
        long_one = judge(InputTokenCountResponse, await create(w, path=path, input=[LONG], tools=[TOOL]))
        assert 0 < short_one.input_tokens < 20 < 2500 < long_one.input_tokens < 4000
        assert not w.emulator.requests
        first = await create(w, input=[LONG])
        continued = await create(w, path=path, previous_response_id=first["id"])
        assert continued["input_tokens"] > 2500
        assert (await create(w, 400, path=path, input=5))["error"]["param"] == "input"


async def test_the_official_client():
    """openai-python compacts, continues from the compaction, and counts."""
    question = {"role": "user", "content": "Hello"}

    def use(client):
        compacted = client.responses.compact(model=MODEL, input=[question])
        items = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
        answer = client.responses.create(model=MODEL, input=[*items, question])
        counted = client.responses.input_tokens.count(model=MODEL, input=[question])
        with client.responses.stream(model=MODEL, input=[question, TRIGGER]) as events:
            kinds = [event.type for event in events]
        return compacted.output[-1].type, answer.output_text, counted.input_tokens, kinds

    async with sdk() as (client, _):
        kind, text, tokens, kinds = await run(use, client)
    assert (kind, tokens > 0) == ("compaction", True)
    assert "Hello" in text
    assert "response.compaction.compacting" in kinds
