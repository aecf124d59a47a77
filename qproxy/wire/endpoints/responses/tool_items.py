"""Calls of the tools that OpenAI defines and the client runs (shell, patches, a computer), and their results.

An agent replays them, and without the results the model would do the work again. A Qwen model gets each as
the call of a function with the tool's name, and its result as that function's.

OpenAPI `LocalShellToolCall`, `FunctionShellCall`, `ApplyPatchToolCall`, `ComputerToolCall`, `Program`, and
their outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

CALLS = {
    "local_shell_call": ("local_shell", ("action",)),
    "shell_call": ("shell", ("action",)),
    "apply_patch_call": ("apply_patch", ("operation",)),
    "computer_call": ("computer", ("action", "actions")),
    "program": ("program", ("code",)),
}
"""The name of the function by the type of the call, and the keys of its arguments."""
OUTPUTS = {
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "computer_call_output": "output",
    "program_output": "result",
}
"""The key of the result by the type of the item."""


def parse_call(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    """Return the canonical call: the client's own fields."""
    keys = CALLS[item["type"]][1]
    if all(item.get(key) is None for key in keys):
        validation.missing(f"{path}.{keys[0]}")
    return {**item, "call_id": _call_id(item, path)}


def parse_output(item: Mapping[str, JSON], path: str) -> dict[str, JSON]:
    """Return the canonical result: the client's own fields."""
    kind, key = item["type"], OUTPUTS[item["type"]]
    if item.get(key) is None and kind != "apply_patch_call_output":
        validation.missing(f"{path}.{key}")
    if kind == "computer_call_output":
        image = validation.object_(item[key], f"{path}.{key}")
        if not isinstance(image.get("image_url"), str):
            message = "A screenshot is needed as 'image_url': there is no file store here."
            raise RequestError(message, param=f"{path}.{key}.image_url", code="unsupported_parameter")
    return {**item, "call_id": _call_id(item, path)}


def _call_id(item: Mapping[str, JSON], path: str) -> str:
    """Return the id that joins a call and its result; a local shell's result has it as its own."""
    is_local = item["type"] == "local_shell_call_output"
    value = item.get("call_id") or (item.get("id") if is_local else None)
    if value is None:
        validation.missing(f"{path}.call_id")
    return validation.identifier(value, f"{path}.call_id")


def to_chat_call(item: Mapping[str, JSON]) -> JSON:
    """Return a canonical call as chat's."""
    name, keys = CALLS[item["type"]]
    given = {key: item[key] for key in keys if item.get(key) is not None}
    value = next(iter(given.values()))
    arguments = value if isinstance(value, dict) and len(given) == 1 else given
    function = {"name": name, "arguments": json_codec.dumps(arguments).decode()}
    return {"id": item["call_id"], "type": "function", "function": function}


def to_chat_content(item: Mapping[str, JSON]) -> JSON:
    """Return a canonical result as chat's content."""
    value: JSON = item.get(OUTPUTS[item["type"]])
    if item["type"] == "computer_call_output":
        return [{"type": "image_url", "image_url": {"url": value["image_url"]}}]
    if value is None:  # of a patch
        return str(item.get("status") or "completed")
    return value if isinstance(value, str) else json_codec.dumps(value).decode()
