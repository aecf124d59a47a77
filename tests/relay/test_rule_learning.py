"""Rules that an account learns from its upstream's rejections."""

import pytest

from qproxy.emulator import Emulator
from qproxy.emulator.faults import json_reply
from qproxy.wire import json_codec
from qproxy.wire.dialects import error_mapping, rejections, request_rules
from tests.helpers import accounts, world

FINE = json_reply({
    "id": "x",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
})  # fmt: skip
USER = {"role": "user", "content": "go"}
LATER_SYSTEM = [USER, {"role": "system", "content": "be brief"}]
REMINDER = {"role": "user", "content": "<system-reminder>\nbe brief\n</system-reminder>"}
PREFIX = {"role": "assistant", "content": "x", "partial": True}
TEMPLATE = "System message must be at the beginning."


def rejected(message: str, status: int = 400):
    return json_reply({"error": {"message": message, "type": "BadRequestError", "code": status}}, status)


def server(model="my-model", **settings):
    own = accounts("home", kind="openai_compatible", models=[model])
    return world(accounts=own, emulator=Emulator(), **settings)


def body(messages, **fields):
    return {"model": "my-model", "messages": messages, **fields}


def learned(it):
    (account,) = it.server.state.relay.accounts.accounts
    return [(entry.model, entry.rule) for entry in account.learned_rules]


@pytest.mark.parametrize("status", [400, 422, 500])
async def test_a_rejection_teaches_a_rule(status, autojump_clock):
    """A rejection that a rule prevents is followed by one attempt with it; the next request needs none."""
    async with server() as it:
        it.emulator.script(rejected(f"Jinja Exception: {TEMPLATE}", status), FINE, FINE)
        assert (await it.post(body(LATER_SYSTEM)))[0] == 200
        assert learned(it) == [("my-model", "system_reminder")]
        assert (await it.post(body(LATER_SYSTEM)))[0] == 200
        sent = [request.body["messages"] for request in it.emulator.requests]
        assert sent == [LATER_SYSTEM, [USER, REMINDER], [USER, REMINDER]]


async def test_one_rejection_after_another(autojump_clock):
    """A server names one fault at a time; all rules that led to a response are learned."""
    messages = [USER, {"role": "developer", "content": "be brief"}]
    async with server() as it:
        it.emulator.script(rejected("Unexpected message role."), rejected(TEMPLATE), FINE)
        assert (await it.post(body(messages)))[0] == 200
        assert it.emulator.requests[-1].body["messages"] == [USER, REMINDER]
        assert learned(it) == [("my-model", "developer_role"), ("my-model", "system_reminder")]


async def test_a_rule_that_does_not_help_is_not_learned(autojump_clock):
    """The client gets the upstream's error, and the next request is sent without the rule."""
    async with server() as it:
        it.emulator.script(rejected(TEMPLATE), rejected(TEMPLATE))
        status, _, answer = await it.post(body(LATER_SYSTEM))
        assert (status, answer["error"]["message"]) == (400, TEMPLATE)
        assert learned(it) == []
        assert len(it.emulator.requests) == 2


@pytest.mark.parametrize(
    ("messages", "settings", "message"),
    [
        (LATER_SYSTEM, {"rules": {"system_reminder": False, "leading_system": False}}, TEMPLATE),
        ([USER], {}, TEMPLATE),
        ([USER, PREFIX], {"rules": {"hosted_params": False}}, "unknown field: partial"),
    ],
    ids=["switched off", "nothing to change", "a parameter's rule that is switched off"],
)
async def test_no_attempt_without_a_rule(messages, settings, message, autojump_clock):
    """A rejection is final if the operator disabled the rule, or it would change nothing."""
    async with server(**settings) as it:
        it.emulator.script(rejected(message))
        assert (await it.post(body(messages)))[0] == 400
        assert len(it.emulator.requests) == 1


ORPHAN = "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
UNANSWERED = 'An assistant message with "tool_calls" must be followed by tool messages.'
DEVELOPER = "developer is not one of ['system', 'assistant'] - 'messages.0.role'"
NULL = "messages[1].content: Input should be a valid string, but it is null"
CHOICE = "Invalid tool_choice type: 'object'. Supported string values: none, auto, required"
ORDER_RULES, ROLE_RULES = {"leading_system", "system_reminder"}, {"developer_role", "function_role"}
CALL_RULES = {"unanswered_calls", "orphan_results"}
MESSAGES = {
    "Qwen3.5's template": (TEMPLATE, ORDER_RULES),
    "llama.cpp": ("Only the first message can have the role system", ORDER_RULES),
    "no question": ("No user query found in messages.", {"user_message"}),
    "SGLang": ("Unexpected message role.", ROLE_RULES),
    "DashScope's role": (DEVELOPER, ROLE_RULES),
    "an unanswered call": (UNANSWERED, CALL_RULES),
    "an orphan": (ORPHAN, CALL_RULES),
    "null": (NULL, {"null_content", "tool_content"}),
    "LM Studio": (CHOICE, {"named_tool"}),
    "a forced tool": ("tool_choice is not supported in thinking mode", {"forced_tool_refused"}),
    "a forced tool, vLLM": ("Thinking must be off for a tool_choice of this kind", {"forced_tool_refused"}),
    "an unknown field": ("Extra inputs are not permitted: enable_search", {"hosted_params"}),
    "something else": ("The model is not loaded.", set()),
}


@pytest.mark.parametrize(("message", "rules"), MESSAGES.values(), ids=MESSAGES.keys())
def test_messages_of_rejections(message, rules):
    """The text of a rejection names the rules that would have changed the request."""
    data = b'{"error": {"message": %b}}' % json_codec.dumps(message)
    error = error_mapping.error_from_response(400, (), data)
    assert set(rejections.rules_after(error)) == rules
    assert not rejections.rules_after(error_mapping.error_from_response(429, (), data))


def test_rejections_name_existing_rules():
    """Every rule that a row names exists."""
    assert {rule for row in rejections.REJECTIONS for rule in row.rules} <= {
        rule.name for rule in request_rules.RULES
    }


def test_moderation_teaches_nothing():
    """A message about a prompt's content does not concern its form."""
    data = (
        b'{"error": {"code": "data_inspection_failed", "message": "Input content is required to be decent"}}'
    )
    assert not rejections.rules_after(error_mapping.error_from_response(400, (), data))
