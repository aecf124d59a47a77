"""The fields of a request, decoded into a turn.

A field that no Qwen server knows is dropped and named, never rejected: a client's next release must work.
Qwen's own fields, which the models' data list, pass. Only what would change the meaning of a request (MCP
servers that are not connected) is an error.

Anthropic's API reference, `MessageCreateParams`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.anthropic import conversation, thinking, tools
from qproxy.wire.endpoints.anthropic.content_blocks import BlockReader
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON, Turn
from qproxy.wire.raw_json import RawBody

RENAMED = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "stop_sequences": "stop",
}
"""Anthropic's parameters, by chat's names."""
CHAT_PARAMS = (
    "seed", "presence_penalty", "frequency_penalty", "parallel_tool_calls", "reasoning_effort",
    "response_format",
)  # fmt: skip
"""Chat's parameters that pass although Anthropic has none of their name."""
READ_FIELDS = frozenset((
    "model", "messages", "system", "tools", "tool_choice", "stream", "thinking", "output_config",
    "output_format", "qproxy", "mcp_servers", *RENAMED, *CHAT_PARAMS,
))  # fmt: skip


def _stop_sequences(value: JSON, path: str) -> JSON:
    for number, item in enumerate(validation.array(value, path)):
        validation.string(item, f"{path}[{number}]")
    return value


validation.with_schema(_stop_sequences, type="array", items={"type": "string"})
FIELDS = {
    "max_tokens": validation.integer(1),
    "temperature": validation.number(0, 2),
    "top_p": validation.number(0, 1),
    "top_k": validation.integer(0),
    "stop_sequences": _stop_sequences,
    "stream": validation.boolean,
    "thinking": validation.object_,
    "output_config": validation.object_,
    "output_format": validation.object_,
    "mcp_servers": validation.array,
    "tools": validation.array,
    "qproxy": validation.object_,
}
_TEXT_OR_BLOCKS: JSON = {"type": ["string", "array"], "items": {"type": "object"}}
_MESSAGE: JSON = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": sorted(conversation.ROLES)}, "content": _TEXT_OR_BLOCKS},
}


def request_schema(*required: str) -> JSON:
    """Return the JSON Schema of a request's body."""
    own = {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "system": {**_TEXT_OR_BLOCKS, "type": ["string", "array", "null"]},
        "tool_choice": {"type": ["object", "string", "null"]},
    }
    return {"type": "object", "required": [*required], "properties": {**own, **validation.properties(FIELDS)}}


MAX_USER_ID = 2000
"""Characters of `metadata.user_id` that are read."""


@dataclass(frozen=True, slots=True)
class AnthropicRequest:
    """The parts of a request that a turn has no field for."""

    stop_sequences: frozenset[str] = frozenset()
    omits_thinking: bool = False
    """The client wants thinking blocks without their text."""


def request_of(turn: Turn) -> AnthropicRequest:
    """Return what `decode` stored with the turn."""
    assert isinstance(turn.endpoint_state, AnthropicRequest)
    return turn.endpoint_state


def decode(
    body: JSON,
    *,
    id: str,
    created: int,
    request_id: str = "",
    default_model: str | None,
    max_messages: int,
    qwen_params: Collection[str],
) -> Turn:
    """Decode a request body; `qwen_params` pass, other unknown fields are dropped and named. Raises
    RequestError that names the invalid field."""
    return _decode(body, ("max_tokens",), id, created, request_id, default_model, max_messages, qwen_params)


def decode_count(
    body: JSON, *, default_model: str | None, max_messages: int, qwen_params: Collection[str]
) -> Turn:
    """Decode the body of a request to count tokens, which may have every field of one for a message."""
    return _decode(body, (), "", 0, "", default_model, max_messages, qwen_params)


def _decode(
    body: JSON,
    required: tuple[str, ...],
    id: str,
    created: int,
    request_id: str,
    default_model: str | None,
    max_messages: int,
    qwen_params: Collection[str],
) -> Turn:
    body = validation.body(body)
    model = validation.require_model(body, default_model)
    fields = validation.check_fields(body, FIELDS)
    for name in ("messages", *required):
        if name not in fields:
            validation.missing(name)
    if fields.get("mcp_servers"):
        message = "MCP servers of a request are not supported: the operator declares them in mcp_servers."
        raise RequestError(message, param="mcp_servers", code="unsupported_parameter")
    reader = BlockReader()
    messages = conversation.to_chat(fields.get("system"), fields["messages"], reader, max_messages)
    declared = tools.parse_tools(fields, reader.added_tools)
    thinking_config = thinking.parse_thinking(fields, conversation.turn_effort(fields["messages"]))
    raw = body.raw_fields if isinstance(body, RawBody) else None
    tools_text = None if raw is None else raw.text(fields.get("tools"))
    return Turn(
        id=id,
        created=created,
        request_id=request_id,
        model=model,
        messages=messages,
        tools=declared.tools,
        tool_choice=declared.tool_choice,
        params={**_params(fields, qwen_params), **thinking_config.params, **declared.params},
        stream=fields.get("stream", False),
        separates_rounds=True,
        summarize_reasoning=thinking_config.wants_summary,
        preserve_reasoning=True,
        server_tools=declared.server_tools,
        include_tool_reports=validation.include_values(fields.get("qproxy"), "tools"),
        tools_bytes=None if tools_text is None else len(tools_text),
        session=_session(fields.get("metadata")),
        ignored=(
            *(name for name in fields if name not in READ_FIELDS and name not in qwen_params),
            *thinking_config.ignored,
            *declared.ignored,
            *reader.ignored,
        ),
        endpoint_state=AnthropicRequest(
            frozenset(fields.get("stop_sequences") or ()), thinking_config.omits_text
        ),
    )


def _session(metadata: JSON) -> str:
    """Return the session in Claude Code's `user_id`, JSON or `user_…_session_…`; "" for other ids."""
    user = metadata.get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user, str) or len(user) > MAX_USER_ID:
        return ""
    before, marker, after = user.rpartition("_session_")
    if marker and before.startswith("user_"):
        return after
    try:
        value = json_codec.loads(user) if user.startswith("{") else None
    except ValueError:
        return ""
    session = value.get("session_id") if isinstance(value, dict) else None
    return session if isinstance(session, str) else ""


def _params(fields: Mapping[str, JSON], qwen_params: Collection[str]) -> dict[str, JSON]:
    """Return the parameters by chat's names."""
    params = {chat: fields[name] for name, chat in RENAMED.items() if fields.get(name) not in (None, [])}
    params |= {name: fields[name] for name in fields if name in CHAT_PARAMS or name in qwen_params}
    config = fields.get("output_config") or {}
    form, path = (config.get("format"), "output_config.format")
    if form is None:
        form, path = fields.get("output_format"), "output_format"
    return params if form is None else params | _response_format(form, path)


def _response_format(value: JSON, path: str) -> dict[str, JSON]:
    """Return an output format as chat's `response_format`."""
    form = validation.object_(value, path)
    validation.one_of(("json_schema",))(form.get("type"), f"{path}.type")
    schema = validation.object_(form.get("schema"), f"{path}.schema")
    name = form.get("name") or "answer"
    schema_format = {"name": validation.string(name, f"{path}.name"), "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema_format}}
