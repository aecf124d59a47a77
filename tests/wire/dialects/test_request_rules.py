"""The Qwen rules, each by example."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.wire.dialects import amendments, message_rules, request_rules
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import CompletionPrompt, Turn

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
MARKER = {"type": "ephemeral"}
PNG = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
MARKED = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit"}}
OTHER_TOOL = {"type": "function", "function": {"name": "g"}}
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
    spec = package_catalog().get(model)
    return request_rules.apply_rules(given, model=model, spec=spec, family=family, **options)


# name of the rule: (turn, model, condition on the changed turn)
CASES = {
    "developer_role": (turn([{"role": "developer", "content": "x"}, USER]), "qwen-plus",
        lambda t: t.messages[0]["role"] == "system"),
    "merge_system_messages": (
        turn([{"role": "system", "content": "a"}, USER, {"role": "system", "content": [{"type": "text", "text": "b"}]}]),
        "qwen-plus",
        lambda t: t.messages == [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, USER],
    ),
    "leading_system": (
        turn([{"role": "system", "content": "a"}, {"role": "system", "content": "b"}, USER]),
        "qwen3.8-27b",
        lambda t: t.messages == [{"role": "system", "content": "a\n\nb"}, USER],
    ),
    "system_reminder": (
        turn([USER, {"role": "system", "content": "a"}]),
        "qwen3.8-27b",
        lambda t: t.messages == [USER, {"role": "user", "content": "<system-reminder>\na\n</system-reminder>"}],
    ),
    "user_message": (
        turn([{"role": "system", "content": "a"}]),
        "qwen3.8-27b",
        lambda t: t.messages == [{"role": "system", "content": "a"}, {"role": "user", "content": "Continue."}],
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
    "unanswered_calls": (turn([USER, call("{}", type="function"), USER]), "qwen-plus", lambda t: t.messages[2]["tool_call_id"] == "c" and t.messages[3] == USER),
    "orphan_results": (
        turn([USER, {"role": "tool", "tool_call_id": "c", "content": "sunny"}]),
        "qwen-plus",
        lambda t: t.messages[1]["role"] == "user" and t.messages[1]["content"].endswith("\nsunny"),
    ),
    "tool_content": (
        turn([USER, call("{}", type="function"), {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a"}, PNG]}]),
        "qwen-plus",
        lambda t: t.messages[2]["content"] == "a" and t.messages[3] == {"role": "user", "content": [PNG]},
    ),
    "cache_marker": (
        turn([USER, call("{}", type="function"), {"role": "tool", "tool_call_id": "c", "content": "a", "cache_control": MARKER}]),
        "qwen-plus",
        lambda t: t.messages[2] == {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "a", "cache_control": MARKER}]},
    ),
    "audio_input": (
        turn([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}]}]),
        "qwen-plus",
        lambda t: t.messages[0]["content"][0]["input_audio"]["data"] == "data:audio/mp3;base64,AAAA",
    ),
    "tools_empty": (turn(tool_choice="auto", parallel_tool_calls=True), "qwen-plus", lambda t: t.tool_choice is None and not t.params),
    "tools_forbidden": (turn(tools=[TOOL], tool_choice="none"), "qwen-plus", lambda t: not t.tools and t.tool_choice is None),
    "named_tool": (turn(tools=[TOOL, OTHER_TOOL], tool_choice=NAMED), "qwen3.8-27b", lambda t: (t.tools, t.tool_choice) == ([TOOL], "required")),
    "parallel_calls": (turn(tools=[TOOL]), "qwen-plus", lambda t: t.params == {"parallel_tool_calls": True}),
    "thinking_params": (turn(think=False), "qwen-plus", lambda t: t.params == {"enable_thinking": False}),
    "reasoning_effort": (turn(reasoning_effort="low"), "qwen-plus", lambda t: t.params == {"enable_thinking": True, "thinking_budget": 4096}),
    "thinking_kwargs": (turn(enable_thinking=False), "qwen3-32b", lambda t: t.params == {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}}),
    "completion_thinking": (replace(turn(), completion=CompletionPrompt(("hi",))), "qwen3.7-plus", lambda t: t.params == {"enable_thinking": False}),
    "forced_tool": (turn(tools=[TOOL], tool_choice="required"), "qwen3.7-plus", lambda t: t.params["enable_thinking"] is False and t.tool_choice == "required"),
    "forced_tool_refused": (turn(tools=[TOOL], tool_choice="required", reasoning_effort="high"), "qwen4-max", lambda t: t.params["enable_thinking"] is False and "reasoning_effort" not in t.params),
    "prefix_thinking": (turn([USER, {"role": "assistant", "content": "{", "partial": True}]), "qwen4-max", lambda t: t.params == {"enable_thinking": False}),
    "json_schema": (turn(response_format={"type": "json_schema", "json_schema": {}}), "qwen-max", None),
    "json_thinking": (turn([{"role": "user", "content": "json"}], response_format={"type": "json_object"}), "qwen3.5-plus", lambda t: t.params["enable_thinking"] is False),
    "json_keyword": (turn(response_format={"type": "json_object"}), "qwen-max", lambda t: "JSON" in t.messages[0]["content"]),
    "one_output_limit": (turn(max_completion_tokens=5), "qwen-max", lambda t: t.params == {"max_tokens": 5}),
    "output_limit": (turn(max_tokens=32000), "qwen-max", lambda t: t.params == {"max_tokens": 8192}),
    "thinking_summary": (replace(turn(), summarize_reasoning=True), "qwen4-max", lambda t: t.params == {"thinking_display": "summarized"}),
    "foreign_ciphertext": (turn([USER, {"role": "assistant", "content": "x", "encrypted_content": "c"}]), "qwen-plus", lambda t: "encrypted_content" not in t.messages[1]),
    "preserve_thinking": (turn([USER, {"role": "assistant", "content": "x", "encrypted_content": "c"}]), "qwen4-max", lambda t: t.params == {"preserve_thinking": True} and t.messages[1]["encrypted_content"] == "c"),
    "cache_breakpoints": (turn([{"role": "user", "content": [MARKED]}]), "qwen3.8-max", lambda t: t.messages[0]["content"] == [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]),
    "cache_options": (turn(prompt_cache_options={"mode": "explicit"}), "qwen3.8-max", lambda t: not t.params),
    "cache_ttl": (turn(prompt_cache_options={"mode": "explicit", "ttl": "30m"}), "qwen4-max", lambda t: t.params == {"prompt_cache_options": {"mode": "explicit", "ttl": "1h"}}),
    "temperature": (turn(temperature=2), "qwen-max", lambda t: t.params["temperature"] < 2),
    "top_p": (turn(top_p=0), "qwen-max", lambda t: t.params["top_p"] > 0),
    "seed": (turn(seed=-1), "qwen-max", lambda t: 0 <= t.params["seed"] < 2**31),
    "top_logprobs": (turn(top_logprobs=20), "qwen-max", lambda t: t.params["top_logprobs"] == 5),
    "max_choices": (turn(n=5), "qwen-max", None),
    "audio_output": (turn(modalities=["text", "audio"]), "qwen-max", None),
    "web_search": (turn(web_search_options={}), "qwen-plus", lambda t: t.params == {"enable_search": True}),
    "hosted_params": (turn(enable_search=True, tool_stream=True), "qwen3.8-27b", lambda t: not t.params),
    "unsupported_params": (turn(user="u", store=True, prediction={}), "qwen-max", lambda t: not t.params),
}  # fmt: skip


def test_every_rule_has_a_case_and_a_row():
    """The table, the examples and the page name the same rules."""
    assert [rule.name for rule in request_rules.RULES] == list(CASES)
    places = ("all", "dashscope", "qwen", "open", "open qwen", "learned")
    assert all(rule.doc and rule.where in places for rule in request_rules.RULES)
    page = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
    for rule in request_rules.RULES:
        assert f"| `{rule.name}` | {rule.doc} | {rule.where} |" in page


WHERE = {rule.name: "open" if rule.where.startswith("open") else "dashscope" for rule in request_rules.RULES}
"""A family to which each rule applies."""
LEARNED = {rule.name for rule in request_rules.RULES if rule.where == "learned"}
"""Rules that are off by default."""


@pytest.mark.parametrize("name", CASES)
def test_a_rule_does_what_it_says(name):
    """The rule changes its target, reports it, leaves its input unchanged, and changes nothing when applied
    again."""
    given, model, holds = CASES[name]
    before = copy.deepcopy(given)
    if holds is None:
        with pytest.raises(RequestError):
            apply(given, model)
        return
    family = WHERE[name]
    switches = {name: True} if name in LEARNED else {}
    applied = apply(given, model, family=family, switches=switches)
    assert name in applied.applied
    assert holds(applied.turn)
    assert given == before
    assert apply(applied.turn, model, family=family, switches=switches).turn == applied.turn


@pytest.mark.parametrize("name", CASES)
def test_a_rule_can_be_switched_off(name):
    """A disabled rule is never applied."""
    given, model, _ = CASES[name]
    switches = {**dict.fromkeys(CASES, False)}
    assert name not in apply(given, model, family=WHERE[name], switches=switches).applied


@pytest.mark.parametrize(
    "rule", [rule for rule in request_rules.RULES if rule.where == "dashscope"], ids=lambda rule: rule.name
)
def test_openai_compatible_servers_are_not_changed(rule):
    """A rule for DashScope does not change requests of another server unless it is enabled."""
    given, model, holds = CASES[rule.name]
    assert rule.name not in apply(given, model, family="open").applied
    if holds is not None:
        assert rule.name in apply(given, model, family="open", switches={rule.name: True}).applied


def test_a_turn_without_faults_is_the_same_object():
    """A turn without a change is not copied."""
    given = turn(temperature=0)
    assert apply(given).turn is given


def test_strict_params():
    """With strict_params a dropped parameter is a 400 that names it."""
    with pytest.raises(RequestError) as caught:
        apply(turn(logit_bias={}), strict_params=True)
    assert (caught.value.param, caught.value.code) == ("logit_bias", "unsupported_parameter")
    with pytest.raises(RequestError, match="metadata"):  # the endpoint has already dropped it
        apply(replace(turn(), ignored=("metadata",)), strict_params=True)


def test_dropped_parameters_are_named():
    """They are reported in the order of the table."""
    assert apply(turn(user="u", verbosity="low", metadata={}), "glm-5").ignored == (
        "user",
        "verbosity",
        "metadata",
    )


def test_forced_tools_can_become_auto():
    """By setting, thinking stays and the tool choice becomes auto; the note states it."""
    applied = apply(turn(tools=[TOOL], tool_choice=NAMED), forced_tools="auto")
    assert applied.turn.tool_choice == "auto"
    assert "auto" in applied.notes[0]


QWEN4_EFFORTS = ("none", "off", "minimal", "low", "medium", "high", "xhigh", "max")
EFFORTS = {
    **{f"{word} on Qwen4": ("qwen4-max", word, {"reasoning_effort": word}) for word in QWEN4_EFFORTS},
    "another word for the most": ("qwen4-max", "ultra", {"reasoning_effort": "max"}),
    "a word that nobody knows": ("qwen4-max", "huge", {"reasoning_effort": "huge"}),
    "newer than any": ("qwen5-max", "minimal", {"reasoning_effort": "minimal"}),
    "off on 3.8": ("qwen3.8-max", "off", {"enable_thinking": False}),
    "max on 3.8": ("qwen3.8-max", "max", {"reasoning_effort": "xhigh"}),
    "off before 3.8": ("qwen3.7-plus", "off", {"enable_thinking": False}),
    "a model that always thinks": ("qwen3.8-2.4t-a95b", "none", {}),
    "one of the older that always think": ("qwq-plus", "low", {"thinking_budget": 4096}),
    "a model that never thinks": ("qwen3-coder-plus", "high", {}),
    "another vendor's own words": ("deepseek-v4.1-flash", "xhigh", {"reasoning_effort": "high"}),
    "another vendor that reads none": ("kimi-k2.6", "high", {"enable_thinking": True}),
    "a stranger": ("llama-3", "high", {"reasoning_effort": "high"}),
    "none": ("qwen-plus", "none", {"enable_thinking": False}),
    "minimal on 3.8": ("qwen3.8-max", "minimal", {"reasoning_effort": "low"}),
    "high": ("qwen3.7-plus", "high", {"enable_thinking": True}),
    "high on 3.8": ("qwen3.8-max", "high", {"reasoning_effort": "xhigh"}),
    "low on 3.8": ("qwen3.8-max", "low", {"reasoning_effort": "low"}),
    "another vendor": ("deepseek-v4-pro", "high", {"reasoning_effort": "high"}),
}


@pytest.mark.parametrize(("model", "effort", "params"), EFFORTS.values(), ids=EFFORTS.keys())
def test_efforts(model, effort, params):
    """OpenAI's efforts become the parameters of each model."""
    assert apply(turn(reasoning_effort=effort), model).turn.params == params


CONTRADICTIONS = {
    "effort and budget": ({"reasoning_effort": "high", "thinking_budget": 100}, {"reasoning_effort": "high"},
        ("thinking_budget",)),
    "effort and the switch": ({"reasoning_effort": "high", "enable_thinking": False},
        {"reasoning_effort": "high"}, ("enable_thinking",)),
    "the same twice": ({"reasoning_effort": "none", "enable_thinking": False}, {"reasoning_effort": "none"},
        ()),
    "a budget alone": ({"thinking_budget": 100}, {"thinking_budget": 100}, ()),
    "the switch alone": ({"enable_thinking": False}, {"enable_thinking": False}, ()),
}  # fmt: skip


@pytest.mark.parametrize(("params", "sent", "ignored"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_an_effort_excludes_contradicting_parameters(params, sent, ignored):
    """Qwen4 rejects an effort beside a budget or a switch: the effort stays, and what it replaces is
    named."""
    applied = apply(turn(**params), "qwen4-max")
    assert (applied.turn.params, applied.ignored) == (sent, ignored)


OUTPUTS = {
    "both limits": ("qwen4-max", {"max_tokens": 9, "max_completion_tokens": 8}, {"max_completion_tokens": 8}),
    "the older limit, which is for all": ("qwen4-max", {"max_tokens": 9}, {"max_tokens": 9}),
    "thoughts count, and have more room": ("qwen4-max", {"max_tokens": 400_000}, {"max_tokens": 262_144}),
    "no thoughts": ("qwen4-max", {"max_tokens": 400_000, "reasoning_effort": "none"},
        {"max_tokens": 131_072, "reasoning_effort": "none"}),
    "a newer model may give more": ("qwen5-max", {"max_tokens": 400_000}, {"max_tokens": 400_000}),
    "an older one": ("qwen3.8-max", {"max_tokens": 400_000}, {"max_tokens": 131_072}),
    "a stranger": ("llama-3", {"max_tokens": 400_000}, {"max_tokens": 400_000}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "params", "sent"), OUTPUTS.values(), ids=OUTPUTS.keys())
def test_output_limits(model, params, sent):
    """One limit is sent, at most the model's known maximum, including reasoning if it counts."""
    assert apply(turn(**params), model).turn.params == sent


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_tools_of_qwen4_are_forwarded(choice):
    """If it is unknown whether a model can be forced while thinking, the choice is sent unchanged."""
    given = turn(tools=[TOOL], tool_choice=choice, parallel_tool_calls=True, reasoning_effort="high")
    assert apply(given, "qwen4-max").turn is given


def test_json_mode_of_an_untested_model():
    """For an unknown model thinking is disabled only if it was requested; otherwise the server's default
    holds."""
    given = turn([{"role": "user", "content": "json"}], response_format={"type": "json_object"})
    assert apply(given, "glm-5.2").turn is given
    request_turn = turn(
        [{"role": "user", "content": "json"}], response_format={"type": "json_object"}, enable_thinking=True
    )
    assert apply(request_turn, "llama-3").turn.params["enable_thinking"] is False


def test_a_model_that_always_thinks_cannot_be_forced():
    """Such a model's thinking cannot be disabled, so the tool choice becomes auto."""
    applied = apply(turn(tools=[TOOL], tool_choice="required"), "qwen3.8-2.4t-a95b")
    assert (applied.turn.tool_choice, "enable_thinking" in applied.turn.params) == ("auto", False)


PRESERVED = {
    "a model that reads them on request": ("qwen3.7-plus", True, {}, {"preserve_thinking": True}),
    "a model that reads them anyway": ("qwen3.8-max", True, {}, {}),
    "a model that does not": ("qwen-plus", True, {}, {}),
    "an unknown model": ("llama-3", True, {}, {}),
    "an API that does not keep them": ("qwen3.7-plus", False, {}, {}),
    "a client that says so": (
        "qwen3.7-plus",
        True,
        {"preserve_thinking": False},
        {"preserve_thinking": False},
    ),
}


@pytest.mark.parametrize(("model", "keeps", "params", "expected"), PRESERVED.values(), ids=PRESERVED)
def test_reasoning_of_earlier_responses(model, keeps, params, expected):
    """An API that keeps reasoning in the prompt enables it for models that support it, if the client
    agrees."""
    history = [USER, {"role": "assistant", "content": "x", "reasoning_content": "r"}, USER]
    for messages, expected_params in ((history, expected), ([USER], params)):
        given = replace(turn(messages, **params), preserve_reasoning=keeps)
        assert apply(given, model).turn.params == expected_params


PASSES = {
    "thinking_display": "summarized",
    "preserve_thinking": True,
    "prompt_cache_options": {"mode": "explicit", "ttl": "1h"},
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    "enable_search": True,
    "a_field_of_tomorrow": {"x": 1},
}


def test_qwen4_fields_are_forwarded():
    """Its own fields and unknown ones are sent unchanged, including markers on parts and ciphertext."""
    history = {"role": "assistant", "content": "x", "reasoning_content": "r", "encrypted_content": "c"}
    given = turn([{"role": "user", "content": [MARKED]}, history, USER], **PASSES)
    assert apply(given, "qwen4-max").turn is given


def marked(ttl):
    """Return a turn with one part, a cache breakpoint with a time to live."""
    mark = {"mode": "explicit", **({} if ttl is None else {"ttl": ttl})}
    return turn([{"role": "user", "content": [{**MARKED, "prompt_cache_breakpoint": mark}]}])


def test_a_breakpoint_has_its_own_time_to_live():
    """OpenAI's values become the model's in a breakpoint, too, and are dropped once rejected."""
    assert apply(marked("12h"), "qwen4-max").turn.messages == marked("1h").messages
    assert apply(given := marked("5m"), "qwen4-max").turn is given
    refusal = UpstreamError("prompt_cache_breakpoint.ttl must be one of 5m, 1h", status=400)
    amended = amendments.amend_after_error(refusal, marked("2h"))
    assert amended is not None
    assert amended.messages == marked(None).messages
    assert "prompt_cache_breakpoint" in amendments.changes(marked("2h"), amended)[0]
    assert amendments.amend_after_error(refusal, marked(None)) is None


def test_breakpoints_without_an_explicit_cache():
    """A model without an explicit cache gets no marker, and the client is notified."""
    applied = apply(turn([{"role": "user", "content": [MARKED]}]), "qwen-max")
    assert applied.turn.messages[0]["content"] == [{"type": "text", "text": "x"}]
    assert applied.ignored == ("prompt_cache_breakpoint",)


ARGUMENTS = {
    "null": (None, "{}"),
    "empty": ("", "{}"),
    "an object": ({"a": 1}, '{"a":1}'),
    "broken": ('{"a', '{"arguments":"{\\"a"}'),
    "blank": (" ", "{}"),
    "JSON null": ("null", "{}"),
    "JSON string": ('"Paris"', '{"arguments":"Paris"}'),
    "JSON list": ("[1]", '{"arguments":[1]}'),
    "a list": ([1], '{"arguments":[1]}'),
    "JSON number": ("5", '{"arguments":5}'),
    "JSON false": ("false", '{"arguments":false}'),
    "an object encoded twice": ('"{\\"a\\": 1}"', '{"a":1}'),
    "fine": ('{"a": 1}', '{"a": 1}'),
}


@pytest.mark.parametrize(("given", "expected"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_in_the_history(given, expected):
    """Arguments of earlier calls are sent as the JSON text of an object."""
    changed = apply(turn([USER, call(given, type="function")])).turn
    assert changed.messages[1]["tool_calls"][0]["function"]["arguments"] == expected


class AllMarkers(frozenset):
    """Markers that contain every one."""

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
def test_markers_skip_no_rule_with_an_effect(messages):
    """A rule about messages runs only if they have its markers; running it always would give the same
    result."""
    applied = apply(turn(messages))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(message_rules, "features", lambda messages: AllMarkers())
        assert apply(turn(messages)) == applied


def test_a_rejected_forced_tool_becomes_auto():
    """If thinking is to stay, or cannot be disabled, the rejected tool choice becomes auto."""
    error = UpstreamError("tool_choice is not supported in thinking mode", status=400)
    amended = amendments.amend_after_error(error, turn(tools=[TOOL], tool_choice=NAMED), keep_thinking=True)
    assert amended is not None
    assert (amended.tool_choice, amended.params) == ("auto", {})
    assert amendments.amend_after_error(error, amended, keep_thinking=True) is None


LEARNT = {
    "a limit": ("Range of max_tokens should be [1, 100]", "max_tokens", {"max_tokens": 500},
        {"max_tokens": 100}),
    "a limit that is kept": ("Range of max_tokens should be [1, 100]", "max_tokens", {"max_tokens": 50},
        None),
    "must think": ("enable_thinking must be True", "enable_thinking", {"enable_thinking": False},
        {"enable_thinking": True}),
    "cannot think": ("does not support enable_thinking", "enable_thinking", {"enable_thinking": True},
        {"enable_thinking": False}),
    "something else": ("no", None, {"a": 1}, None),
    "a forced tool": ("The tool_choice parameter does not support being set to required or object in "
                      "thinking mode", None, {"reasoning_effort": "max", "thinking_budget": 1},
                      {"enable_thinking": False}),
    "an effort that is not legal": ("'reasoning_effort' must be one of: "
                                    "'none','minimal','low','medium','high','xhigh'", None,
                                    {"reasoning_effort": "max"}, {"reasoning_effort": "xhigh"}),
    "an effort that nobody knows": ("'reasoning_effort' must be one of: 'low','high'", None,
        {"reasoning_effort": "huge"}, {}),
    "an effort beside a budget": ("reasoning_effort and thinking_budget cannot be used together", None,
        {"reasoning_effort": "low", "thinking_budget": 9}, {"reasoning_effort": "low"}),
    "an effort that is not read": ("reasoning_effort is not supported by this model", None,
        {"reasoning_effort": "low"}, {}),
    "a time to live": ("Invalid value for prompt_cache_options.ttl", None,
        {"prompt_cache_options": {"mode": "explicit", "ttl": "2h"}},
        {"prompt_cache_options": {"mode": "explicit"}}),
    "a word within a word": ("Throttling", None, {"prompt_cache_options": {"ttl": "2h"}}, None),
}  # fmt: skip


@pytest.mark.parametrize(("message", "param", "params", "expected"), LEARNT.values(), ids=LEARNT.keys())
def test_learning_from_an_error(message, param, params, expected):
    """A 400 that names the required value is retried with it once."""
    mended = amendments.amend_after_error(UpstreamError(message, status=400, param=param), turn(**params))
    assert (mended.params if mended else None) == expected
