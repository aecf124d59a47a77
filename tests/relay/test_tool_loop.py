"""Responses in rounds: the model calls this server's tools, and the client receives one response."""

import json
import re
from dataclasses import replace

import pytest
import trio
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qproxy import tools
from qproxy.backends.local.tool_rounds import MemoryToolRounds
from qproxy.bootstrap import tools as tool_setup
from qproxy.config import Config
from qproxy.config.tools import ToolRuleConfig
from qproxy.emulator import ScriptedReply
from qproxy.emulator.faults import DONE, chunk, event, json_reply
from tests.helpers import HELLO, MODEL, accounts, frames, h1, h2c, world

ASK: dict = {"model": MODEL, "messages": [{"role": "user", "content": "What is 2 and 3?"}]}
THEIRS = {
    "type": "function",
    "function": {"name": "theirs", "parameters": {"type": "object", "properties": {}}},
}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4},
}


@tools.function
async def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


@tools.function
def shout(text: str) -> str:
    """Say it loudly."""
    return text.upper()


@tools.function
async def broken() -> str:
    """Fail."""
    raise RuntimeError("secret words of the client")


def calling(*calls, text=None, thought=None, finish="tool_calls", usage=USAGE):
    """Return a model's round that calls tools, given as (name, arguments)."""
    steps = [chunk({"role": "assistant", "content": ""})]
    steps += [chunk({"reasoning_content": thought})] if thought else []
    steps += [chunk({"content": text})] if text else []
    for index, (name, arguments) in enumerate(calls):
        arguments_text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        head = {"name": name, "arguments": ""}
        steps.append(
            chunk(
                {"tool_calls": [{"index": index, "id": f"up_{index}", "type": "function", "function": head}]}
            )
        )
        for part in (arguments_text[:3], arguments_text[3:]):
            steps.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    steps += [chunk({}, finish), event({"choices": [], "usage": usage}), DONE]
    return ScriptedReply(tuple(steps))


def saying(text, usage=USAGE):
    return calling(text=text, finish="stop", usage=usage)


def message(body) -> dict:
    return dict(body["choices"][0]["message"])


def chunks(text):
    data = frames(text)
    assert data[-1] == "[DONE]"
    parsed = [json.loads(item) for item in data[:-1]]
    for item in parsed:
        ChatCompletionChunk.model_validate(item, strict=True)
    return parsed


def deltas(text, key):
    return [c["delta"][key] for item in chunks(text) for c in item["choices"] if c["delta"].get(key)]


async def test_a_client_without_tools_gets_one_response():
    """The model calls qproxy's tool and reads its result; the client gets the text of both rounds and no
    call."""
    async with world(functions=[add]) as it:
        it.emulator.script(
            calling(("add", {"a": 2, "b": 3}), text="Let me see. ", thought="Sums."), saying("It is 5.")
        )
        status, headers, body = await it.post(ASK)
        assert status == 200
        ChatCompletion.model_validate(body, strict=True)
        assert message(body)["content"] == "Let me see. It is 5."
        assert message(body)["reasoning_content"] == "Sums."
        assert "tool_calls" not in message(body)
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["usage"]["total_tokens"] == 30
        assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
        assert headers["x-qproxy-tools"].startswith("add;ok=?1;ms=")
        first, second = it.emulator.requests
        assert [tool["function"]["name"] for tool in first.body["tools"]] == ["add"]
        call, result = second.body["messages"][-2:]
        assert call["content"] == "Let me see. "
        assert call["reasoning_content"] == "Sums."
        assert json.loads(call["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
        assert result == {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "5"}
        assert it.sound()


async def test_a_stream_has_the_deltas_of_every_round():
    """Deltas of every round are forwarded, qproxy's calls are comments, and one finish with the summed usage
    ends the stream."""
    async with world(functions=[add, shout]) as it:
        it.emulator.script(
            calling(("add", {"a": 2, "b": 3}), ("shout", {"text": "hi"}), text="One"),
            saying(" two", usage=None),
        )
        _, text = await it.stream({**ASK, "stream_options": {"include_usage": True}})
        assert deltas(text, "content") == ["One", " two"]
        assert deltas(text, "role") == ["assistant"]
        assert deltas(text, "tool_calls") == []
        finishes = [
            c["finish_reason"] for item in chunks(text) for c in item["choices"] if c["finish_reason"]
        ]
        assert finishes == ["stop"]
        assert chunks(text)[-1]["usage"]["total_tokens"] == 15
        assert ": tool add ok 0 ms\n\n" in text
        assert ": tool shout ok" in text
        results = {m["content"] for m in it.emulator.requests[1].body["messages"] if m["role"] == "tool"}
        assert results == {"5", "HI"}
        assert it.sound()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_can_request_the_executed_calls(stream):
    """`"qproxy": {"include": ["tools"]}` adds the calls, with arguments and output, to the last chunk or the
    body."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 2, "b": 3})), saying("5"))
        ask = {**ASK, "qproxy": {"include": ["tools"]}}
        final = chunks((await it.stream(ask))[1])[-1] if stream else (await it.post(ask))[2]
        (executed,) = final["qproxy"]["tools"]
        assert (executed["name"], executed["output"], executed["ok"]) == ("add", "5", True)
        assert "qproxy" not in it.emulator.requests[0].body


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_reported_in_the_order_of_their_calls(stream, autojump_clock):
    """The header, the comments and the report keep this order, whatever each call takes."""

    @tools.function
    async def wait(seconds: float) -> float:
        """Wait."""
        await trio.sleep(seconds)
        return seconds

    times = [3, 1, 2, 0, 5, 4]
    async with world(functions=[wait]) as it:
        it.emulator.script(calling(*[("wait", {"seconds": seconds}) for seconds in times]), saying("Done."))
        ask = {**ASK, "qproxy": {"include": ["tools"]}}
        if stream:
            _, text = await it.stream(ask)
            final, body = re.findall(r": tool wait ok (\d+) ms", text), chunks(text)[-1]
        else:
            _, headers, body = await it.post(ask)
            final = re.findall(r"wait;ok=\?1;ms=(\d+)", headers["x-qproxy-tools"])
        assert final == [f"{seconds}000" if seconds else "0" for seconds in times]
        assert [json.loads(executed["arguments"])["seconds"] for executed in body["qproxy"]["tools"]] == times


WRONG = {
    "arguments that do not fit": ("add", {"a": "two", "b": 3}, "Invalid arguments at $.a"),
    "an argument too few": ("add", {"a": 2}, "'b' is a required property"),
    "an argument too many": ("add", {"a": 2, "b": 3, "c": 4}, "Additional properties"),
    "not an object": ("add", "[1]", "must be a JSON object"),
    "not JSON": ("add", "{'a': 1}", "not valid JSON"),
    "nested too deeply": ("add", '{"a":' + "[" * 100 + "]" * 100 + "}", "nested more than 64 levels deep"),
    "huge": ("add", '{"a": "' + "x" * 300_000 + '"}', "longer than"),
    "no such tool": ("subtract", {}, "Unknown tool 'subtract'. Available tools: add, broken"),
    "a fault of the tool": ("broken", {}, "Error: the tool failed."),
}


@pytest.mark.parametrize(("name", "arguments", "expected_text"), WRONG.values(), ids=WRONG.keys())
async def test_a_failed_call_is_reported_to_the_model(name, arguments, expected_text, caplog):
    """A call that cannot be run gets an error that the model reads, and the response continues."""
    async with world(functions=[add, broken]) as it:
        it.emulator.script(calling((name, arguments)), saying("Sorry."))
        status, headers, body = await it.post(ASK)
        assert (status, message(body)["content"]) == (200, "Sorry.")
        result = it.emulator.requests[1].body["messages"][-1]
        assert result["role"] == "tool"
        assert expected_text in result["content"]
        assert len(result["content"]) < 1500
        if name != "subtract":
            assert headers["x-qproxy-tools"].startswith(f"{name};ok=?0")
        assert "secret words" not in caplog.text + result["content"]


async def test_a_slow_tool_is_stopped_alone(autojump_clock):
    """Calls of a round run in parallel, each with its own time limit."""
    started_at, ended = [], []

    async def slow(seconds: float) -> str:
        started_at.append(trio.current_time())
        try:
            await trio.sleep(seconds)
        finally:
            ended.append(trio.current_time())
        return "done"

    slow = tools.function(timeout=10.0)(slow)
    async with world(functions=[slow]) as it:
        it.emulator.script(calling(("slow", {"seconds": 5}), ("slow", {"seconds": 500})), saying("Done."))
        start = trio.current_time()
        assert (await it.post(ASK))[0] == 200
        assert started_at[0] == started_at[1]
        assert ended == [start + 5, start + 10]
        results = [m["content"] for m in it.emulator.requests[1].body["messages"][-2:]]
        assert results == ["done", "Error: The tool did not finish within 10 s (timeout) and was killed."]


async def test_keep_alive_comments_do_not_interrupt_a_tool(autojump_clock):
    """A tool that runs for a minute continues while comments keep the client's connection open."""
    runs = []

    @tools.function(timeout=100.0)
    async def long() -> str:
        runs.append(1)
        await trio.sleep(61)
        return "done"

    async with world(functions=[long], keep_alive_interval=15.0) as it:
        it.emulator.script(calling(("long", {}), text="Wait."), saying(" Done."))
        _, text = await it.stream(ASK)
        assert text.count(": keep-alive\n\n") == 4
        assert deltas(text, "content") == ["Wait.", " Done."]
        assert runs == [1]


async def test_no_account_is_leased_while_tools_run(autojump_clock):
    """The lease and the connection of a round are released before its tools run."""
    seen = []

    @tools.function
    async def look() -> str:
        seen.append(it.sound())
        return "ok"

    async with world(functions=[look], accounts=accounts("one", max_in_flight=1)) as it:
        it.emulator.script(calling(("look", {})), saying("ok"))
        assert (await it.post(ASK))[0] == 200
        assert seen == [True]


@pytest.mark.parametrize("client", [h1, h2c])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_cancels_running_tools(client, stream, autojump_clock):
    """Tools of a request are cancelled within 100 ms of the disconnect, streamed or not."""
    running, finished = trio.Event(), trio.Event()
    when = []

    @tools.function(timeout=1000.0)
    async def forever() -> str:
        running.set()
        try:
            await trio.sleep(900)
        finally:
            when.append(trio.current_time())
            finished.set()
        return ""

    async with world(functions=[forever]) as it:
        it.emulator.script(calling(("forever", {}), text="x"))
        async with client(it.app) as connection:
            body = json.dumps({**ASK, "stream": stream}).encode()
            await connection.send(
                "POST", "/v1/chat/completions", body, [("content-type", "application/json")]
            )
            await running.wait()
            disconnected_at = trio.current_time()
            await trio.aclose_forcefully(connection.stream)
            await finished.wait()
        assert when[0] - disconnected_at < 0.1
        await trio.testing.wait_all_tasks_blocked()
        assert it.sound()


async def test_the_request_timeout_ends_a_running_tool(autojump_clock):
    """A stream gets its error frame at client_request_timeout although a tool is still running."""

    @tools.function(timeout=1000.0)
    async def forever() -> str:
        await trio.sleep(900)
        return ""

    async with world(functions=[forever], client_request_timeout=30.0) as it:
        it.emulator.script(calling(("forever", {}), text="x"))
        _, text = await it.stream(ASK)
        assert json.loads(frames(text)[-1])["error"]["code"] == "request_timeout"
        it.emulator.script(calling(("forever", {})))
        status, _, body = await it.post(ASK)
        assert (status, body["error"]["code"]) == (504, "request_timeout")


async def test_the_last_round_has_no_tools():
    """A model that keeps calling gets one more request without tools, and its calls in that response are
    ignored."""
    async with world(functions=[add], max_tool_rounds=2) as it:
        again = calling(("add", {"a": 1, "b": 1}))
        it.emulator.script(again, again, calling(("add", {"a": 1, "b": 1}), text="Enough."))
        _, headers, body = await it.post(ASK)
        assert message(body)["content"] == "Enough."
        assert body["choices"][0]["finish_reason"] == "stop"
        assert ["tools" in seen.body for seen in it.emulator.requests] == [True, True, False]
        assert headers["x-qproxy-tools"].count("add;ok=?1") == 2
        ids = [c["id"] for m in it.emulator.requests[2].body["messages"] for c in m.get("tool_calls", ())]
        assert len(set(ids)) == 2


async def test_a_forced_tool_is_forced_once():
    """`tool_choice` that names qproxy's tool applies to the first round; otherwise the model could never
    answer."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 1, "b": 1})), saying("2"))
        choice = {"type": "function", "function": {"name": "add"}}
        request = {**ASK, "tools": [{"type": "qproxy", "name": "add"}], "tool_choice": choice}
        assert (await it.post(request))[0] == 200
        assert [seen.body.get("tool_choice") for seen in it.emulator.requests] == [choice, "auto"]


async def test_a_truncated_call_is_not_run():
    """A round that ends with `length` ends the response, since its call is incomplete."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", '{"a": 1'), text="So ", finish="length"))
        _, headers, body = await it.post(ASK)
        assert body["choices"][0]["finish_reason"] == "length"
        assert message(body)["content"] == "So "
        assert "x-qproxy-tools" not in headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_in_a_later_round_reaches_the_client(stream, autojump_clock):
    """An upstream that fails in a later round gives a whole response its status and a stream its error
    frame."""
    refusal = json_reply({"error": {"message": "no", "code": "invalid_parameter_error"}}, 400)
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 1, "b": 1})), refusal)
        if stream:
            _, text = await it.stream(ASK)
            assert json.loads(frames(text)[-1])["error"]["message"]
            assert "[DONE]" not in text
        else:
            status, _, body = await it.post(ASK)
            assert status == 400
            assert body["error"]["message"]
        assert it.sound()


async def test_each_round_has_its_own_retries(autojump_clock, caplog):
    """A busy upstream in the fourth round is retried as in the first."""
    async with world(functions=[add], max_tool_rounds=8) as it:
        again, busy = calling(("add", {"a": 1, "b": 1})), json_reply({"error": {"message": "busy"}}, 503)
        it.emulator.script(again, again, again, busy, saying("done"))
        with caplog.at_level("INFO", "qproxy.request"):
            status, _, body = await it.post(ASK)
        assert (status, message(body)["content"]) == (200, "done")
        fields = caplog.records[-1].fields
        assert (fields["attempts"], fields["rounds"], fields["tools"]) == (2, 4, "add:3")


MIXED = calling(
    ("add", {"a": 2, "b": 3}), ("theirs", {}), ("add", {"a": 1, "b": 1}), ("theirs", {"x": 1}), text="Both."
)


def next_request(reply, *results):
    """Return the client's next request, after its tools have run."""
    answers = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(reply["tool_calls"], results, strict=True)
    ]
    return {**ASK, "tools": [THEIRS], "messages": [*ASK["messages"], reply, *answers]}


async def test_a_mixed_turn_is_complete_for_the_model_only():
    """qproxy's calls run, the client's are sent without index gaps, and in the next request the model sees
    the whole turn."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 7, "b": 7}), text="First. "), MIXED)
        _, headers, body = await it.post({**ASK, "tools": [THEIRS]})
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        reply = message(body)
        assert reply["content"] == "First. Both."
        assert [call["function"]["name"] for call in reply["tool_calls"]] == ["theirs", "theirs"]
        assert headers["x-qproxy-tools"].count("ok=?1") == 3
        for _ in range(2):  # a client sends the whole history each time
            it.emulator.clear()
            it.emulator.script(saying("All."))
            assert message((await it.post(next_request(reply, "r1", "r2")))[2])["content"] == "All."
            sent = it.emulator.requests[-1].body["messages"]
            assert [m["role"] for m in sent] == [
                "user", "assistant", "tool", "assistant", "tool", "tool", "tool", "tool",
            ]  # fmt: skip
            assert [m["content"] for m in sent if m["role"] == "tool"] == ["14", "5", "2", "r1", "r2"]
            assert [m["content"] for m in sent if m["role"] == "assistant"] == ["First. ", "Both."]
            assert [c["function"]["name"] for c in sent[3]["tool_calls"]] == [
                "add",
                "theirs",
                "add",
                "theirs",
            ]


async def test_the_calls_of_a_mixed_stream_are_dense():
    """The client's calls have the indices 0 and 1 although qproxy's were between them."""
    async with world(functions=[add]) as it:
        it.emulator.script(MIXED)
        _, text = await it.stream({**ASK, "tools": [THEIRS]})
        entries = [entry for entries in deltas(text, "tool_calls") for entry in entries]
        assert [entry["index"] for entry in entries if "id" in entry] == [0, 1]
        assert {entry["index"] for entry in entries} == {0, 1}
        assert '"add"' not in "".join(frames(text))
        assert chunks(text)[-1]["choices"][0]["finish_reason"] == "tool_calls"


LOSSES = {
    "the time is over": ({}, ASK["messages"][0]["content"], 7200.0),
    "another conversation": ({}, "Something else", 0.0),
    "another key": ({"authorization": "Bearer second"}, ASK["messages"][0]["content"], 0.0),
}


@pytest.mark.parametrize(("head", "words", "later"), LOSSES.values(), ids=LOSSES.keys())
async def test_a_conversation_works_without_its_stored_rounds(head, words, later, autojump_clock):
    """Expired rounds, or another client's, are not restored: the model then sees what the client sees."""
    async with world(functions=[add], api_keys=["first", "second"]) as it:
        first = [(b"authorization", b"Bearer first")]
        it.emulator.script(MIXED)
        _, _, body = await it.post({**ASK, "tools": [THEIRS]}, headers=first)
        back = next_request(message(body), "r1", "r2")
        back["messages"][0] = {"role": "user", "content": words}
        await trio.sleep(later)
        it.emulator.script(saying("All."))
        headers = [(name.encode(), value.encode()) for name, value in head.items()] or first
        status, _, _ = await it.post(back, headers=headers)
        assert status == 200
        sent = it.emulator.requests[-1].body["messages"]
        assert [m["content"] for m in sent if m["role"] == "tool"] == ["r1", "r2"]


async def test_a_clients_tool_takes_precedence():
    """A client that declares a tool of the same name gets its calls."""
    async with world(functions=[add]) as it:
        own = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        it.emulator.script(calling(("add", {"a": 1, "b": 1})))
        _, _, body = await it.post({**ASK, "tools": [own]})
        assert message(body)["tool_calls"][0]["function"]["name"] == "add"
        assert len(it.emulator.requests[0].body["tools"]) == 1


async def test_a_call_of_an_undeclared_name_reaches_the_client():
    """A client with tools of its own gets calls of unknown names, as without qproxy's tools."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("nobody", {})))
        _, _, body = await it.post({**ASK, "tools": [THEIRS]})
        assert message(body)["tool_calls"][0]["function"]["name"] == "nobody"


OFFERS = {
    "always": ((), {}, "always", True),
    "on request, not asked for": ((), {}, "on request", False),
    "on request": ((), {"tools": [{"type": "qproxy", "name": "add"}]}, "on request", True),
    "a rule for the model": ((ToolRuleConfig(policy="never", models=["qwen*"]),), {}, "always", False),
    "a rule for another model": ((ToolRuleConfig(policy="never", models=["other"]),), {}, "always", True),
    "a rule for the key": (
        (ToolRuleConfig(policy="always", keys=["api_keys*"], tools=["a*"]),),
        {},
        "on request",
        True,
    ),
    "forbidden by the client": ((), {"tool_choice": "none"}, "always", False),
    "the client forces its own": ((), {"tool_choice": "required", "tools": [THEIRS]}, "always", False),
    "several answers": ((), {"n": 2}, "always", False),
}


@pytest.mark.parametrize(("rules", "fields", "offer", "offered"), OFFERS.values(), ids=OFFERS.keys())
async def test_tool_rules(rules, fields, offer, offered):
    """The first matching rule decides, then the tool's own policy; a client's choice is respected."""
    named = tools.function(name="add", policy=offer)(lambda: "")
    async with world(functions=[named], tool_rules=rules, api_keys=["sk-secret"]) as it:
        await it.post({**HELLO, **fields}, headers=[(b"authorization", b"Bearer sk-secret")])
        names = [tool["function"]["name"] for tool in it.emulator.requests[0].body.get("tools", ())]
        assert ("add" in names) is offered


async def test_a_rule_applies_to_a_model_by_any_name():
    """An alias does not bypass a rule for its model, and may have a rule of its own."""
    named = tools.function(name="add", policy="always")(lambda: "")
    for patterns in (["qwen3*"], ["gpt-*"]):
        rules = (ToolRuleConfig(policy="never", models=patterns),)
        async with world(functions=[named], tool_rules=rules, aliases={"gpt-*": "qwen3-max"}) as it:
            await it.post({**HELLO, "model": "gpt-5"})
            assert "tools" not in it.emulator.requests[0].body


async def test_a_completion_gets_no_tools():
    """Completions do not wait for tools."""
    async with world(functions=[add]) as it:
        assert (await it.post({"model": MODEL, "prompt": "def f("}, "/v1/completions"))[0] == 200
        assert "tools" not in it.emulator.requests[0].body


REFUSED = {
    "unknown": ([{"type": "qproxy", "name": "nothing"}], {}, "tools[0]", "unknown_tool"),
    "unknown server": ([THEIRS, {"type": "mcp", "server_label": "nowhere"}], {}, "tools[1]", "unknown_tool"),
    "never": ([{"type": "qproxy", "name": "hidden"}], {}, "tools[0]", "unknown_tool"),
    "declared twice": (
        [{"type": "function", "function": {"name": "add"}}, {"type": "qproxy", "name": "add"}],
        {},
        "tools[1]",
        "invalid_value",
    ),
    "a choice that is not there": (
        [{"type": "qproxy", "name": "add"}],
        {"tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "invalid_value",
    ),
    "several answers": ([{"type": "qproxy", "name": "add"}], {"n": 2}, "n", "unsupported_value"),
}


@pytest.mark.parametrize(("requested_tools", "fields", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_rejects_an_unavailable_tool(requested_tools, fields, param, code):
    """The 400 names the parameter; a forbidden tool is reported as an unknown one."""
    hidden = tools.function(name="hidden", policy="never")(lambda: "")
    async with world(functions=[add, hidden]) as it:
        status, _, body = await it.post({**ASK, "tools": requested_tools, **fields})
        assert (status, body["error"]["param"], body["error"]["code"]) == (400, param, code)
        assert it.emulator.requests == []


async def test_too_many_calls_at_once_are_not_run(autojump_clock):
    """A round runs 32 calls; the rest are errors that the model reads."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(*[("add", {"a": 1, "b": 1})] * 40), saying("Done."))
        _, headers, _ = await it.post(ASK)
        results = [m["content"] for m in it.emulator.requests[1].body["messages"] if m["role"] == "tool"]
        assert results.count("2") == headers["x-qproxy-tools"].count("ok=?1") == 32
        assert results[32:] == ["Error: not run, because more than 32 were called at once."] * 8


async def test_a_reload_applies_to_the_next_request(autojump_clock):
    """A reload changes the tools of the next request, and a request in flight keeps its own."""
    started_at, go = trio.Event(), trio.Event()

    @tools.function
    async def old() -> str:
        started_at.set()
        await go.wait()
        return "old"

    async with world(functions=[old]) as it, trio.open_nursery() as nursery:
        it.emulator.script(calling(("old", {})), calling(("old", {})), saying("Done."))
        answers = []

        async def first():
            answers.append(await it.post(ASK))

        nursery.start_soon(first)
        await started_at.wait()
        runtime = tool_setup.build_tool_runtime(Config(), [add])
        await it.server.reconfigure(replace(it.server.state, tool_runtime=runtime))
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert answers[0][1]["x-qproxy-tools"].count("old;ok=?1") == 2
        await it.post(ASK)
        assert [tool["function"]["name"] for tool in it.emulator.requests[3].body["tools"]] == ["add"]


async def test_stored_rounds_are_bounded():
    """The least recently used rounds are dropped beyond the number or size allowed; an unused round expires
    after an hour."""
    now = [0.0]
    rounds = MemoryToolRounds(seconds=3600, max_entries=3, max_bytes=1000, clock=lambda: now[0])

    async def known(ids, place="place"):
        return (await rounds.load(place, [(ids,)])).get((ids,))

    for number in range(4):
        await rounds.save("place", (str(number),), [{"content": "x"}])
        await known("0")
    assert [await known(str(n)) is not None for n in range(4)] == [True, False, True, True]
    assert await known("0", "elsewhere") is None
    await rounds.save("place", ("large",), [{"content": "x" * 980}])
    assert len(rounds) == 1
    await rounds.save("place", ("too large",), [{"content": "x" * 2000}])
    assert rounds.is_empty
    await rounds.save("place", ("0",), [])
    now[0] = 3599.0
    assert await known("0") == []  # which counts as a use
    now[0] = 7198.0
    assert await known("0") == []
    now[0] = 10798.0
    assert await known("0") is None
    assert repr(rounds) == "<MemoryToolRounds 0 rounds, 0 bytes>"
