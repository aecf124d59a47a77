"""The items of an input, made canonical: typed, with a list of parts, an id and a status.

`ITEM_TYPES` has every type of OpenAI's input items: served, or dropped and named. Items are dropped
whose omission changes nothing for a Qwen model, because agents replay whole responses; unknown types are too.
An `item_reference` becomes the item that it refers to, out of those that the caller looked up in the store.

OpenAPI `InputParam`, `InputItem`, `ItemReferenceParam`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, NamedTuple, NoReturn, TypeGuard

from qproxy.wire import json_codec, storable
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.responses import content_parts, tool_items
from qproxy.wire.endpoints.responses.objects import input_id
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

ROLES = ("user", "assistant", "system", "developer")
TRIGGER = "compaction_trigger"
ALIASES = {"compaction_summary": "compaction", "context_compaction": "compaction"}
"""Other names of types, which codex uses or has used."""
WITHOUT_STATUS = (
    "compaction", "configuration_update", "additional_tools", "mcp_list_tools", "mcp_approval_request",
    "mcp_approval_response",
)  # fmt: skip
REASONING_PREFIX = "qproxy-1."
"""Prefix of qproxy's `encrypted_content`. It is no secret: it contains the reasoning of the client's own
response."""


def parse_items(
    value: JSON,
    *,
    response: str,
    known: Mapping[str, JSON],
    before: Collection[str],
    unseal: Callable[[str], str | None],
    field: str = "input",
) -> tuple[list[JSON], list[str]]:
    """Return the canonical items of an `input`, and the paths of those left out.

    `known` has the items that references may name, `before` the ids of those that the model gets anyway;
    `unseal` returns the text of a compaction item, None if this server did not seal it; `field` is the name
    of the input in the request.
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
        row = ITEM_TYPES.get(kind, UNKNOWN)
        if kind == "item_reference":
            referred = validation.identifier(item.get("id"), f"{path}.id")
            if referred not in before:
                found.append(known[referred] if referred in known else _missing_item_error(referred))
        elif kind == TRIGGER:
            if number != len(value) - 1:
                validation.wrong_value(path, f"an item of the type {TRIGGER!r} must be the last one.")
        elif row.parse is None:
            ignored.append(path)
        else:
            canonical = row.parse(item, path)
            if kind == "compaction":
                check_sealed(canonical["encrypted_content"], unseal, f"{path}.encrypted_content")
            own = None if item.get("id") is None else validation.identifier(item["id"], f"{path}.id")
            status = {} if kind in WITHOUT_STATUS else {"status": "completed"}
            id_ = own or input_id(kind, response, number)
            found.append({**status, **canonical, "id": id_, "type": kind})
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


def check_sealed(sealed: str, unseal: Callable[[str], str | None], path: str) -> str:
    """Return the text of a compaction item. Raises RequestError for one that this server did not seal."""
    text = unseal(sealed)
    if text is None:
        message = (
            f"Invalid value for '{path}': this server did not seal this content, or it was altered. Send the "
            "items that the compaction replaced, or begin a new conversation."
        )
        raise RequestError(message, param=path, code="invalid_encrypted_content")
    return text


def item_type(item: Mapping[str, JSON], path: str) -> str:
    """Return an item's type; without one it is a message, or a reference if it has nothing but an id."""
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "id" in item and "role" not in item else "message"
    kind = validation.string(kind, f"{path}.type")
    if kind in ALIASES and item.get("encrypted_content") is not None:  # otherwise a mark without content
        return ALIASES[kind]
    return kind


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
    return _check_optional(item, path, "namespace")


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
        **_check_optional(item, path, "approval_request_id"),
    }


def _check_optional(item: Mapping[str, JSON], path: str, name: str) -> dict[str, JSON]:
    return {} if item.get(name) is None else _check_name(item, path, name)


def _mcp_list_tools(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    listed = item.get("tools")
    return {
        **_check_name(item, path, "server_label"),
        "tools": listed if isinstance(listed, list) else [],
        "error": item.get("error"),
    }


def _approval_request(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    return {**_check_name(item, path, "server_label", "name"), "arguments": _text(item, "arguments", path)}


def _approval_response(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    reason = item.get("reason")
    return {
        **_check_name(item, path, "approval_request_id"),
        "approve": validation.boolean(item.get("approve"), f"{path}.approve"),
        "reason": None if reason is None else validation.string(reason, f"{path}.reason"),
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


def _compaction(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    return {"encrypted_content": _text(item, "encrypted_content", path)}


def _configuration_update(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    """Return a canonical change of the request's fields; the fields themselves are validated with those."""
    parts = {key: item[key] for key in ("reasoning", "text") if item.get(key) is not None}
    return {key: validation.object_(value, f"{path}.{key}") for key, value in parts.items()}


def _additional_tools(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    tools = validation.array(item.get("tools"), f"{path}.tools")
    for number, tool in enumerate(tools):
        validation.object_(tool, f"{path}.tools[{number}]")
    return {**item, "tools": tools}


class ItemType(NamedTuple):
    """The treatment of a type of input items."""

    treatment: Literal["served", "dropped"]
    meaning: str
    """What it becomes, or why it does not."""
    parse: Callable[[Mapping[str, JSON], str], dict[str, JSON]] | None = None
    """Returns the canonical fields; None if there is no canonical item."""


UNKNOWN = ItemType("dropped", "unknown")
_CALL = ItemType("served", "the call of a function with the tool's name", tool_items.parse_call)
_RESULT = ItemType("served", "the result of that function", tool_items.parse_output)
_HOSTED = ItemType("dropped", "shows what a tool of the server did; the answer after it has what it found")
ITEM_TYPES: dict[str, ItemType] = {
    "message": ItemType("served", "a message", _message),
    "function_call": ItemType("served", "the call of a function", _function_call),
    "function_call_output": ItemType("served", "its result", _output),
    "custom_tool_call": ItemType("served", "the call of a custom tool", _custom_call),
    "custom_tool_call_output": ItemType("served", "its result", _output),
    "mcp_call": ItemType("served", "the call of a tool of this server, with its result", _mcp_call),
    "reasoning": ItemType("served", "`reasoning_content` of the message after it", _reasoning),
    "compaction": ItemType("served", "a summary in place of the conversation before it", _compaction),
    TRIGGER: ItemType("served", "as the last item: the response is a compaction"),
    "item_reference": ItemType("served", "the stored item"),
    "configuration_update": ItemType(
        "served", "`reasoning.effort` and `text.format` from there on", _configuration_update
    ),
    "additional_tools": ItemType("served", "further `tools`", _additional_tools),
    "tool_search_output": ItemType("served", "further `tools`", _additional_tools),
    **dict.fromkeys(tool_items.CALLS, _CALL),
    **dict.fromkeys(tool_items.OUTPUTS, _RESULT),
    "tool_search_call": ItemType("dropped", "its result has the tools"),
    "web_search_call": _HOSTED,
    "file_search_call": _HOSTED,
    "code_interpreter_call": _HOSTED,
    "image_generation_call": _HOSTED,
    "mcp_list_tools": ItemType(
        "served", "nothing: `tools` declares them; they are not listed again", _mcp_list_tools
    ),
    "mcp_approval_request": ItemType("served", "the call, once its answer is there", _approval_request),
    "mcp_approval_response": ItemType("served", "the run of that call, or its denial", _approval_response),
}
