"""An upstream with Gemini's function declarations works from a client's first request to its tool result."""

import json

import pytest

from qproxy.config.accounts import AccountConfig, ConfigError, key_warnings, resolve_account
from qproxy.emulator import Emulator
from qproxy.emulator.faults import json_reply
from tests.helpers import accounts, world

MODEL = "qwen-plus"

PATHS = {
    "compatible": "/v1/chat/completions",
    "dashscope": "/api/v1/services/aigc/text-generation/generation",
}
TOOL = {
    "type": "function",
    "function": {"name": "get.weather", "strict": True, "parameters": {"type": "object"}},
}
ASK = [{"role": "user", "content": "How is the weather in Rome?"}]


class Scripted(Emulator):
    """An upstream that returns these replies in order, whatever the request."""

    def __init__(self, *replies):
        super().__init__()
        self.replies = list(replies)

    def _reply(self, seen):
        return self.replies.pop(0)


def reply(dialect, message):
    choices = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "STOP"}]}
    return json_reply(choices if dialect == "compatible" else {"output": choices})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dialect", PATHS)
async def test_a_call_and_its_result(dialect, stream):
    """The client uses OpenAI's form; the upstream gets and returns Gemini's, with valid function names."""
    entries = accounts("one", tool_schema="function_declarations", dialect=dialect)
    part = {"functionCall": {"name": "get_weather", "args": {"city": "Rome"}}}
    server = Scripted(reply(dialect, {"parts": [part]}), reply(dialect, {"content": "Sunny."}))
    async with world(accounts=entries, emulator=server) as it:
        body = {"model": MODEL, "messages": ASK, "tools": [TOOL], "tool_choice": "required"}
        if stream:
            _, text = await it.stream(body)
            assert '"name":"get.weather"' in text
            call = {
                "id": "c",
                "type": "function",
                "function": {"name": "get.weather", "arguments": '{"city":"Rome"}'},
            }
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
        else:
            _, _, answer = await it.post(body)
            message = answer["choices"][0]["message"]
            call = message["tool_calls"][0]
            assert answer["choices"][0]["finish_reason"] == "tool_calls"
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (
                "get.weather",
                {"city": "Rome"},
            )
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        _, _, answer = await it.post({**body, "messages": [*ASK, message, result], "tool_choice": "auto"})
        assert answer["choices"][0]["message"]["content"] == "Sunny."
        first, second = it.emulator.requests
    assert [first.path, second.path] == [PATHS[dialect]] * 2
    fields = first.body if dialect == "compatible" else first.body["parameters"]
    (declared,) = fields["tools"][0]["function_declarations"]
    assert declared == {"name": "get_weather", "parameters": {"type": "object"}}
    assert fields["tool_config"] == {"function_calling_config": {"mode": "ANY"}}
    assert "tool_choice" not in fields
    messages = second.body["messages"] if dialect == "compatible" else second.body["input"]["messages"]
    assert messages[1]["content"][-1]["functionCall"]["name"] == "get_weather"
    assert messages[2]["content"][0]["functionResponse"] == {
        "id": call["id"],
        "name": "get_weather",
        "response": {"output": "sunny"},
    }


@pytest.mark.parametrize("spelling", ["auto", "hermes", "coder"])
@pytest.mark.parametrize("dialect", PATHS)
def test_two_ways_to_send_tools(dialect, spelling):
    """Setting both tool_schema and render_tools is a ConfigError at the start."""
    entry = AccountConfig(
        "mine",
        "openai_compatible",
        base_url="http://x/v1",
        dialect=dialect,
        tool_schema="function_declarations",
        render_tools=spelling,
    )
    with pytest.raises(ConfigError, match=r"account 'mine': tool_schema and render_tools"):
        resolve_account(entry)


def test_model_studio_warns():
    """Alibaba's servers expect OpenAI's form: setting another one warns."""
    entry = AccountConfig("mine", preset="us", key="sk-1", tool_schema="function_declarations")
    (warning,) = key_warnings(resolve_account(entry))
    assert "OpenAI's form" in warning
