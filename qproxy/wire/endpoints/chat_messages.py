"""Validation of chat messages: roles, content parts, tool calls and their results.

An error names the path of the invalid value (`messages[3].content[0].type`), which an upstream's error often
does not. The content of a message is unchanged; Qwen's requirements are in `dialects.request_rules`. Parts of
an unknown type pass: the upstream may know it. OpenAPI: `ChatCompletionRequestMessage`.
"""

from __future__ import annotations

import operator
from typing import Any

from qproxy.wire.endpoints import file_parts, validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

ROLES = ("developer", "system", "user", "assistant", "tool", "function")

# Content parts, each with the key that holds its content; Qwen's own (video, video_url) beside OpenAI's.
PARTS: dict[str, str] = {
    "text": "text",
    "refusal": "refusal",
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "video": "video",
    "video_url": "video_url",
}
_ROLE_CHECKS = ("user", "system", "developer")
_role = validation.one_of(ROLES)
# Clients of the Responses API send its part names here too.
RESPONSES_TEXT = ("input_text", "output_text")


def validate_messages(value: JSON, path: str = "messages", limit: int = 10_000) -> list[JSON]:
    """Return the validated messages: the same list unless a part had to be renamed."""
    messages = validation.array(value, path)
    if not messages:
        message = f"Invalid '{path}': empty array. Expected an array with minimum length 1."
        raise RequestError(message, param=path, code="empty_array")
    if len(messages) > limit:
        message = f"Invalid '{path}': {len(messages)} messages, the limit is {limit}."
        raise RequestError(message, param=path, code="array_above_max_length")
    checked = [
        message if _is_plain(message) else _message(message, f"{path}[{number}]")
        for number, message in enumerate(messages)
    ]
    return messages if all(map(operator.is_, checked, messages)) else checked


def _is_plain(message: JSON) -> bool:
    """Return whether a message is plainly valid, so that no path has to be built."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        return False
    role = message.get("role")
    if role == "tool":
        return isinstance(answered := message.get("tool_call_id"), str) and answered.isascii()
    if role == "assistant":
        return message.get("tool_calls") is None and message.get("function_call") is None
    return role in _ROLE_CHECKS


def _message(value: JSON, path: str) -> dict[str, JSON]:
    message = validation.object_(value, path)
    if message.get("role") is None:
        validation.missing(f"{path}.role")
    role = _role(message["role"], f"{path}.role")
    content = message.get("content")
    if role == "assistant":
        _calls(message, path)
    elif content is None and role != "function":
        validation.missing(f"{path}.content")
    if role == "tool":
        _named(message, "tool_call_id", path)
    if role == "function":
        _named(message, "name", path)
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, list):
        validation.wrong_type(f"{path}.content", "a string or an array of content parts", content)
    parts = [_part(part, f"{path}.content[{number}]") for number, part in enumerate(content)]
    if all(new is old for new, old in zip(parts, content, strict=True)):
        return message
    return {**message, "content": parts}


def _named(message: dict[str, JSON], key: str, path: str) -> None:
    if message.get(key) is None:
        validation.missing(f"{path}.{key}")
    validation.identifier(message[key], f"{path}.{key}")


def _part(value: JSON, path: str) -> Any:
    if isinstance(value, str):  # a list of strings is a common mistake with one meaning
        return {"type": "text", "text": value}
    part = validation.object_(value, path)
    kind = part.get("type")
    if kind is None:
        validation.missing(f"{path}.type")
    if kind in RESPONSES_TEXT:
        kind, part = "text", {**part, "type": "text"}
    elif kind == "input_image":
        file_parts.reject_file_id(part, path)
        image = part.get("image_url")
        url = {"url": image, "detail": part.get("detail", "auto")} if isinstance(image, str) else image
        kind, part = "image_url", {"type": "image_url", "image_url": url}
    if validation.string(kind, f"{path}.type") not in PARTS and len(part) > 1:
        return part  # of a newer type, which the upstream may know
    validation.one_of(PARTS)(kind, f"{path}.type")
    key = PARTS[kind]
    if part.get(key) is None:
        validation.missing(f"{path}.{key}")
    if key in ("text", "refusal"):
        validation.string(part[key], f"{path}.{key}")
    elif kind in ("image_url", "video_url"):
        url = part[key]
        if isinstance(url, str):  # the same mistake in many clients
            return {**part, key: {"url": url}}
        validation.string(validation.object_(url, f"{path}.{key}").get("url"), f"{path}.{key}.url")
    elif kind == "file":
        file_parts.reject_file_id(part, path)
    elif kind == "input_audio":
        validation.string(validation.object_(part[key], f"{path}.{key}").get("data"), f"{path}.{key}.data")
    return part


def _calls(message: dict[str, JSON], path: str) -> None:
    calls = message.get("tool_calls")
    if calls is not None:
        for number, call in enumerate(validation.array(calls, f"{path}.tool_calls")):
            where = f"{path}.tool_calls[{number}]"
            kind = validation.string(
                validation.object_(call, where).get("type") or "function", f"{where}.type"
            )
            function = validation.object_(call.get(kind), f"{where}.{kind}")
            validation.identifier(function.get("name"), f"{where}.{kind}.name")
    legacy = message.get("function_call")
    if legacy is not None:
        validation.identifier(
            validation.object_(legacy, f"{path}.function_call").get("name"), f"{path}.function_call.name"
        )
