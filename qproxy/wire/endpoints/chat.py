"""`POST /v1/chat/completions`: OpenAI's chat requests and streamed responses.

This module decodes a request into a `Turn` and encodes events as chunks. `chat_completion` folds the same
events into a whole response. Nothing here depends on Qwen.

The encoder serializes the fields that do not change between chunks (id, created, model) once; a text chunk is
then two joins and one string escape.

OpenAPI `CreateChatCompletionRequest`, `CreateChatCompletionStreamResponse`.
The streaming contract: role only in a choice's first delta; a call's id, type and name only in its first
entry (openai-python *concatenates* repeated ones); one chunk with `finish_reason` and an empty delta, last;
usage in one last chunk without choices, only on request; then `data: [DONE]`. Tools that this server ran are
comments, and on request a `qproxy` object in the last chunk.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from json.encoder import encode_basestring
from typing import Any, TypeGuard

from qproxy.wire import json_codec, sse, tool_schemas
from qproxy.wire.endpoints import chat_messages, openai_errors, tool_reports, validation
from qproxy.wire.endpoints.chat_completion import logprobs_object, response, usage_object
from qproxy.wire.endpoints.extra_fields import fold_fields
from qproxy.wire.endpoints.search_sources import chat_annotations, requested_results
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    EncryptedReasoning,
    Event,
    ExtraFields,
    ReasoningDelta,
    RefusalDelta,
    SearchInfo,
    ServerToolCall,
    ServerToolResult,
    StreamFailed,
    TextDelta,
    ToolCallArgumentsDelta,
    ToolCallStart,
    Turn,
    Usage,
)
from qproxy.wire.raw_json import RawBody
from qproxy.wire.search_results import SearchResult
from qproxy.wire.server_tools import WebSearchRequest

__all__ = ["EFFORTS", "FIELDS", "Encoder", "decode", "response"]
EFFORTS = ("none", "off", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
"""OpenAI's efforts, and Qwen's further ones; what a model does with each is in the catalog."""


def _response_format(value: JSON, path: str) -> JSON:
    kind = validation.object_(value, path).get("type")
    validation.one_of(("text", "json_object", "json_schema"))(kind, f"{path}.type")
    if kind == "json_schema":
        validation.object_(value.get("json_schema"), f"{path}.json_schema")
    return value


validation.with_schema(
    _response_format,
    type="object",
    required=["type"],
    properties={"type": {"enum": ["text", "json_object", "json_schema"]}},
)
FIELDS = {
    "temperature": validation.number(0, 2),
    "top_p": validation.number(0, 1),
    "presence_penalty": validation.number(-2, 2),
    "frequency_penalty": validation.number(-2, 2),
    "max_tokens": validation.integer(1),
    "max_completion_tokens": validation.integer(1),
    "n": validation.integer(1, 128),
    "seed": validation.integer(-(2**63)),
    "top_logprobs": validation.integer(0, 20),
    "logprobs": validation.boolean,
    "stream": validation.boolean,
    "stream_options": validation.object_,
    "parallel_tool_calls": validation.boolean,
    "reasoning_effort": validation.one_of(EFFORTS),
    "response_format": _response_format,
    "stop": validation.stop_sequences,
    "logit_bias": validation.object_,
    "metadata": validation.string_map,
    "qproxy": validation.object_,
    "modalities": validation.array,
    "store": validation.boolean,
    "user": validation.identifier,
}
_WEB_SEARCH = WebSearchRequest("web_search_options")
_NOT_PARAMS = frozenset((
    "model", "messages", "tools", "tool_choice", "functions", "function_call", "stream", "stream_options",
    "qproxy",
))  # fmt: skip


def decode(
    body: JSON,
    *,
    id: str,
    created: int,
    request_id: str = "",
    default_model: str | None,
    max_messages: int,
    stores: bool = False,
) -> Turn:
    """Return the turn of a request body. Raises RequestError naming the invalid field.

    With `stores` the server itself does what `store` asks for, and no upstream is asked to.
    """
    body = validation.body(body)
    model = validation.require_model(body, default_model)
    fields = validation.check_fields(body, FIELDS)
    if "messages" not in fields:
        validation.missing("messages")
    declared = tool_schemas.parse_tools(fields)
    tools = fields.get("tools")
    options = fields.get("stream_options") or {}
    stream = fields.get("stream", False)
    params = {name: value for name, value in fields.items() if name not in _NOT_PARAMS}
    if stores:
        params.pop("store", None)
    if declared.legacy_functions:
        params["parallel_tool_calls"] = False  # the deprecated shape has room for one call
    return Turn(
        id=id,
        created=created,
        request_id=request_id,
        model=model,
        messages=chat_messages.validate_messages(fields["messages"], limit=max_messages),
        tools=tools if _identity(tools, declared.tools) else declared.tools,
        tool_choice=declared.tool_choice,
        params=params,
        stream=stream,
        store=fields.get("store") is not False,
        include_usage=bool(options.get("include_usage")) and stream,
        legacy_functions=declared.legacy_functions,
        server_tools=declared.server_tools,
        web_search=_WEB_SEARCH if isinstance(params.get("web_search_options"), dict) else None,
        include_tool_reports=validation.include_values(fields.get("qproxy"), "tools"),
        raw_fields=body.raw_fields if isinstance(body, RawBody) else None,
        ignored=declared.ignored,
    )


def _identity(message: JSON, read: list[JSON]) -> TypeGuard[list[JSON]]:
    """Return whether the client's array has exactly these entries."""
    return isinstance(message, list) and len(message) == len(read) and all(map(operator.is_, message, read))


def _string(text: str) -> bytes:
    quoted: str = encode_basestring(text)
    try:
        return quoted.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return json_codec.dumps(text)


class Encoder:
    """An encoder from events to server-sent events: one `bytes` per chunk, joined by the caller."""

    content_type = "text/event-stream"

    def __init__(self, turn: Turn) -> None:
        head = {
            "id": turn.id,
            "object": "chat.completion.chunk",
            "created": turn.created,
            "model": turn.model,
        }
        self._turn = turn
        self._legacy = turn.legacy_functions
        self._envelope = b"data: " + json_codec.dumps(head)[:-1]
        self._closing = b',"usage":null}\n\n' if turn.include_usage else b"}\n\n"
        self._announced: dict[int, bytes] = {}
        self._usage: Usage | None = None
        self._custom: set[tuple[int, int]] = set()
        """Choice and call index of each call to a custom tool."""
        self._tool_report = tool_reports.ToolReport()
        self._sources: list[SearchResult] = []
        """The results of a web search that the client asked for."""
        self._cited_text: list[str] | None = [] if "web_search_options" in turn.params else None
        """The text of the first choice, which may cite them."""
        self._chunk_fields: dict[str, JSON] = {}
        """Further fields for the next chunk."""
        self._choice_fields: dict[int, dict[str, JSON]] = {}
        """Further fields for a choice's next chunk."""
        self._finished = False

    def feed(self, event: Event) -> list[bytes]:
        """Return the chunks for an event."""
        encode = _DELTA_EVENTS.get(type(event))
        chunks = [] if encode is None else encode(self, event)
        if self._chunk_fields and chunks and chunks[-1].startswith(self._envelope):
            chunks[-1] = chunks[-1].removesuffix(self._closing) + self._take_chunk_fields() + self._closing
        return chunks

    def _text(self, event: TextDelta) -> list[bytes]:
        if self._cited_text is not None and event.choice == 0:
            self._cited_text.append(event.text)
        return self._delta(event.choice, b'"content":' + _string(event.text), b'""', event.logprobs)

    def _reasoning(self, event: ReasoningDelta) -> list[bytes]:
        return self._delta(event.choice, b'"reasoning_content":' + _string(event.text))

    def _encrypted(self, event: EncryptedReasoning) -> list[bytes]:
        return self._delta(event.choice, b'"encrypted_content":' + _string(event.text))

    def _refusal(self, event: RefusalDelta) -> list[bytes]:
        return self._delta(event.choice, b'"refusal":' + _string(event.text))

    def _usage_event(self, event: Usage) -> list[bytes]:
        self._usage = event
        return []

    def _failed(self, event: StreamFailed) -> list[bytes]:
        return [self.error_event(event.error)]

    def _server_call(self, event: ServerToolCall) -> list[bytes]:
        self._tool_report.add(event)
        return []

    def _server_result(self, event: ServerToolResult) -> list[bytes]:
        self._tool_report.add(event)
        return [tool_reports.sse_comment(event)]

    def _search_info(self, event: SearchInfo) -> list[bytes]:
        self._chunk_fields["search_info"] = event.info
        self._sources = requested_results(self._turn, event) or self._sources
        return []

    def _annotations(self) -> list[bytes]:
        found = chat_annotations("".join(self._cited_text or ()), self._sources)
        return self._delta(0, b'"annotations":' + json_codec.dumps(found)) if found else []

    def _extra_fields(self, event: ExtraFields) -> list[bytes]:
        """Send the fields of a delta; others wait for a chunk, because some clients reject one without a
        delta."""
        if event.level == "delta":
            return self._delta(event.choice, json_codec.dumps(event.fields)[1:-1])
        if event.level == "chunk":
            self._chunk_fields |= event.fields
        else:
            before = self._choice_fields.get(event.choice, {})
            self._choice_fields[event.choice] = fold_fields((before, event.fields))
        return []

    def _take_chunk_fields(self) -> bytes:
        fields, self._chunk_fields = self._chunk_fields, {}
        return b"," + json_codec.dumps(fields)[1:-1] if fields else b""

    def _take_choice_fields(self, choice: int) -> bytes:
        fields = self._choice_fields.pop(choice, None)
        return b"," + json_codec.dumps(fields)[1:-1] if fields else b""

    def close(self) -> list[bytes]:
        """Return the usage chunk, if requested, and the end of the stream; nothing after a failure."""
        if self._finished:
            return []
        self._finished = True
        out = []
        if self._turn.include_usage:
            counts = json_codec.dumps(usage_object(self._usage))
            more = self._take_chunk_fields() + self._reported()
            out.append(b'%b,"choices":[],"usage":%b%b}\n\n' % (self._envelope, counts, more))
        return [*out, b"data: [DONE]\n\n"]

    def _reported(self) -> bytes:
        return (
            b',"qproxy":' + json_codec.dumps(self._tool_report.to_json())
            if self._turn.include_tool_reports
            else b""
        )

    def error_event(self, error: QproxyError) -> bytes:
        """Return the frame that reports a failure of a started stream."""
        self._finished = True
        return sse.encode(json_codec.dumps(openai_errors.error_body(error)))

    def _head(self, choice: int, content: bytes) -> list[bytes]:
        """Return the choice's first chunk: `content` is "" before text and null before anything else.

        Choices start in order, whichever produces output first: openai-python's stream helper keeps them in a
        list.
        """
        before = range(choice if choice < (self._turn.params.get("n") or 1) else 0)
        out = [
            piece for lower in before if lower not in self._announced for piece in self._head(lower, b"null")
        ]
        self._announced[choice] = b'%b,"choices":[{"index":%d,"delta":{' % (self._envelope, choice)
        return [*out, self._chunk(choice, b'"role":"assistant","content":' + content)]

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        return b'%b%b},"logprobs":%b,"finish_reason":null%b}]%b' % (
            self._announced[choice],
            delta,
            logprobs,
            self._take_choice_fields(choice) if self._choice_fields else b"",
            self._closing,
        )

    def _delta(
        self, choice: int, delta: bytes, content: bytes = b"null", logprobs: JSON = None
    ) -> list[bytes]:
        probabilities = b"null" if logprobs is None else json_codec.dumps(logprobs_object(logprobs))
        if choice in self._announced:
            return [self._chunk(choice, delta, probabilities)]
        return [*self._head(choice, content), self._chunk(choice, delta, probabilities)]

    def _call(self, event: ToolCallStart) -> list[bytes]:
        name = _string(event.name)
        if self._legacy:
            return self._delta(event.choice, b'"function_call":{"name":%b,"arguments":""}' % name)
        if event.custom:
            self._custom.add((event.choice, event.index))
        shape = b'"type":"custom","custom":{"name":%b,"input":""}' if event.custom else _FUNCTION
        entry = b'"tool_calls":[{"index":%d,"id":%b,%b}]' % (event.index, _string(event.id), shape % name)
        return self._delta(event.choice, entry)

    def _arguments(self, event: ToolCallArgumentsDelta) -> list[bytes]:
        text = _string(event.text)
        if self._legacy:
            return self._delta(event.choice, b'"function_call":{"arguments":%b}' % text)
        if (event.choice, event.index) in self._custom:
            return self._delta(
                event.choice, b'"tool_calls":[{"index":%d,"custom":{"input":%b}}]' % (event.index, text)
            )
        return self._delta(
            event.choice, b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (event.index, text)
        )

    def _finish(self, event: ChoiceFinished) -> list[bytes]:
        reason, choice = event.reason, event.choice
        out = self._annotations() if self._sources and choice == 0 else []
        if choice not in self._announced:
            out = self._head(choice, b'""')
        if self._legacy and reason == "tool_calls":
            reason = "function_call"
        report = b"" if self._turn.include_usage else self._reported()
        out.append(
            b'%b},"logprobs":null,"finish_reason":%b%b}]%b%b'
            % (
                self._announced[choice],
                _string(reason),
                self._take_choice_fields(choice),
                report,
                self._closing,
            )
        )
        return out


_DELTA_EVENTS: dict[type, Callable[[Encoder, Any], list[bytes]]] = {
    TextDelta: Encoder._text,
    ReasoningDelta: Encoder._reasoning,
    ToolCallArgumentsDelta: Encoder._arguments,
    ToolCallStart: Encoder._call,
    RefusalDelta: Encoder._refusal,
    EncryptedReasoning: Encoder._encrypted,
    ChoiceFinished: Encoder._finish,
    Usage: Encoder._usage_event,
    StreamFailed: Encoder._failed,
    ServerToolCall: Encoder._server_call,
    ServerToolResult: Encoder._server_result,
    SearchInfo: Encoder._search_info,
    ExtraFields: Encoder._extra_fields,
}
_FUNCTION = b'"type":"function","function":{"name":%b,"arguments":""}'
