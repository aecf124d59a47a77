"""The Qwen rules, each by example."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from qproxy.wire.dialects import message_rules, request_rules
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import CompletionPrompt, Turn

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
PNG = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
NAMED = {"type": "function", "function": {"name": "f"}}


def call(arguments, **extra):
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c", **extra, "function": {"name": "f", "arguments": arguments}}],
    }


def turn(messages=(USER,), tools=(), tool_choice=None, **params):
    return Turn(
        id="i",
        created=0,
        model="m",
        messages=list(messages),
        tools=list(tools),
        tool_choice=tool_choice,
        params=params,
    )


def apply(given, model="qwen3.7-plus", family="dashscope", **changes):
    options: Any = {"strict_params": False, "forced_tools": "thinking-off"} | changes
    return request_rules.apply_rules(given, model=model, family=family, **options)


# name of the rule: (turn, model, what must be true of the changed turn)
CASES = {
    "developer_role": (turn([{"role": "developer", "content": "x"}, USER]), "qwen-plus", lambda t: t.messages[0]["role"] == "system"),
    "merge_system_messages": (
        turn([{"role": "system", "content": "a"}, USER, {"role": "system", "content": [{"type": "text", "text": "b"}]}]),
        "qwen-plus",
        lambda t: t.messages == [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, USER],
    ),
    "function_role": (
        turn([USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}, {"role": "function", "name": "f", "content": "1"}]),
        "qwen-plus",
        lambda t: t.messages[2] == {"role": "tool", "tool_call_id": t.messages[1]["tool_calls"][0]["id"], "content": "1"},
    ),
    "repair_tool_calls": (turn([USER, call(None)]), "qwen-plus", lambda t: t.messages[1]["tool_calls"][0] == {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}),
    "null_content": (turn([USER, {"role": "assistant", "content": None}]), "qwen-plus", lambda t: t.messages[1]["content"] == ""),
    "assistant_extras": (
        turn([USER, {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "reasoning": "r"}]),
        "qwen-plus",
        lambda t: t.messages[1] == {"role": "assistant", "content": "x", "reasoning_content": "r"},
    ),
    "tool_content": (
        turn([USER, call("{}", type="function"), {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}, PNG]}]),
        "qwen-plus",
        lambda t: t.messages[2]["content"] == "a" and t.messages[3] == {"role": "user", "content": [PNG]},
    ),
    "audio_input": (
        turn([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}]}]),
        "qwen-plus",
        lambda t: t.messages[0]["content"][0]["input_audio"]["data"] == "data:audio/mp3;base64,AAAA",
    ),
    "tools_empty": (turn(tool_choice="auto", parallel_tool_calls=True), "qwen-plus", lambda t: t.tool_choice is None and not t.params),
    "tools_forbidden": (turn(tools=[TOOL], tool_choice="none"), "qwen-plus", lambda t: not t.tools and t.tool_choice is None),
    "parallel_calls": (turn(tools=[TOOL]), "qwen-plus", lambda t: t.params == {"parallel_tool_calls": True}),
    "reasoning_effort": (turn(reasoning_effort="low"), "qwen-plus", lambda t: t.params == {"enable_thinking": True, "thinking_budget": 4096}),
    "completion_thinking": (replace(turn(), completion=CompletionPrompt(("hi",))), "qwen3.7-plus", lambda t: t.params == {"enable_thinking": False}),
    "forced_tool": (turn(tools=[TOOL], tool_choice="required"), "qwen3.7-plus", lambda t: t.params["enable_thinking"] is False and t.tool_choice == "required"),
    "json_schema": (turn(response_format={"type": "json_schema", "json_schema": {}}), "qwen-max", None),
    "json_thinking": (turn([{"role": "user", "content": "json"}], response_format={"type": "json_object"}), "qwen3.5-plus", lambda t: t.params["enable_thinking"] is False),
    "json_keyword": (turn(response_format={"type": "json_object"}), "qwen-max", lambda t: "JSON" in t.messages[0]["content"]),
    "one_output_limit": (turn(max_completion_tokens=5), "qwen-max", lambda t: t.params == {"max_tokens": 5}),
    "output_limit": (turn(max_tokens=32000), "qwen-max", lambda t: t.params == {"max_tokens": 8192}),
    "temperature": (turn(temperature=2), "qwen-max", lambda t: t.params["temperature"] < 2),
    "top_p": (turn(top_p=0), "qwen-max", lambda t: t.params["top_p"] > 0),
    "seed": (turn(seed=-1), "qwen-max", lambda t: 0 <= t.params["seed"] < 2**31),
    "top_logprobs": (turn(top_logprobs=20), "qwen-max", lambda t: t.params["top_logprobs"] == 5),
    "max_choices": (turn(n=5), "qwen-max", None),
    "audio_output": (turn(modalities=["text", "audio"]), "qwen-max", None),
    "unsupported_params": (turn(user="u", store=True, prediction={}), "qwen-max", lambda t: not t.params),
}  # fmt: skip


def test_every_rule_has_a_case_and_a_line():
    """The table, the examples and the page name the same rules."""
    assert [rule.name for rule in request_rules.RULES] == list(CASES)
    assert all(rule.doc and rule.where in ("all", "dashscope") for rule in request_rules.RULES)
    page = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
    for rule in request_rules.RULES:
        assert f"| `{rule.name}` | {rule.doc} | {rule.where} |" in page


@pytest.mark.parametrize("name", CASES)
def test_a_rule_does_what_it_says(name):
    """The rule changes what it is for, says so, leaves its input alone, and is at rest after one time."""
    given, model, holds = CASES[name]
    before = copy.deepcopy(given)
    if holds is None:
        with pytest.raises(RequestError):
            apply(given, model)
        return
    applied = apply(given, model)
    assert name in applied.applied
    assert holds(applied.turn)
    assert given == before
    assert apply(applied.turn, model).turn == applied.turn


@pytest.mark.parametrize("name", CASES)
def test_a_rule_can_be_switched_off(name):
    """With its switch off a rule is never applied."""
    given, model, _ = CASES[name]
    assert name not in apply(given, model, switches={**dict.fromkeys(CASES, False)}).applied


@pytest.mark.parametrize(
    "rule", [rule for rule in request_rules.RULES if rule.where == "dashscope"], ids=lambda rule: rule.name
)
def test_open_servers_are_left_alone(rule):
    """A rule for DashScope does not touch another server unless it is switched on."""
    given, model, holds = CASES[rule.name]
    assert rule.name not in apply(given, model, family="open").applied
    if holds is not None:
        assert rule.name in apply(given, model, family="open", switches={rule.name: True}).applied


def test_a_turn_without_faults_is_the_same_object():
    """Nothing to change: nothing copied."""
    given = turn(temperature=0)
    assert apply(given).turn is given


def test_strict_params():
    """With strict_params a dropped parameter is a 400 that names it."""
    with pytest.raises(RequestError) as caught:
        apply(turn(logit_bias={}), strict_params=True)
    assert (caught.value.param, caught.value.code) == ("logit_bias", "unsupported_parameter")


def test_what_is_dropped_is_named():
    """The dropped parameters are reported in the client's order of the table."""
    assert apply(turn(user="u", verbosity="low", metadata={}), "glm-5").ignored == (
        "user",
        "verbosity",
        "metadata",
    )


def test_forced_tools_can_become_auto():
    """By setting, thinking stays and the force goes; the note says which."""
    applied = apply(turn(tools=[TOOL], tool_choice=NAMED), forced_tools="auto")
    assert applied.turn.tool_choice == "auto"
    assert "auto" in applied.notes[0]


EFFORTS = {
    "none": ("qwen-plus", "none", {"enable_thinking": False}),
    "minimal on 3.8": ("qwen3.8-max", "minimal", {"enable_thinking": False}),
    "high": ("qwen3.7-plus", "high", {"enable_thinking": True}),
    "high on 3.8": ("qwen3.8-max", "high", {"reasoning_effort": "xhigh"}),
    "low on 3.8": ("qwen3.8-max", "low", {"reasoning_effort": "low"}),
    "another vendor": ("deepseek-v4-pro", "high", {"reasoning_effort": "high"}),
}


@pytest.mark.parametrize(("model", "effort", "params"), EFFORTS.values(), ids=EFFORTS.keys())
def test_efforts(model, effort, params):
    """OpenAI's efforts in each model's own terms."""
    assert apply(turn(reasoning_effort=effort), model).turn.params == params


ARGUMENTS = {
    "null": (None, "{}"),
    "empty": ("", "{}"),
    "an object": ({"a": 1}, '{"a":1}'),
    "broken": ('{"a', '{"arguments":"{\\"a"}'),
    "fine": ('{"a": 1}', '{"a": 1}'),
}


@pytest.mark.parametrize(("given", "expected"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_in_the_history(given, expected):
    """A server wants JSON text for the arguments of earlier calls."""
    changed = apply(turn([USER, call(given, type="function")])).turn
    assert changed.messages[1]["tool_calls"][0]["function"]["arguments"] == expected


class Every(frozenset):
    """Marks of which none is missing."""

    def isdisjoint(self, other):
        return False


CONTENT = st.sampled_from(
    [
        None,
        "",
        "x",
        [{"type": "text", "text": "x"}, PNG],
        [{"type": "input_audio", "input_audio": {"data": "UklG"}}],
    ]
)
EXTRAS: dict[str, st.SearchStrategy[object]] = {
    name: st.sampled_from([None, "x", []]) for name in ("refusal", "annotations", "reasoning")
}
CALLS = {
    "tool_calls": st.sampled_from([None, [], call(None)["tool_calls"]]),
    "function_call": st.sampled_from([None, {"name": "f", "arguments": "{}"}]),
}
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["developer", "system", "user", "assistant", "tool", "function"])},
    optional={"content": CONTENT, **EXTRAS, **CALLS},
)  # fmt: skip


@drawn(st.lists(MESSAGES, min_size=1, max_size=4))
def test_no_rule_is_passed_over_that_has_something_to_do(messages):
    """A rule about messages is asked only where they have its marks; asking it always would come to the same."""
    told = apply(turn(messages))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_rules, "features", lambda messages: Every())
        assert apply(turn(messages)) == told


LEARNT = {
    "a limit": ("Range of max_tokens should be [1, 100]", "max_tokens", {"max_tokens": 500}, {"max_tokens": 100}),
    "a limit that is kept": ("Range of max_tokens should be [1, 100]", "max_tokens", {"max_tokens": 50}, None),
    "must think": ("enable_thinking must be True", "enable_thinking", {"enable_thinking": False}, {"enable_thinking": True}),
    "cannot think": ("does not support enable_thinking", "enable_thinking", {"enable_thinking": True}, {"enable_thinking": False}),
    "something else": ("no", None, {"a": 1}, None),
}  # fmt: skip


@pytest.mark.parametrize(("message", "param", "params", "expected"), LEARNT.values(), ids=LEARNT.keys())
def test_learning_from_an_error(message, param, params, expected):
    """A 400 that says what it wants is given that, once."""
    mended = request_rules.amend_after_error(UpstreamError(message, status=400, param=param), turn(**params))
    assert (mended.params if mended else None) == expected
