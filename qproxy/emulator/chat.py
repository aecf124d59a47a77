"""The chat responses of the emulated Qwen: a request's JSON in, chunks out. Pure and deterministic.

The chunks have DashScope's documented shape, habits included: role and empty content first, `id: ""` on later
pieces of a call, `usage: null` until the last chunk, which has no choices. `refusal` rejects as DashScope
does.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import decisions, omni_audio, prompt_cache, thinking
from qproxy.emulator.errors import ApiError, bad_request
from qproxy.emulator.prompt_cache import NOT_CACHED, CacheUse
from qproxy.emulator.schema_values import example_arguments
from qproxy.emulator.unverified import NATURAL, Unverified

MAX_OUTPUT = 131_072
"""Of a model that the catalog does not know."""
NAME_TOKENS = 5
"""What a call costs besides its arguments."""
FAULTS = ("fault-", "quirk-")
CREATED = 1_760_000_000
GREETING_REPLY = re.compile(r"^\s*(hi|hello|hey|good (morning|evening)|thanks|你好)\b", re.IGNORECASE)

_WORD = re.compile(r"(?<!\s)\s*+\S++")
_FIM_MARKERS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def _text(message: Any) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def _is_known(model: str) -> bool:
    """Return whether it is a model of the emulated vendor, or the name of a fault."""
    catalog = package_catalog()
    vendor = catalog.get(catalog.defaults["chat"]).vendor
    return model.startswith(FAULTS) or catalog.find(model) is not None or catalog.get(model).vendor == vendor


def validate(body: Any, facts: Unverified = NATURAL) -> None:
    """Raise the refusal that DashScope would answer with."""
    messages = body.get("messages")
    if not body.get("model"):
        raise ApiError(400, "you must provide a model parameter", None)
    if not _is_known(str(body["model"])):
        text = f"The model `{body['model']}` does not exist or you do not have access to it."
        raise ApiError(404, text, "model_not_found")
    if not messages:
        raise ApiError(400, "[] is too short - 'messages'", None)
    roles = [message.get("role") for message in messages]
    if "developer" in roles:
        raise ApiError(
            400,
            "developer is not one of ['system', 'assistant', 'user', 'tool', 'function'] - 'messages.0.role'",
            None,
        )
    if "system" in roles[1:]:
        raise bad_request("The system message must be at the beginning of messages.")
    if body.get("tools") == []:
        raise ApiError(400, "[] is too short - 'tools'", None)
    if not body.get("stream") and "stream_options" in body:
        raise ApiError(400, "'stream_options' only set this when you set stream: true", None)
    if not 0 <= body.get("temperature", 1) < 2:
        raise ApiError(400, "Temperature must be in the range [0, 2).", "invalid_parameter_error")
    if not 0 < body.get("top_p", 1) <= 1:
        raise ApiError(400, "top_p must be in the range (0, 1].", "invalid_parameter_error")
    spec = package_catalog().get(str(body["model"]))
    thinking.validate(body, spec, facts)
    prompt_cache.validate(body, facts)
    omni_audio.validate(body)
    limit = max(spec.output or 0, spec.output_thinking or 0) or MAX_OUTPUT
    if not 1 <= body.get("max_tokens", 1) <= limit:
        raise bad_request(f"Range of max_tokens should be [1, {limit}]")
    wants_json = (body.get("response_format") or {}).get("type") == "json_object"
    if wants_json and "json" not in " ".join(_text(message) for message in messages).lower():
        raise bad_request(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
            "'json_object'."
        )
    known = {call["id"] for m in messages for call in m.get("tool_calls") or ()}
    if any(m.get("role") == "tool" and m.get("tool_call_id") not in known for m in messages):
        raise bad_request(
            'messages with role "tool" must be a response to a preceding message with "tool_calls".'
        )


def fill_in_middle(prompt: str) -> str | None:
    """Return the text for the gap that Qwen-coder's words mark in a prompt; None when there is
    none."""
    _, found, gap = prompt.partition(_FIM_MARKERS[0])
    gap, middle, _ = gap.rpartition(_FIM_MARKERS[2])
    before, suffix, after = gap.rpartition(_FIM_MARKERS[1])
    return f"    return {len(before)} + {len(after)}" if found and middle and suffix else None


def reply(body: Any) -> tuple[str, str, list[tuple[str, str]]]:
    """(thought, text, calls): what the model answers; calls are names with their arguments' JSON."""
    last = body["messages"][-1]
    question = next((_text(m) for m in reversed(body["messages"]) if m.get("role") == "user"), "")
    if (filling := fill_in_middle(question)) is not None:
        return "", filling, []
    if decisions.GUARD in str(body["model"]).lower():
        return "", decisions.judge(body["messages"]), []
    if choices := decisions.choose(question):
        return "", choices[0][0], []
    thought = f"The user says: {question[:60]}. I will answer." if thinking.is_on(body) else ""
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice")
    forced = isinstance(choice, dict) or choice == "required"
    asks = last.get("role") != "tool" and not GREETING_REPLY.match(question)
    if tools and choice != "none" and (forced or asks):
        return thought, "", [_call(function, question) for function in _called_tools(tools, choice, question)]
    if last.get("role") == "tool":
        results = [_text(m) for m in body["messages"] if m.get("role") == "tool"]
        return thought, f"The tool says: {'; '.join(results)}. That answers: {question}", []
    if (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        schema = (body["response_format"].get("json_schema") or {}).get("schema")
        value = example_arguments(schema, question) if schema else {"answer": question}
        return thought, json.dumps(value, ensure_ascii=False), []
    memory = thinking.memory(body)
    heard = f" I heard {sound}." if (sound := omni_audio.hear(last)) else ""
    return thought, f"This is the emulator's {body['model']}.{memory}{heard} You said: {question}", []


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply within the output limit of its request."""

    thought: str
    text: str
    calls: list[tuple[str, str]]
    finish_reason: str


def answer(body: Any) -> Answer:
    """Return the reply, truncated to `max_completion_tokens` or `max_tokens`."""
    thought, text, calls = reply(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is None:
        return Answer(thought, text, calls, "tool_calls" if calls else "stop")
    spec = package_catalog().get(str(body["model"]))
    if body.get("max_completion_tokens") or spec.max_tokens_counts == "all":
        words = _WORD.findall(thought)
        thought, limit = "".join(words[:limit]), max(0, limit - len(words))
    words = _WORD.findall(text)
    cost = len(words) + sum(map(_call_tokens, calls))
    if cost <= limit:
        return Answer(thought, text, calls, "tool_calls" if calls else "stop")
    return Answer(thought, "".join(words[:limit]), _truncate_calls(calls, limit), "length")


def _call_tokens(call: tuple[str, str]) -> int:
    return len(call[1]) // 3 + NAME_TOKENS


def _truncate_calls(calls: list[tuple[str, str]], limit: int) -> list[tuple[str, str]]:
    """Return the calls of which at least the name is within the limit, the last one's arguments truncated."""
    found = []
    for call in calls:
        if limit >= NAME_TOKENS:
            fits = _call_tokens(call) <= limit
            found.append(call if fits else (call[0], call[1][: (limit - NAME_TOKENS) * 3]))
        limit -= _call_tokens(call)
    return found


def _called_tools(tools: list[Any], choice: Any, question: str) -> list[Any]:
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        return [tool for tool in tools if tool["name"] == name] or tools[:1]
    words = set(re.findall(r"\w{3,}", question.lower()))

    def stop_at(tool: Any) -> int:
        description = f"{tool['name']} {tool.get('description') or ''}".lower().replace("_", " ")
        return len(words & set(re.findall(r"\w{3,}", description)))

    ranked = sorted(tools, key=stop_at, reverse=True)
    return ranked[:2] if re.search(r"\b(two|both|parallel)\b", question.lower()) else ranked[:1]


def _call(function: Any, question: str) -> tuple[str, str]:
    return function["name"], json.dumps(
        example_arguments(function.get("parameters") or {}, question), ensure_ascii=False
    )


def call_id(body: Any, number: int) -> str:
    """An id that is the same for the same conversation."""
    digest = hashlib.sha256(
        f"{len(body['messages'])}/{number}/{_text(body['messages'][-1])}".encode()
    ).hexdigest()
    return f"call_{digest[:24]}"


def check_length(body: Any, limit: int | None) -> None:
    """Raise the refusal of a prompt that has more tokens than the model's context."""
    if limit is not None and _prompt_tokens(body) > limit:
        raise bad_request(f"Range of input length should be [1, {limit}]")


def _prompt_tokens(body: Any) -> int:
    return [block.tokens for block in prompt_cache.prompt_blocks(body)][-1]


def usage(body: Any, answer: Answer, cached: CacheUse = NOT_CACHED) -> dict[str, Any]:
    """Counts of words, which is as good as tokens here."""
    prompt = _prompt_tokens(body)
    reasoning = len(answer.thought.split())
    audio = omni_audio.count_tokens(body) if answer.text else 0
    completion = reasoning + len(answer.text.split()) + sum(map(_call_tokens, answer.calls)) + audio
    details = {"audio_tokens": audio, "text_tokens": completion - audio} if audio else {}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": cached.details(),
        "completion_tokens_details": {"reasoning_tokens": reasoning, **details},
    }


def logprobs(body: Any, text: str) -> dict[str, Any] | None:
    """Return the log probabilities of a text of the answer."""
    question = next((_text(m) for m in reversed(body["messages"]) if m.get("role") == "user"), "")
    return decisions.logprobs(body, question, text)


def split_text(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def deltas(body: Any, size: int = 12, facts: Unverified = NATURAL) -> Iterator[dict[str, Any]]:
    """The deltas of a streamed answer, in DashScope's shape; the last one goes with the finish reason."""
    given = answer(body)
    shown, ciphertext = thinking.shown(body, given.thought)
    found = _deltas(body, shown, given.text, given.calls, size, facts)
    return thinking.insert_ciphertext(found, ciphertext, facts)


def _deltas(
    body: Any, thought: str, text: str, calls: list[tuple[str, str]], size: int, facts: Unverified
) -> Iterator[dict[str, Any]]:
    yield {
        "role": "assistant",
        "content": "" if not thought else None,
        **({"reasoning_content": ""} if thought else {}),
    }
    for piece in split_text(thought, size):
        yield {"content": None, "reasoning_content": piece}
    if text and omni_audio.is_spoken(body):
        yield from omni_audio.deltas(body, text, size, facts)
        text = ""
    pieces = _WORD.findall(text) if body.get("logprobs") else split_text(text, size)
    for piece in pieces:
        yield {"content": piece, "reasoning_content": None} if thought else {"content": piece}
    for index, (name, text_) in enumerate(calls):
        head = {"name": name, "arguments": ""}
        yield {
            "content": "",
            "tool_calls": [
                {"index": index, "id": call_id(body, index), "type": "function", "function": head}
            ],
        }
        for piece in split_text(text_, size):
            entry = {"index": index, "id": "", "type": "function", "function": {"arguments": piece}}
            yield {"content": "", "tool_calls": [entry]}
    yield {"content": ""}


def chunks(
    body: Any, size: int = 12, cached: CacheUse = NOT_CACHED, facts: Unverified = NATURAL
) -> Iterator[dict[str, Any]]:
    """The chunks of a streamed answer."""
    given = answer(body)
    head = {
        "id": "chatcmpl-emulator",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": body["model"],
    }
    *sent, last = deltas(body, size, facts)
    for delta in sent:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": None}
        if body.get("logprobs") and delta.get("content"):
            choice["logprobs"] = logprobs(body, delta["content"])
        yield {**head, "choices": [choice], "usage": None}
    yield {
        **head,
        "choices": [{"index": 0, "delta": last, "finish_reason": given.finish_reason}],
        "usage": None,
    }
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": usage(body, given, cached)}


def response(body: Any, cached: CacheUse = NOT_CACHED) -> dict[str, Any]:
    """The answer in one piece."""
    given = answer(body)
    message: dict[str, Any] = {"role": "assistant", "content": given.text}
    if given.thought:
        shown, ciphertext = thinking.shown(body, given.thought)
        message["reasoning_content"] = shown
        if ciphertext:
            message["encrypted_content"] = ciphertext
    if given.calls:
        message["tool_calls"] = [
            {"id": call_id(body, n), "type": "function", "function": {"name": name, "arguments": text_}}
            for n, (name, text_) in enumerate(given.calls)
        ]
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": given.finish_reason}
    if body.get("logprobs"):
        choice["logprobs"] = logprobs(body, given.text)
    return {
        "id": "chatcmpl-emulator",
        "object": "chat.completion",
        "created": CREATED,
        "model": body["model"],
        "choices": [choice],
        "usage": usage(body, given, cached),
    }
