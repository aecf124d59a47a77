"""Answers in rounds: the model calls this server's tools, and the client sees one answer."""

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
    """A model's round that calls tools: (name, arguments) each."""
    steps = [chunk({"role": "assistant", "content": ""})]
    steps += [chunk({"reasoning_content": thought})] if thought else []
    steps += [chunk({"content": text})] if text else []
    for index, (name, arguments) in enumerate(calls):
        whole = arguments if isinstance(arguments, str) else json.dumps(arguments)
        head = {"name": name, "arguments": ""}
        steps.append(
            chunk(
                {"tool_calls": [{"index": index, "id": f"up_{index}", "type": "function", "function": head}]}
            )
        )
        for piece in (whole[:3], whole[3:]):
            steps.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
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


async def test_a_client_that_declares_nothing_sees_a_better_answer():
    """The model calls our tool, reads its result, and the client gets the words of both rounds and no
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
        called, result = second.body["messages"][-2:]
        assert called["content"] == "Let me see. "
        assert called["reasoning_content"] == "Sums."
        assert json.loads(called["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
        assert result == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "5"}
        assert it.sound()


async def test_a_stream_stays_a_stream():
    """Pieces of every round flow, calls of ours are comments, and one finish with the summed usage ends
    it."""
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
async def test_who_asks_is_told_what_ran(stream):
    """`"qproxy": {"include": ["tools"]}` brings the calls, with arguments and output, in the last chunk or
    the body."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 2, "b": 3})), saying("5"))
        ask = {**ASK, "qproxy": {"include": ["tools"]}}
        told = chunks((await it.stream(ask))[1])[-1] if stream else (await it.post(ask))[2]
        (ran,) = told["qproxy"]["tools"]
        assert (ran["name"], ran["output"], ran["ok"]) == ("add", "5", True)
        assert "qproxy" not in it.emulator.requests[0].body


@pytest.mark.parametrize("stream", [False, True])
async def test_tools_report_in_the_order_of_their_calls(stream, autojump_clock):
    """However long each of them takes: in the header, in the comments and in the report."""

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
            told, body = re.findall(r": tool wait ok (\d+) ms", text), chunks(text)[-1]
        else:
            _, headers, body = await it.post(ask)
            told = re.findall(r"wait;ok=\?1;ms=(\d+)", headers["x-qproxy-tools"])
        assert told == [f"{seconds}000" if seconds else "0" for seconds in times]
        assert [json.loads(ran["arguments"])["seconds"] for ran in body["qproxy"]["tools"]] == times


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


@pytest.mark.parametrize(("name", "arguments", "said"), WRONG.values(), ids=WRONG.keys())
async def test_what_goes_wrong_goes_to_the_model(name, arguments, said, caplog):
    """A call that cannot be run is answered with an error that the model reads, and the answer goes on."""
    async with world(functions=[add, broken]) as it:
        it.emulator.script(calling((name, arguments)), saying("Sorry."))
        status, headers, body = await it.post(ASK)
        assert (status, message(body)["content"]) == (200, "Sorry.")
        result = it.emulator.requests[1].body["messages"][-1]
        assert result["role"] == "tool"
        assert said in result["content"]
        assert len(result["content"]) < 1500
        if name != "subtract":
            assert headers["x-qproxy-tools"].startswith(f"{name};ok=?0")
        assert "secret words" not in caplog.text + result["content"]


async def test_a_slow_tool_is_stopped_and_the_others_are_not_held_up(autojump_clock):
    """Calls of a round run in parallel, each with its own time limit."""
    begun, ended = [], []

    async def slow(seconds: float) -> str:
        begun.append(trio.current_time())
        try:
            await trio.sleep(seconds)
        finally:
            ended.append(trio.current_time())
        return "done"

    slow = tools.function(timeout=10.0)(slow)
    async with world(functions=[slow]) as it:
        it.emulator.script(calling(("slow", {"seconds": 5}), ("slow", {"seconds": 500})), saying("Done."))
        began = trio.current_time()
        assert (await it.post(ASK))[0] == 200
        assert begun[0] == begun[1]
        assert ended == [began + 5, began + 10]
        results = [m["content"] for m in it.emulator.requests[1].body["messages"][-2:]]
        assert results == ["done", "Error: The tool did not finish within 10 s (timeout) and was killed."]


async def test_comments_go_out_while_a_tool_runs(autojump_clock):
    """A tool that runs for a minute is not interrupted by the comments that keep the client's connection."""
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


async def test_no_account_is_held_while_tools_run(autojump_clock):
    """The lease and the connection of a round are given back before its tools run."""
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
async def test_a_client_that_leaves_ends_its_tools(client, stream, autojump_clock):
    """Within 100 ms of the disconnect the tools that run for a request are cancelled, streamed or not."""
    running, gone = trio.Event(), trio.Event()
    when = []

    @tools.function(timeout=1000.0)
    async def forever() -> str:
        running.set()
        try:
            await trio.sleep(900)
        finally:
            when.append(trio.current_time())
            gone.set()
        return ""

    async with world(functions=[forever]) as it:
        it.emulator.script(calling(("forever", {}), text="x"))
        async with client(it.app) as connection:
            body = json.dumps({**ASK, "stream": stream}).encode()
            await connection.send(
                "POST", "/v1/chat/completions", body, [("content-type", "application/json")]
            )
            await running.wait()
            left = trio.current_time()
            await trio.aclose_forcefully(connection.stream)
            await gone.wait()
        assert when[0] - left < 0.1
        await trio.testing.wait_all_tasks_blocked()
        assert it.sound()


async def test_a_server_that_stops_ends_an_answer_whose_tool_runs(autojump_clock):
    """When the time is up, a stream gets its error frame although a tool is still running."""

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


async def test_after_the_last_round_tools_are_off():
    """A model that never stops calling is asked once more without tools, and its calls then are not heard."""
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
    """`tool_choice` that names our tool holds for the first round: else the model could never answer."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", {"a": 1, "b": 1})), saying("2"))
        choice = {"type": "function", "function": {"name": "add"}}
        asked = {**ASK, "tools": [{"type": "qproxy", "name": "add"}], "tool_choice": choice}
        assert (await it.post(asked))[0] == 200
        assert [seen.body.get("tool_choice") for seen in it.emulator.requests] == [choice, "auto"]


async def test_a_call_that_was_cut_short_is_not_run():
    """A round that ends with `length` ends the answer: half a call is no call."""
    async with world(functions=[add]) as it:
        it.emulator.script(calling(("add", '{"a": 1'), text="So ", finish="length"))
        _, headers, body = await it.post(ASK)
        assert body["choices"][0]["finish_reason"] == "length"
        assert message(body)["content"] == "So "
        assert "x-qproxy-tools" not in headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_between_rounds_is_told(stream, autojump_clock):
    """An upstream that fails in a later round gives a whole answer its status and a stream its error
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


async def test_retries_begin_anew_in_each_round(autojump_clock, caplog):
    """A busy upstream in the fourth round is tried again as in the first."""
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


def turn_back(reply, *results):
    """The client's next request, after its tools have run."""
    answers = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(reply["tool_calls"], results, strict=True)
    ]
    return {**ASK, "tools": [THEIRS], "messages": [*ASK["messages"], reply, *answers]}


async def test_mixed_turns_are_whole_for_the_model_and_plain_for_the_client():
    """Ours run, the client's go out without gaps, and when it comes back the model sees the whole turn."""
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
            assert message((await it.post(turn_back(reply, "r1", "r2")))[2])["content"] == "All."
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
    """The client's calls have the indices 0 and 1 although ours stood between them."""
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
async def test_after_a_loss_the_conversation_still_works(head, words, later, autojump_clock):
    """What is forgotten, or another's, is not put back: the model then sees what the client sees."""
    async with world(functions=[add], api_keys=["first", "second"]) as it:
        first = [(b"authorization", b"Bearer first")]
        it.emulator.script(MIXED)
        _, _, body = await it.post({**ASK, "tools": [THEIRS]}, headers=first)
        back = turn_back(message(body), "r1", "r2")
        back["messages"][0] = {"role": "user", "content": words}
        await trio.sleep(later)
        it.emulator.script(saying("All."))
        headers = [(name.encode(), value.encode()) for name, value in head.items()] or first
        status, _, _ = await it.post(back, headers=headers)
        assert status == 200
        sent = it.emulator.requests[-1].body["messages"]
        assert [m["content"] for m in sent if m["role"] == "tool"] == ["r1", "r2"]


async def test_a_clients_own_tool_wins_over_ours():
    """A client that has a tool of the same name gets its calls itself."""
    async with world(functions=[add]) as it:
        own = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        it.emulator.script(calling(("add", {"a": 1, "b": 1})))
        _, _, body = await it.post({**ASK, "tools": [own]})
        assert message(body)["tool_calls"][0]["function"]["name"] == "add"
        assert len(it.emulator.requests[0].body["tools"]) == 1


async def test_an_undeclared_name_is_the_clients_to_refuse():
    """With tools of its own a client gets calls of unknown names, as without ours."""
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
async def test_which_request_gets_which_tools(rules, fields, offer, offered):
    """The first rule that fits decides, then the tool's own word; a client's choice is respected."""
    named = tools.function(name="add", policy=offer)(lambda: "")
    async with world(functions=[named], tool_rules=rules, api_keys=["sk-secret"]) as it:
        await it.post({**HELLO, **fields}, headers=[(b"authorization", b"Bearer sk-secret")])
        names = [tool["function"]["name"] for tool in it.emulator.requests[0].body.get("tools", ())]
        assert ("add" in names) is offered


async def test_a_rule_holds_for_a_model_by_any_of_its_names():
    """An alias is no way around a rule for the model that it stands for, and may have a rule of its own."""
    named = tools.function(name="add", policy="always")(lambda: "")
    for patterns in (["qwen3*"], ["gpt-*"]):
        rules = (ToolRuleConfig(policy="never", models=patterns),)
        async with world(functions=[named], tool_rules=rules, aliases={"gpt-*": "qwen3-max"}) as it:
            await it.post({**HELLO, "model": "gpt-5"})
            assert "tools" not in it.emulator.requests[0].body


async def test_a_text_to_complete_gets_no_tools():
    """A program that completes as one types is not kept waiting for tools."""
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


@pytest.mark.parametrize(("wanted", "fields", "param", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_request_for_a_tool_that_is_not_to_be_had(wanted, fields, param, code):
    """It is a 400 that names the place; a tool that one may not use is as unknown as one that is not
    there."""
    hidden = tools.function(name="hidden", policy="never")(lambda: "")
    async with world(functions=[add, hidden]) as it:
        status, _, body = await it.post({**ASK, "tools": wanted, **fields})
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


async def test_another_workshop_is_taken_up_between_two_requests(autojump_clock):
    """A reload changes the tools of the next request, and a request under way keeps those that it has."""
    begun, go = trio.Event(), trio.Event()

    @tools.function
    async def old() -> str:
        begun.set()
        await go.wait()
        return "old"

    async with world(functions=[old]) as it, trio.open_nursery() as nursery:
        it.emulator.script(calling(("old", {})), calling(("old", {})), saying("Done."))
        answers = []

        async def first():
            answers.append(await it.post(ASK))

        nursery.start_soon(first)
        await begun.wait()
        runtime = tool_setup.build_tool_runtime(Config(), [add])
        await it.server.reconfigure(replace(it.server.state, tool_runtime=runtime))
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert answers[0][1]["x-qproxy-tools"].count("old;ok=?1") == 2
        await it.post(ASK)
        assert [tool["function"]["name"] for tool in it.emulator.requests[3].body["tools"]] == ["add"]


async def test_memory_is_bounded():
    """What was not used for the longest time goes when there are too many, or too large ones; an hour ends
    all."""
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
    assert await known("0") == []  # which is a use
    now[0] = 7198.0
    assert await known("0") == []
    now[0] = 10798.0
    assert await known("0") is None
    assert repr(rounds) == "<MemoryToolRounds 0 rounds, 0 bytes>"
