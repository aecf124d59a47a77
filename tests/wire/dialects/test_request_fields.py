"""Every field of a chat request: docs/rules.md, compared with the official SDK's own list and the code."""

import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from openai.types.chat import completion_create_params

from qproxy.bootstrap.models import package_catalog
from qproxy.wire.dialects import DIALECTS, UpstreamTarget, request_rules
from qproxy.wire.endpoints import chat
from qproxy.wire.errors import RequestError
from tests.wire.dialects.test_request_rules import apply, turn

PAGE = Path(__file__).parents[3] / "docs" / "rules.md"
ROWS = {
    row[0]: row[1:]
    for row in re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text().partition("\n## ")[2], re.M
    )
}
F = {"type": "function", "function": {"name": "f"}}
G = {"type": "function", "function": {"name": "g"}}
TOOLS = {"tools": [F, G]}
SAMPLES: dict[str, Any] = {
    "messages": [{"role": "user", "content": "say it in JSON"}],
    "audio": {"format": "wav", "voice": "Cherry"},
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "logit_bias": {"1": 1},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "model": "m",
    "moderation": {"model": "m"},
    "n": 1,
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": 0.5,
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "safety_identifier": "s",
    "seed": 1,
    "service_tier": "auto",
    "stop": ["x"],
    "store": True,
    "stream": True,
    "stream_options": {"include_usage": False},
    "temperature": 0.5,
    "tool_choice": F,
    "tools": [F, G],
    "top_logprobs": 5,
    "top_p": 0.5,
    "user": "u",
    "verbosity": "low",
    "web_search_options": {},
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning": {"effort": "high"},
    "think": False,
    "thinking": {"type": "disabled"},
    "enable_thinking": False,
    "enable_search": True,
    "search_options": {"forced_search": True},
    "tool_stream": True,
}
BESIDE: dict[str, dict[str, Any]] = {
    "function_call": {"functions": [{"name": "f"}]},
    "parallel_tool_calls": TOOLS,
    "tool_choice": TOOLS,
    "stream_options": {"stream": True},
}
"""Other fields that a field requires."""


def sent(field: str, model: str, family: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the upstream's request for one with a field, and the names of dropped fields."""
    body = {"messages": SAMPLES["messages"], "model": model, **BESIDE.get(field, {}), field: SAMPLES[field]}
    decoded = chat.decode({**body, "model": model}, id="i", created=0, default_model=None, max_messages=9)
    spec = package_catalog().get(model)
    applied = request_rules.apply_rules(
        decoded, model=model, spec=spec, family=family, strict_params=False, forced_tools="thinking-off"
    )
    target = UpstreamTarget("http://x/v1", "m", family=family, spec=spec)
    request = DIALECTS["compatible"].request(applied.turn, target)
    return json.loads(request.body), (*decoded.ignored, *applied.ignored)


def test_every_field_of_the_sdk_has_a_row():
    """A field that a newer SDK has fails here until the table has a row for it."""
    known = get_type_hints(completion_create_params.CompletionCreateParamsStreaming)
    assert set(known) <= set(ROWS)
    assert set(ROWS) == set(SAMPLES)


@pytest.mark.parametrize("field", SAMPLES)
@pytest.mark.parametrize("column", [0, 1], ids=["dashscope", "open"])
def test_a_row_matches_the_code(field, column):
    """The first word of a cell is the outcome: passed, mapped to one of the named fields, or dropped and
    named."""
    body, ignored = sent(field, ("qwen-plus", "qwen3.8-27b")[column], ("dashscope", "open")[column])
    cell = ROWS[field][column]
    if cell.startswith("passed"):
        assert body[field] == SAMPLES[field]
        assert field not in ignored
    elif cell.startswith("mapped: "):
        assert body.get(field) != SAMPLES[field]
        assert any(name in body for name in re.findall("`([a-z_]+)`", cell))
    else:
        assert cell.startswith("dropped")
        assert field not in body
        assert field in ignored


THINKING = {
    "Anthropic's": ({"thinking": {"type": "enabled", "budget_tokens": 99}},
        {"enable_thinking": True, "thinking_budget": 99}, ()),
    "adaptive": ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}, ()),
    "a boolean": ({"thinking": False}, {"enable_thinking": False}, ()),
    "a type of tomorrow": ({"thinking": {"type": "often"}}, {}, ("thinking",)),
    "a field of tomorrow": ({"thinking": {"type": "enabled", "depth": 3}}, {"enable_thinking": True},
        ("thinking.depth",)),
    "OpenRouter's effort": ({"reasoning": {"effort": "none"}}, {"enable_thinking": False}, ()),
    "OpenRouter's budget": ({"reasoning": {"max_tokens": 99}},
        {"enable_thinking": True, "thinking_budget": 99}, ()),
    "OpenRouter's switch": ({"reasoning": {"enabled": False, "exclude": True}}, {"enable_thinking": False},
        ("reasoning.exclude",)),
    "Ollama's switch": ({"think": True}, {"enable_thinking": True}, ()),
    "Ollama's word": ({"think": "low"}, {"enable_thinking": True, "thinking_budget": 4096}, ()),
    "a template's": ({"chat_template_kwargs": {"enable_thinking": True, "x": 1}}, {"enable_thinking": True},
        ("chat_template_kwargs.x",)),
    "DeepSeek's template": ({"chat_template_kwargs": {"thinking": False}}, {"enable_thinking": False}, ()),
    "none of these types": ({"thinking": 5, "reasoning": [], "think": {}, "chat_template_kwargs": 1}, {},
        ("thinking", "reasoning", "think", "chat_template_kwargs")),
    "two that agree": ({"think": False, "enable_thinking": False}, {"enable_thinking": False}, ()),
    "two that do not": ({"think": True, "enable_thinking": False}, {"enable_thinking": False}, ("think",)),
}  # fmt: skip


@pytest.mark.parametrize(("params", "expected", "ignored"), THINKING.values(), ids=THINKING.keys())
def test_other_names_of_thinking_parameters(params, expected, ignored):
    """Other APIs' parameters become Qwen's, which take precedence; a parameter without a counterpart is
    named, strictly a 400."""
    applied = apply(turn(**params), "qwen-plus")
    assert (applied.turn.params, applied.ignored) == (expected, ignored)
    if ignored:
        with pytest.raises(RequestError, match="Unsupported parameter") as caught:
            apply(turn(**params), "qwen-plus", strict_params=True)
        assert caught.value.param == ignored[0]
    else:
        assert apply(turn(**params), "qwen-plus", strict_params=True).turn.params == expected


TEMPLATES = {
    "Anthropic's": ({"thinking": {"type": "disabled"}}, False),
    "Ollama's": ({"think": True}, True),
    "OpenRouter's": ({"reasoning": {"enabled": False}}, False),
    "an effort": ({"reasoning": {"effort": "none"}}, False),
}


@pytest.mark.parametrize(("params", "switch"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_thinking_on_openai_compatible_servers(params, switch):
    """On such a server any spelling of the switch reaches the chat template."""
    applied = apply(turn(**params), "qwen3.8-27b", family="open")
    assert applied.turn.params["chat_template_kwargs"] == {"enable_thinking": switch}
    assert not set(params) & set(applied.turn.params)
    assert apply(turn(**params), "llama-3", family="open").turn.params == params


def test_preserved_thinking_on_openai_compatible_servers():
    """Qwen3.6 and newer read it in their templates, beside the client's settings there."""
    given = turn(preserve_thinking=True, chat_template_kwargs={"x": 1})
    sent_kwargs = apply(given, "qwen3.8-27b", family="open").turn.params["chat_template_kwargs"]
    assert sent_kwargs == {"x": 1, "preserve_thinking": True}


SEARCHES = {
    "plain": ("qwen-plus", {}, False, {"enable_search": True}, ()),
    "with sources": ("qwen-plus", {}, True,
        {"enable_search": True, "search_options": {"enable_source": True}}, ()),
    "thorough": ("qwen3.7-plus", {"search_context_size": "high"}, False,
        {"enable_search": True, "search_options": {"search_strategy": "max"}}, ()),
    "without strategies": ("qwen4-max", {"search_context_size": "high"}, False, {"enable_search": True},
        ("web_search_options.search_context_size",)),
    "no search": ("qwen3-coder-plus", {}, False, {}, ("web_search_options",)),
    "near somewhere": ("qwen-plus", {"user_location": {"type": "approximate"}}, False,
        {"enable_search": True}, ("web_search_options.user_location",)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "options", "native", "expected", "ignored"), SEARCHES.values(), ids=SEARCHES.keys()
)
def test_web_search(model, options, native, expected, ignored):
    """OpenAI's options become Qwen's, with sources if the API has them; an option without a counterpart is
    named."""
    applied = apply(turn(web_search_options=options), model, native=native)
    assert (applied.turn.params, applied.ignored) == (expected, ignored)


def test_a_disabled_search():
    """Qwen's own switch takes precedence, and the other one is named."""
    applied = apply(turn(web_search_options={}, enable_search=False), "qwen-plus")
    assert (applied.turn.params, applied.ignored) == ({"enable_search": False}, ("web_search_options",))


PARTIAL = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "partial": True}]


def test_a_prefix_is_for_hosted_models():
    """An OpenAI-compatible server gets no `partial`; a gateway to a model that only Alibaba serves gets every
    known field."""
    applied = apply(turn(PARTIAL), "qwen3.8-27b", family="open")
    assert applied.turn.messages[1] == {"role": "assistant", "content": "y"}
    assert applied.ignored == ("messages.partial",)
    hosted = turn(PARTIAL, enable_search=True)
    assert apply(hosted, "qwen-plus", family="open").turn is hosted


@pytest.mark.parametrize("family", ["dashscope", "open"])
def test_a_refusal_part_becomes_text(family):
    """Qwen models have no refusals: a refusal in an earlier response becomes text."""
    answer = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    sent = apply(turn([PARTIAL[0], answer]), "qwen3.8-27b", family=family).turn.messages[1]
    assert sent == {"role": "assistant", "content": [{"type": "text", "text": "no"}]}


def test_earlier_audio_is_named():
    """A reference to earlier audio, and annotations, are dropped and named; empty ones are not named."""
    answer = {"role": "assistant", "content": "x", "audio": {"id": "a"}, "annotations": []}
    assert apply(turn([PARTIAL[0], answer]), "qwen-plus").ignored == ("messages.audio",)
