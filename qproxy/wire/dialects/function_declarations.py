"""Function calling in Gemini's form, for a server that requires it (`tool_schema = "function_declarations"`).

The envelope stays the dialect's; its fields about functions change:

    tools         `[{"function_declarations": [{name, description, parameters}]}]`
    tool_choice   `tool_config`: `{"function_calling_config": {mode, allowed_function_names}}`
    strict        mode VALIDATED; ANY holds calls to their schemas anyway
    calls         parts `{"functionCall": {id, name, args}}` of the assistant's message
    results       a part `{"functionResponse": {id, name, response}}` of the tool's message

Responses are converted to OpenAI's chunks first: `functionCall` in a delta, in parts or among
`tool_calls`, and Gemini's own `candidates`.

Gemini API reference: Content, Part, FunctionDeclaration, FunctionCallingConfig, GenerateContentResponse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qproxy.wire import json_codec
from qproxy.wire.dialects import deltas, message_rules
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.events import JSON, Turn

TOOL_SCHEMA = "function_declarations"
_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}
_CALL_KEYS = ("functionCall", "function_call")
_FINISH_REASONS = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
        "content_filter"),
    "MALFORMED_FUNCTION_CALL": "error_finish",
    "UNEXPECTED_TOOL_CALL": "error_finish",
}  # fmt: skip


def request_fields(turn: Turn) -> dict[str, JSON]:
    """Return the request's fields about functions."""
    found: dict[str, JSON] = {}
    if turn.tools:
        found["tools"] = [{TOOL_SCHEMA: [_declaration(tool["function"]) for tool in turn.tools]}]
    config = _tool_config(turn)
    if config:
        found["tool_config"] = {"function_calling_config": config}
    return found


def _declaration(function: Mapping[str, JSON]) -> JSON:
    declaration = {name: value for name, value in function.items() if name != "strict"}
    if isinstance(declaration.get("parameters"), dict):
        declaration["parameters"] = _with_nullable(declaration["parameters"])
    return declaration


def _with_nullable(schema: JSON) -> JSON:
    """Return a schema whose types are strings: a type that may be null is `nullable` (OpenAPI 3.0)."""
    if isinstance(schema, list):
        return [_with_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {
        key: value if key == "enum" and isinstance(value, list) else _with_nullable(value)
        for key, value in schema.items()
    }
    kind = schema.get("type")
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:
        changed["type"] = kind[0] if kind[1] == "null" else kind[1]
        changed["nullable"] = True
    return changed


def _tool_config(turn: Turn) -> dict[str, JSON]:
    choice = turn.tool_choice
    if isinstance(choice, dict):
        return {"mode": "ANY", "allowed_function_names": [choice["function"]["name"]]}
    strict = any(tool["function"].get("strict") is True for tool in turn.tools)
    if strict and choice in (None, "auto"):
        return {"mode": "VALIDATED"}
    return {} if choice is None else {"mode": _MODES.get(choice, choice)}


def convert_messages(said: Sequence[JSON]) -> Sequence[JSON]:
    """Return a conversation with its calls and results as parts; the same list if it has none."""
    names: dict[str, str] = {}
    changed = [_convert_message(message, names) for message in message_rules.function_to_tool(said)]
    same = all(new is old for new, old in zip(changed, said, strict=True))
    return said if same else changed


def _convert_message(message: JSON, names: dict[str, str]) -> JSON:
    """Return one message; `names` holds the calls so far, by id."""
    if message.get("role") == "tool":
        return {
            **message,
            "content": [_function_response_part(message, names), *_non_text_parts(message.get("content"))],
        }
    calls = message.get("tool_calls") if message.get("role") == "assistant" else None
    if not calls:
        return message
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}] if content else []
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": [*parts, *(_function_call_part(call, names) for call in calls)]}


def _non_text_parts(content: JSON) -> list[JSON]:
    parts = content if isinstance(content, list) else []
    return [part for part in parts if not (isinstance(part, dict) and "text" in part)]


def _function_call_part(call: JSON, names: dict[str, str]) -> JSON:
    function = call.get("function") or {}
    id_, name = call.get("id"), function.get("name") or ""
    if isinstance(id_, str):
        names[id_] = name
    args = _as_object(function.get("arguments") or "{}", "arguments")
    return {"functionCall": {**({"id": id_} if id_ else {}), "name": name, "args": args}}


def _function_response_part(message: JSON, names: Mapping[str, str]) -> JSON:
    id_ = message.get("tool_call_id")
    name = message.get("name") or names.get(id_ or "", "")
    response = _as_object(deltas.parse_text(message.get("content")), "output")
    return {"functionResponse": {**({"id": id_} if id_ else {}), "name": name, "response": response}}


def _as_object(text: JSON, key: str) -> JSON:
    """Return a text parsed as an object, or an object that contains it."""
    value = text
    if isinstance(text, str):
        try:
            value = json_codec.loads(text)
        except ValueError:
            value = text
    return value if isinstance(value, dict) else {key: text}


class ResponseNormalizer:
    """A converter of one response's chunks, or its whole body, to OpenAI's shape."""

    def __init__(self) -> None:
        self._calls: dict[int, list[JSON]] = {}
        """Calls so far by choice."""

    def normalize(self, body: dict[str, JSON]) -> dict[str, JSON]:
        if isinstance(body.get("output"), dict):  # DashScope's native responses
            return {**body, "output": self._normalize_body(body["output"])}
        return self._normalize_body(body)

    def _normalize_body(self, body: dict[str, JSON]) -> dict[str, JSON]:
        choices = body.get("choices", body.get("candidates"))
        if not isinstance(choices, list):
            return body
        changed = {**body, "choices": [self._normalize_choice(choice, n) for n, choice in enumerate(choices)]}
        if isinstance(body.get("usageMetadata"), dict):
            changed["usage"] = _openai_usage(body["usageMetadata"])
        return changed

    def _normalize_choice(self, choice: JSON, position: int) -> JSON:
        if not isinstance(choice, dict):
            return choice
        reason = choice.get("finish_reason", choice.get("finishReason"))
        changed = {
            **choice,
            "finish_reason": _FINISH_REASONS.get(reason, reason) if isinstance(reason, str) else reason,
        }
        for key in ("delta", "message", "content"):
            if isinstance(choice.get(key), dict):
                name = "message" if key == "content" else key
                changed[name] = self._normalize_message(choice[key], deltas.choice_index(choice, position))
        return changed

    def _normalize_message(self, message: dict[str, JSON], choice: int) -> JSON:
        parts = _parts(message)
        texts = [part for part in parts if isinstance(part.get("text"), str)]
        thought = "".join(part["text"] for part in texts if part.get("thought") is True)
        text = "".join(part["text"] for part in texts if part.get("thought") is not True)
        own = message.get("tool_calls")
        entries = [*(own if isinstance(own, list) else ()), *_function_calls(message)]
        entries += [call for part in parts for call in _function_calls(part)]
        changed = {
            key: value for key, value in message.items() if key not in (*_CALL_KEYS, "parts", "content")
        }
        content = message.get("content")
        changed["content"] = content if isinstance(content, str) and content else text
        if thought:
            changed["reasoning_content"] = thought
        return {**changed, "tool_calls": self._with_indices(entries, choice)}

    def _with_indices(self, entries: list[JSON], choice: int) -> list[JSON]:
        """Return the entries as OpenAI's; whole calls get indices, and are left out if they repeat all so
        far.

        Each whole call is separate, even if equal; `tool_calls` joins fragments of arguments.
        """
        known = self._calls.setdefault(choice, [])
        whole = [entry for entry in entries if _is_complete(entry)]
        repeated = len(known) if whole[: len(known)] == known else 0
        numbered: list[JSON] = []
        for entry in entries:
            if not _is_complete(entry):
                numbered.append(_to_openai_call(entry))
            elif repeated:
                repeated -= 1
            else:
                numbered.append({**_to_openai_call(entry), "index": len(known)})
                known.append(entry)
        return numbered


def normalizer_for(target: UpstreamTarget) -> ResponseNormalizer | None:
    """Return the converter for a target's responses; None for OpenAI's shape."""
    return ResponseNormalizer() if target.tool_schema == TOOL_SCHEMA else None


def _parts(message: Mapping[str, JSON]) -> list[dict[str, Any]]:
    """Return the parts of a message from any of its fields."""
    content = message.get("content")
    if isinstance(content, dict):
        content = content.get("parts")
    lists = [value for value in (content, message.get("parts")) if isinstance(value, list)]
    return [part for parts in lists for part in parts if isinstance(part, dict)]


def _function_calls(holder: Mapping[str, JSON]) -> Iterator[JSON]:
    for key in _CALL_KEYS:
        if isinstance(holder.get(key), dict):
            yield {"functionCall": holder[key]}


def _function_of(entry: JSON) -> dict[str, JSON] | None:
    found = (entry.get(key) for key in ("function", *_CALL_KEYS)) if isinstance(entry, dict) else ()
    return next((function for function in found if isinstance(function, dict)), None)


def _arguments_of(function: Mapping[str, JSON]) -> JSON:
    return function.get("args", function.get("arguments"))


def _is_complete(entry: JSON) -> bool:
    """Return whether an entry is a whole call, not a fragment."""
    function = _function_of(entry)
    if function is None or "index" in entry:
        return False
    return bool(function.get("name")) and not isinstance(_arguments_of(function), str)


def _to_openai_call(entry: JSON) -> JSON:
    """Return an entry of `tool_calls`, its arguments as JSON text."""
    function = _function_of(entry)
    if function is None:
        return entry
    arguments = _arguments_of(function)
    if arguments is not None and not isinstance(arguments, str):
        arguments = json_codec.dumps(arguments).decode()
    kept = {key: value for key, value in entry.items() if key not in ("function", *_CALL_KEYS)}
    kept.setdefault("id", function.get("id"))
    return {**kept, "function": {"name": function.get("name"), "arguments": arguments}}


def _openai_usage(counts: dict[str, JSON]) -> dict[str, JSON]:
    """Return Gemini's `usageMetadata` under OpenAI's names; thoughts count as output."""

    def count(name: str) -> int:
        value = counts.get(name)
        return value if isinstance(value, int) else 0

    thoughts = count("thoughtsTokenCount")
    return {
        "prompt_tokens": count("promptTokenCount"),
        "completion_tokens": count("candidatesTokenCount") + thoughts,
        "total_tokens": count("totalTokenCount"),
        "prompt_tokens_details": {"cached_tokens": count("cachedContentTokenCount")},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }
