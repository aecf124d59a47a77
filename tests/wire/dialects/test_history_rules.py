"""Repairs of a conversation's order, by example; a prompt stays a prefix of the next turn's."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.dialects import history_rules
from tests.wire.dialects.test_request_rules import PNG, USER, apply, turn

SYSTEM = {"role": "system", "content": "a"}
DEVELOPER = {"role": "developer", "content": "b"}
ANSWER = {"role": "assistant", "content": "x"}
REMINDER = {"role": "user", "content": "<system-reminder>\na\n</system-reminder>"}
CONTINUE = {"role": "user", "content": history_rules.NO_QUESTION}


def calls(*ids: str) -> dict[str, Any]:
    entries = [{"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in ids]
    return {"role": "assistant", "content": "", "tool_calls": entries}


def result(id: str, content: object = "sunny") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def note(id: str) -> dict[str, Any]:
    return result(id, history_rules.NO_RESULT)


def orphan(text: str = "sunny") -> dict[str, Any]:
    return {"role": "user", "content": f"{history_rules.NO_CALL}\n{text}"}


OWN_SERVER = {
    "leading messages, one of them a developer's": ([SYSTEM, DEVELOPER, USER],
        [{"role": "system", "content": "a\n\nb"}, USER]),
    "a later one, in its place": ([USER, ANSWER, SYSTEM, USER], [USER, ANSWER, REMINDER, USER]),
    "a later one that is marked already": ([USER, {**REMINDER, "role": "system"}], [USER, REMINDER]),
    "a later one with a picture": ([USER, {"role": "system", "content": [{"type": "text", "text": "a"},
        PNG]}], [USER, {"role": "user", "content": [{"type": "text", "text": REMINDER["content"]}, PNG]}]),
    "only instructions": ([SYSTEM], [SYSTEM, CONTINUE]),
    "no user message before an answer": ([SYSTEM, ANSWER], [SYSTEM, CONTINUE, ANSWER]),
    "an order that is fine": ([SYSTEM, USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER]),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "expected"), OWN_SERVER.values(), ids=OWN_SERVER.keys())
def test_system_messages_for_openai_compatible_servers(messages, expected):
    """A Qwen model on an OpenAI-compatible server gets the order that its chat template requires."""
    assert apply(turn(messages), "qwen3.8-27b", family="open").turn.messages == expected


@pytest.mark.parametrize("model", ["llama-3", "my-model"])
def test_other_models_are_not_changed(model):
    """A model that is not known to be Qwen's gets the client's messages."""
    given = turn([SYSTEM, DEVELOPER, USER, SYSTEM])
    assert apply(given, model, family="open").turn is given


CALLS = {
    "a call without a result": ([USER, calls("a"), USER], [USER, calls("a"), note("a"), USER]),
    "one of two": ([USER, calls("a", "b"), result("b"), USER],
        [USER, calls("a", "b"), result("b"), note("a"), USER]),
    "a message before the result": ([USER, calls("a"), USER, result("a")],
        [USER, calls("a"), result("a"), USER]),
    "a result after the next answer": ([USER, calls("a"), ANSWER, result("a")],
        [USER, calls("a"), note("a"), ANSWER, orphan()]),
    "a result without a call": ([USER, result("a"), USER], [USER, orphan(), USER]),
    "a result that comes twice": ([USER, calls("a"), result("a"), result("a", "rain")],
        [USER, calls("a"), result("a"), orphan("rain")]),
    "calls and results that are fine": ([USER, calls("a", "b"), result("a"), result("b"), USER],
        [USER, calls("a", "b"), result("a"), result("b"), USER]),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "expected"), CALLS.values(), ids=CALLS.keys())
def test_calls_and_results(messages, expected):
    """Every call has its result right after it, and every result its call; other messages become text."""
    assert apply(turn(messages), "qwen-plus").turn.messages == expected


STEPS = st.sampled_from(
    (
        [USER],
        [SYSTEM, USER],
        [DEVELOPER],
        [result("z")],
        [USER, SYSTEM],
        [result("a")],
        [result("b"), result("a"), USER],
        [USER, result("a")],
    )
)
ANSWERS = st.sampled_from((ANSWER, calls("a"), calls("a", "b")))
RULES = ("developer_role", "leading_system", "system_reminder", "unanswered_calls", "orphan_results")
SWITCHES = {**dict.fromkeys(RULES, True), "merge_system_messages": False}


@given(st.lists(st.tuples(STEPS, ANSWERS), min_size=1, max_size=4), STEPS)
def test_a_prompt_is_a_prefix_of_the_next_turns(rounds, last):
    """The request of one turn is the beginning of the next turn's, byte by byte."""
    conversation: list[Any] = [SYSTEM, USER]
    sent = []
    for step, answer in [*rounds, (last, ANSWER)]:
        conversation = [*conversation, *step]
        changed = apply(turn(conversation), "qwen3.8-27b", family="open", switches=SWITCHES).turn.messages
        sent.append(json.dumps(changed)[:-1])
        conversation = [*conversation, answer]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(sent))


def test_a_prompt_without_a_user_message_is_a_prefix():
    """The added message stays in its place until a user message is sent."""
    first = apply(turn([SYSTEM]), "qwen3.8-27b", family="open").turn.messages
    second = apply(turn([SYSTEM, calls("a"), result("a")]), "qwen3.8-27b", family="open").turn.messages
    assert second[: len(first)] == first
