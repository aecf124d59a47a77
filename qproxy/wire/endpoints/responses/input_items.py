"""The items of an input, made canonical: typed, with a list of parts, an id and a status.

A row of `ITEM_PARSERS` for each kind of item that means something to a Qwen model. Items of other kinds
(agents replay whole responses: `web_search_call`, `local_shell_call`, ...) are left out and named. Compaction
items are rejected, because they stand for a whole conversation. An `item_reference` becomes the item that it
refers to, out of those that the caller looked up in the store.

OpenAPI `InputParam`, `InputItem`, `ItemReferenceParam`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NoReturn, TypeGuard

from qproxy.wire import json_codec, storable
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses import content_parts
from qproxy.wire.endpoints.responses.objects import input_id
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

ROLES = ("user", "assistant", "system", "developer")
COMPACTION_TYPES = ("compaction", "compaction_summary", "compaction_trigger", "context_compaction")
"""Items that are, or request, the summary of a conversation."""
REASONING_PREFIX = "qproxy-1."
"""Prefix of qproxy's `encrypted_content`. It is no secret: it contains the reasoning of the client's own
response."""


def parse_items(
    value: JSON, *, response: str, known: Mapping[str, JSON], before: Collection[str], field: str = "input"
) -> tuple[list[JSON], list[str]]:
    """Return the canonical items of an `input`, and the paths of those left out.

    `known` has the items that references may name, `before` the ids of those that the model gets anyway;
    `field` is the name of the input in the request.
    """
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list):
        validation.wrong_type(field, "a string or an array of items", value)
    found: list[JSON] = []
    ignored: list[str] = []
    for number, entry in enumerate(value):
        path = f"{field}[{number}]"
        item = validation.object_(entry, path)
        kind = item_type(item, path)
        if kind == "item_reference":
            referred = validation.identifier(item.get("id"), f"{path}.id")
            if referred not in before:
                found.append(known[referred] if referred in known else _missing_item_error(referred))
        elif kind in COMPACTION_TYPES:
            message = (
                f"Items of the type {kind!r} are not supported: without them the conversation would be lost."
            )
            raise RequestError(message, param=f"{path}.type", code="unsupported_parameter")
        elif kind not in ITEM_PARSERS:
            ignored.append(path)
        else:
            own = None if item.get("id") is None else validation.identifier(item["id"], f"{path}.id")
            canonical = ITEM_PARSERS[kind](item, path)
            id_ = own or input_id(kind, response, number)
            found.append({"id": id_, "type": kind, "status": "completed", **canonical})
    return found, ignored


def referenced_ids(value: JSON) -> list[str]:
    """Return the ids of the items that an input refers to; `parse_items` rejects invalid ones."""
    return [
        entry["id"]
        for entry in (value if isinstance(value, list) else ())
        if isinstance(entry, dict) and is_id(entry.get("id"))
        if entry.get("type") == "item_reference" or ("type" not in entry and "role" not in entry)
    ]


def is_id(value: JSON) -> TypeGuard[str]:
    """Return whether the value can be looked up; `decode` rejects any other."""
    return isinstance(value, str) and storable.is_storable_text(value)


def include_fields(items: Sequence[JSON], include: Collection[str]) -> list[JSON]:
    """Return items with the fields that a client requests (`include`): the reasoning as `encrypted_content`,
    if it is the model's own text."""
    if "reasoning.encrypted_content" not in include:
        return list(items)
    return [
        {**item, "encrypted_content": encode_reasoning(text)}
        if item["type"] == "reasoning"
        and not item.get("encrypted_content")
        and (text := _joined_text(item.get("summary"), "\n\n"))
        else item
        for item in items
    ]


def item_type(item: Mapping[str, JSON], path: str) -> str:
    """Return an item's type; without one it is a message, or a reference if it has nothing but an id."""
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "id" in item and "role" not in item else "message"
    return validation.string(kind, f"{path}.type")


def _missing_item_error(id_: str) -> NoReturn:
    message = (
        f"Item with id {id_[:100]!r} not found. Items are not persisted when `store` is set to false. Try "
        "again with `store` set to true, or remove this item from your input."
    )
    raise RequestError(message, status=404, param="input")


def _message(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    if item.get("role") is None:
        validation.missing(f"{path}.role")
    role = validation.one_of(ROLES)(item["role"], f"{path}.role")
    return {
        "role": role,
        "content": content_parts.parse_content(item.get("content"), role, f"{path}.content"),
    }


def _check_name(item: Mapping[str, JSON], path: str, *keys: str) -> dict[str, JSON]:
    """Return an item's required names and ids."""
    return {key: validation.identifier(_text(item, key, path), f"{path}.{key}") for key in keys}


def _text(item: Mapping[str, JSON], key: str, path: str) -> str:
    if item.get(key) is None:
        validation.missing(f"{path}.{key}")
    return validation.string(item[key], f"{path}.{key}")


def _namespace(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    return {} if item.get("namespace") is None else _check_name(item, path, "namespace")


def _function_call(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        arguments = "{}" if arguments is None else json_codec.dumps(arguments).decode()
    return {**_check_name(item, path, "call_id", "name"), **_namespace(item, path), "arguments": arguments}


def _custom_call(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    return {
        **_check_name(item, path, "call_id", "name"),
        **_namespace(item, path),
        "input": _text(item, "input", path),
    }


def _output(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    return {
        **_check_name(item, path, "call_id"),
        "output": content_parts.parse_tool_output(item.get("output"), f"{path}.output"),
    }


def _mcp_call(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    """Return the canonical call of a tool that this server ran in an earlier response."""
    output, error = item.get("output"), item.get("error")
    return {
        **_check_name(item, path, "server_label", "name"),
        "arguments": _text(item, "arguments", path),
        "output": output if isinstance(output, str) else None,
        "error": error if isinstance(error, dict) else None,
    }


def _reasoning(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    """Return a thought's text, from its content, summary or our own seal, and another server's ciphertext as
    it is."""
    text = _joined_text(item.get("content"), "") or _joined_text(item.get("summary"), "\n\n")
    sealed = item.get("encrypted_content")
    text = text or decode_reasoning(sealed)
    is_ciphertext = isinstance(sealed, str) and sealed and not sealed.startswith(REASONING_PREFIX)
    ciphertext = {"encrypted_content": sealed} if is_ciphertext else {}
    return {"summary": [{"type": "summary_text", "text": text}] if text else [], **ciphertext}


def _joined_text(entries: JSON, separator: str) -> str:
    entries = entries if isinstance(entries, list) else []
    texts = [entry.get("text") for entry in entries if isinstance(entry, dict)]
    return separator.join(text for text in texts if isinstance(text, str))


def encode_reasoning(text: str) -> str:
    """Return reasoning as `encrypted_content`, for clients that store nothing else of it."""
    return REASONING_PREFIX + b64encode(text.encode("utf-8", "surrogatepass")).decode()


def decode_reasoning(value: JSON) -> str:
    """Return the reasoning in qproxy's `encrypted_content`; "" for another server's."""
    if not isinstance(value, str) or not value.startswith(REASONING_PREFIX):
        return ""
    try:
        return b64decode(value.removeprefix(REASONING_PREFIX), validate=True).decode("utf-8", "surrogatepass")
    except ValueError:
        return ""


ITEM_PARSERS: dict[str, Callable[[Mapping[str, JSON], str], dict[str, JSON]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _output,
    "custom_tool_call": _custom_call,
    "custom_tool_call_output": _output,
    "mcp_call": _mcp_call,
    "reasoning": _reasoning,
}
