"""The Qwen rules: changes that an OpenAI request needs before a Qwen server accepts it.

Each rule is one row of `RULES`: a name (its switch in `[rules]` and its count), a description, where it is on
by default (`_families`), and a function. Rules for DashScope do not apply to an `open` server unless they are
enabled by name, or learned from its rejections (`rejections`); those for "all" repair what every server
rejects.

A rule gets a `RequestDraft`, replaces what it changes (never edits a message in place: the client's objects
are shared) and returns whether it did. A rule may drop a parameter (`draft.drop_param`), which is reported to
the client in `x-qproxy-ignored-params`, or with `strict_params` refused.

Sources: Qwen's chat reference; issues that users of other proxies filed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import NoneType

from qproxy.wire.dialects import (
    cache_rules,
    history_rules,
    message_rules,
    search_rules,
    thinking_rules,
    thinking_spellings,
)
from qproxy.wire.dialects.request_draft import RequestDraft, unsupported_param
from qproxy.wire.errors import RequestError
from qproxy.wire.events import Turn
from qproxy.wire.models import ModelSpec

ApplyRule = Callable[[RequestDraft], bool]


@dataclass(frozen=True, slots=True)
class RequestRule:
    """One row of the table."""

    name: str
    doc: str
    where: str
    """"dashscope", "open", "open qwen" (Qwen models on other servers), "qwen" (DashScope and those),
    "all", or "learned" (off until a rejection suggests it)."""
    apply: ApplyRule


def _messages(change: message_rules.ChangeMessages, *about: message_rules.Feature) -> ApplyRule:
    """Return a rule about messages that have one of these features, or about any if none is given.

    A function that changes nothing returns the same list; without the features it is not called.
    """

    def apply(draft: RequestDraft) -> bool:
        if about and draft.marks.isdisjoint(about):
            return False
        changed = change(draft.messages)
        done = changed is not draft.messages
        if done:
            draft.set_messages(changed)
        return done

    return apply


_extras = _messages(message_rules.assistant_extras, list, *message_rules.EXTRAS)


def _assistant_extras(draft: RequestDraft) -> bool:
    lost = message_rules.lost_extras(draft.messages) if not draft.marks.isdisjoint(message_rules.LOST) else ()
    for name in lost:
        draft.ignore(f"messages.{name}")
    return _extras(draft)


def _tools_empty(draft: RequestDraft) -> bool:
    if draft.tools:
        return False
    had = draft.tool_choice is not None or "parallel_tool_calls" in draft.params
    draft.tool_choice = None
    draft.params.pop("parallel_tool_calls", None)
    return had


def _tool_choice_allowed(draft: RequestDraft) -> bool:
    if draft.tool_choice != "none":
        return False
    draft.tools, draft.tool_choice = (
        (),
        None,
    )  # not every server supports "none"; without tools there is no call
    draft.params.pop("parallel_tool_calls", None)
    return True


def _parallel_calls(draft: RequestDraft) -> bool:
    if not draft.tools or "parallel_tool_calls" in draft.params:
        return False
    draft.params["parallel_tool_calls"] = True
    return True


def _json_keyword(draft: RequestDraft) -> bool:
    if (draft.params.get("response_format") or {}).get("type") != "json_object":
        return False
    if any("json" in message_rules.text_of(message).lower() for message in draft.messages):
        return False
    draft.set_messages(message_rules.append_system(draft.messages, "Answer in JSON."))
    return True


def _json_schema(draft: RequestDraft) -> bool:
    wanted = draft.params.get("response_format") or {}
    if wanted.get("type") != "json_schema" or draft.spec.json_schema is not False:
        return False
    message = f"Model {draft.model!r} does not support json_schema; newer Qwen models do."
    raise RequestError(message, param="response_format", code="unsupported_value")


def _output_limit(draft: RequestDraft) -> bool:
    spec = draft.spec
    if not spec.knows("output"):  # a newer model may allow more, and rejects the request if it does not
        return False
    both = spec.max_tokens_counts == "all" and draft.thinking
    limit = max(spec.output or 0, spec.output_thinking or 0) if both else spec.output or 0
    done = False
    for name in ("max_tokens", "max_completion_tokens"):
        value = draft.params.get(name)
        if isinstance(value, int) and value > limit:
            draft.params[name] = limit
            done = True
    return done


def _one_output_limit(draft: RequestDraft) -> bool:
    if "max_completion_tokens" not in draft.params:
        return False
    if draft.spec.max_completion_tokens:
        return draft.params.pop("max_tokens", None) is not None
    draft.params["max_tokens"] = draft.params.pop("max_completion_tokens")
    return True


def _temperature(draft: RequestDraft) -> bool:
    value = draft.params.get("temperature")
    if not isinstance(value, int | float) or value < 2:
        return False
    draft.params["temperature"] = 1.99
    return True


def _top_p(draft: RequestDraft) -> bool:
    value = draft.params.get("top_p")
    if not isinstance(value, int | float) or value > 0:
        return False
    draft.params["top_p"] = 0.01
    return True


def _seed(draft: RequestDraft) -> bool:
    value = draft.params.get("seed")
    if not isinstance(value, int) or 0 <= value < 2**31:
        return False
    draft.params["seed"] = value % 2**31
    return True


def _logprobs(draft: RequestDraft) -> bool:
    value = draft.params.get("top_logprobs")
    if not isinstance(value, int) or value <= 5:
        return False
    draft.params["top_logprobs"] = 5
    return True


def _max_choices(draft: RequestDraft) -> bool:
    count = draft.params.get("n")
    if not isinstance(count, int) or count == 1:
        return False
    if count > 4 or draft.tools:
        message = (
            f"n = {count} is not supported: Qwen returns at most 4 choices, and 1 if tools are declared."
        )
        raise RequestError(message, param="n", code="unsupported_value")
    return False


def _audio_output(draft: RequestDraft) -> bool:
    if "audio" in (draft.params.get("modalities") or ()) and "audio" not in (draft.spec.outputs or ()):
        message = f"Model {draft.model!r} does not support audio output."
        raise RequestError(message, param="modalities", code="unsupported_value")
    return False


def _named_tool(draft: RequestDraft) -> bool:
    """Send only the tool that must be called: several servers read no object, and then treat the choice as
    "auto"."""
    if not isinstance(draft.tool_choice, dict) or draft.tool_choice.get("type") != "function":
        return False
    name = draft.tool_choice["function"]["name"]
    named = [tool for tool in draft.tools if tool.get("function", {}).get("name") == name]
    if not named:
        return False
    draft.tools, draft.tool_choice = named, "required"
    return True


UNSUPPORTED_PARAMS = (
    "frequency_penalty", "logit_bias", "user", "store", "service_tier", "prediction", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "verbosity", "moderation",
    "web_search_options", "background", "webhook_config",
)  # fmt: skip


def _drop_unsupported(draft: RequestDraft) -> bool:
    dropped = [name for name in UNSUPPORTED_PARAMS if draft.drop_param(name)]
    if not draft.spec.metadata and draft.drop_param("metadata"):
        dropped.append("metadata")
    return bool(dropped)


RULES = (
    RequestRule("developer_role", "role developer becomes system, which Qwen expects",
        "qwen", _messages(message_rules.developer_to_system, "developer")),
    RequestRule("merge_system_messages", "all system messages become one, at the start",
        "dashscope", _messages(message_rules.merge_system, "system")),
    RequestRule("leading_system", "system messages at the start become one",
        "open qwen", _messages(history_rules.join_leading_system, "system")),
    RequestRule("system_reminder",
        "a later system message becomes a user message in its place, marked as a reminder",
        "open qwen", _messages(history_rules.system_to_reminder, "system")),
    RequestRule("user_message", "a conversation without a user message gets one after its system messages",
        "open qwen", _messages(history_rules.add_user_message)),
    RequestRule("function_role",
        "deprecated function messages and function_call become tool messages and tool_calls",
        "dashscope", _messages(message_rules.function_to_tool, "function", "function_call")),
    RequestRule("repair_tool_calls",
        "tool calls in the history get a type, and arguments that are the JSON text of an object",
        "all", _messages(message_rules.repair_calls, "tool_calls")),
    RequestRule("null_content", "null content of an assistant message becomes an empty string",
        "dashscope", _messages(message_rules.null_content, NoneType)),
    RequestRule("assistant_extras",
        "refusal, audio and annotations of earlier answers are left out; reasoning becomes reasoning_content",
        "all", _assistant_extras),
    RequestRule("unanswered_calls",
        "results directly follow their calls, and a call in the history without one gets a note as its "
        "result",
        "dashscope", _messages(history_rules.answer_calls, "tool_calls")),
    RequestRule("orphan_results", "a tool result without its call becomes a user message",
        "dashscope", _messages(history_rules.orphan_results, "tool")),
    RequestRule("tool_content", "tool results become text; pictures in them move to a user message",
        "dashscope", _messages(message_rules.tool_content, list)),
    RequestRule("cache_marker", "the cache marker of a tool's result or an answer moves into its text",
        "dashscope", _messages(message_rules.place_cache_markers, "cache_control")),
    RequestRule("audio_input", "bare base64 audio becomes a data URI",
        "dashscope", _messages(message_rules.audio_uris, list)),
    RequestRule("tools_empty", "without tools there is no tool_choice and no parallel_tool_calls",
        "all", _tools_empty),
    RequestRule("tools_forbidden", "tool_choice none removes the tools", "dashscope", _tool_choice_allowed),
    RequestRule("named_tool",
        "a named tool_choice becomes required, with that tool alone: llama.cpp, Ollama and LM Studio do not "
        "read a name",
        "open qwen", _named_tool),
    RequestRule("parallel_calls", "parallel_tool_calls is true by default, as at OpenAI",
        "dashscope", _parallel_calls),
    RequestRule("thinking_params",
        "thinking, reasoning, think (and chat_template_kwargs for DashScope) become enable_thinking, "
        "thinking_budget and reasoning_effort",
        "qwen", thinking_spellings.thinking_params),
    RequestRule("reasoning_effort",
        "reasoning_effort becomes enable_thinking and thinking_budget, or Qwen's own efforts",
        "dashscope", thinking_rules.reasoning_effort),
    RequestRule("thinking_kwargs",
        "thinking is also switched by chat_template_kwargs, where vLLM, SGLang and llama.cpp look",
        "open", thinking_rules.thinking_kwargs),
    RequestRule("completion_thinking",
        "a completion is made without thinking, which it cannot return, unless thinking is requested",
        "dashscope", thinking_rules.completion_thinking),
    RequestRule("forced_tool",
        "a forced tool switches thinking off (or becomes auto, see forced_tool_choice)",
        "dashscope", thinking_rules.forced_tool),
    RequestRule("forced_tool_refused",
        "the same for a model that is not known to refuse a forced tool while it thinks",
        "learned", thinking_rules.forced_tool_refused),
    RequestRule("prefix_thinking", "an answer that begins with a given text (partial) is made without thinking",
        "dashscope", thinking_rules.prefix_thinking),
    RequestRule("json_schema", "json_schema is rejected for models that would ignore it",
        "dashscope", _json_schema),
    RequestRule("json_thinking", "JSON mode switches thinking off for models that cannot do both",
        "dashscope", thinking_rules.json_mode),
    RequestRule("json_keyword", "JSON mode gets the word JSON into the messages", "dashscope", _json_keyword),
    RequestRule("one_output_limit",
        "max_tokens and max_completion_tokens become the one that the model supports",
        "dashscope", _one_output_limit),
    RequestRule("output_limit", "an output limit above the model's own is lowered to it",
        "dashscope", _output_limit),
    RequestRule("thinking_summary",
        "a summary of the reasoning that a Responses request asks for becomes thinking_display for models "
        "that have it",
        "dashscope", thinking_rules.thinking_summary),
    RequestRule("foreign_ciphertext",
        "encrypted_content of earlier reasoning is left out for models that have none",
        "all", thinking_rules.foreign_ciphertext),
    RequestRule("preserve_thinking",
        "encrypted thoughts in the history, and those of /v1/messages, switch preserve_thinking on",
        "dashscope", thinking_rules.preserve_thinking),
    RequestRule("cache_breakpoints",
        "prompt_cache_breakpoint becomes the cache_control that older models know, or is left out",
        "dashscope", cache_rules.cache_breakpoints),
    RequestRule("cache_options", "prompt_cache_options is left out and named for models that do not know it",
        "dashscope", cache_rules.cache_options),
    RequestRule("cache_ttl", "OpenAI's times to live of the context cache become the model's own",
        "dashscope", cache_rules.cache_ttl),
    RequestRule("temperature", "temperature 2 becomes 1.99: Qwen's range ends below 2",
        "dashscope", _temperature),
    RequestRule("top_p", "top_p 0 becomes 0.01: Qwen's range begins above 0", "dashscope", _top_p),
    RequestRule("seed", "a seed outside 31 bits is folded into them", "dashscope", _seed),
    RequestRule("top_logprobs", "top_logprobs above 5 becomes 5", "dashscope", _logprobs),
    RequestRule("max_choices", "n above 4, or above 1 with tools, is rejected", "dashscope", _max_choices),
    RequestRule("audio_output", "audio output is rejected for models that do not support it",
        "dashscope", _audio_output),
    RequestRule("web_search",
        "web_search_options becomes enable_search, with sources where the server returns any",
        "dashscope", search_rules.web_search),
    RequestRule("hosted_params",
        "fields that only Alibaba's servers know (web search, tool_stream, partial) are dropped and named "
        "in a header",
        "open", search_rules.hosted_params),
    RequestRule("unsupported_params",
        "OpenAI's fields that Qwen does not support are dropped and named in a header",
        "dashscope", _drop_unsupported),
)  # fmt: skip

RENAMED_RULES = {
    "one_system": "merge_system_messages",
    "calls_mended": "repair_tool_calls",
    "effort": "reasoning_effort",
    "json_word": "json_keyword",
    "choices": "max_choices",
    "meaningless": "unsupported_params",
}
"""Old names of rules: the configuration rejects them, the ledger replaces them."""


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The result of applying the rules to a turn."""

    turn: Turn
    applied: tuple[str, ...]
    """Names of the rules that changed something."""
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


def _families(family: str, spec: ModelSpec) -> tuple[str, ...]:
    """Return the values of `where` that include a model on a server of this family."""
    if family == "dashscope":
        return "all", "dashscope", "qwen"
    return ("all", "open", "open qwen", "qwen") if spec.vendor == "qwen" else ("all", "open")


def apply_rules(
    turn: Turn,
    *,
    model: str,
    spec: ModelSpec,
    family: str,
    native: bool = False,
    switches: Mapping[str, bool] | None = None,
    strict_params: bool,
    forced_tools: str,
) -> RuleResult:
    """Return the turn as a server of `family` requires it. Raises RequestError if dropping would change the
    meaning."""
    if strict_params and turn.ignored:
        raise unsupported_param(turn.ignored[0])
    draft = RequestDraft(
        turn,
        model=model,
        spec=spec,
        family=family,
        native=native,
        forced_tools=forced_tools,
        strict_params=strict_params,
    )
    switches, families = switches or {}, _families(family, spec)
    applied = tuple(
        rule.name for rule in RULES if switches.get(rule.name, rule.where in families) and rule.apply(draft)
    )
    if not applied:
        return RuleResult(turn, (), (), ())
    changed = replace(
        turn, messages=draft.messages, tools=draft.tools, tool_choice=draft.tool_choice, params=draft.params
    )
    return RuleResult(changed, applied, tuple(draft.ignored), tuple(draft.notes))
