"""`POST /v1/chat/completions`: OpenAI's chat, in and out.

Here: the request's fields as a `Turn`; events as chunks; the fold of the same events as a whole answer.
Not here: anything about Qwen.

The idea of the encoder: what does not change between two chunks of one answer (id, created, model) is
written once; a text chunk is then two joins and one string escape.

OpenAPI `CreateChatCompletionRequest`, `CreateChatCompletionStreamResponse`, `CreateChatCompletionResponse`.
The streaming contract: role only in a choice's first delta; a call's id, type and name only in its first
entry (openai-python *concatenates* repeated ones); one chunk with `finish_reason` and an empty delta, last;
usage in one last chunk without choices, only when asked for; then `data: [DONE]`.  Tools that this server ran are
comments, and in the last chunk a `qproxy` object for who asks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring
from typing import Any, TypeGuard

from qproxy.wire import json_codec as jsontext
from qproxy.wire import sse
from qproxy.wire import tool_schemas as schemas
from qproxy.wire.endpoints import chat_messages as messages
from qproxy.wire.endpoints import tool_reports as reports
from qproxy.wire.endpoints import validation as checks
from qproxy.wire.errors import QproxyError
from qproxy.wire.events import (
    JSON,
    Arguments,
    Event,
    Failed,
    Finish,
    Reasoning,
    Refusal,
    SearchInfo,
    ServerCall,
    ServerResult,
    Text,
    ToolCall,
    Turn,
    Usage,
)
from qproxy.wire.raw_json import Body

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _response_format(value: JSON, path: str) -> JSON:
    kind = checks.an_object(value, path).get("type")
    checks.one_of(("text", "json_object", "json_schema"))(kind, f"{path}.type")
    if kind == "json_schema":
        checks.an_object(value.get("json_schema"), f"{path}.json_schema")
    return value


checks.says(
    _response_format,
    type="object",
    required=["type"],
    properties={"type": {"enum": ["text", "json_object", "json_schema"]}},
)
FIELDS = {
    "temperature": checks.a_number(0, 2),
    "top_p": checks.a_number(0, 1),
    "presence_penalty": checks.a_number(-2, 2),
    "frequency_penalty": checks.a_number(-2, 2),
    "max_tokens": checks.an_integer(1),
    "max_completion_tokens": checks.an_integer(1),
    "n": checks.an_integer(1, 128),
    "seed": checks.an_integer(-(2**63)),
    "top_logprobs": checks.an_integer(0, 20),
    "logprobs": checks.a_boolean,
    "stream": checks.a_boolean,
    "stream_options": checks.an_object,
    "parallel_tool_calls": checks.a_boolean,
    "reasoning_effort": checks.one_of(EFFORTS),
    "response_format": _response_format,
    "stop": checks.stop_sequences,
    "logit_bias": checks.an_object,
    "metadata": checks.an_object_of_names,
    "qproxy": checks.an_object,
    "modalities": checks.an_array,
    "store": checks.a_boolean,
    "user": checks.a_name,
}
_NOT_PARAMS = frozenset(
    (
        "model",
        "messages",
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "stream",
        "stream_options",
        "qproxy",
    )
)


def decode(
    body: JSON, *, id: str, created: int, default_model: str | None = None, max_messages: int = 10_000
) -> Turn:
    """The turn that a request body asks for; RequestError names the field that is wrong."""
    body = checks.a_body(body)
    model = checks.model(body, default_model)
    fields = checks.fields(body, FIELDS)
    if "messages" not in fields:
        checks.missing("messages")
    declared = schemas.read(fields)
    said = fields.get("tools")
    options = fields.get("stream_options") or {}
    stream = fields.get("stream", False)
    params = {name: value for name, value in fields.items() if name not in _NOT_PARAMS}
    if declared.legacy_functions:
        params["parallel_tool_calls"] = False  # the deprecated shape has room for one call
    return Turn(
        id=id,
        created=created,
        model=model,
        messages=messages.check(fields["messages"], limit=max_messages),
        tools=said if _same(said, declared.tools) else declared.tools,
        tool_choice=declared.tool_choice,
        params=params,
        stream=stream,
        include_usage=bool(options.get("include_usage")) and stream,
        legacy_functions=declared.legacy_functions,
        requested=declared.requested,
        reports_tools=checks.includes(fields.get("qproxy"), "tools"),
        texts=body.texts if isinstance(body, Body) else None,
        ignored=declared.ignored,
    )


def _same(said: JSON, read: list[JSON]) -> TypeGuard[list[JSON]]:
    """Whether the client's array has just these entries."""
    return isinstance(said, list) and len(said) == len(read) and all(map(operator.is_, said, read))


def _string(text: str) -> bytes:
    quoted: str = encode_basestring(text)
    try:
        return quoted.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return jsontext.dumps(text)


class Encoder:
    """Events in, server-sent events out; one `bytes` a chunk, the caller joins those of one read."""

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
        self._envelope = b"data: " + jsontext.dumps(head)[:-1]
        self._end = b',"usage":null}\n\n' if turn.include_usage else b"}\n\n"
        self._heads: dict[int, bytes] = {}
        self._usage: Usage | None = None
        self._custom: set[tuple[int, int]] = set()
        """Choices and numbers of the calls to custom tools."""
        self._report = reports.Report()
        self._found = b""
        """What a search found, for the next chunk."""
        self._over = False

    def feed(self, event: Event) -> list[bytes]:
        """The chunks that say `event`."""
        say = _SAYINGS.get(type(event))
        chunks = [] if say is None else say(self, event)
        if self._found and chunks and chunks[-1].startswith(self._envelope):
            chunks[-1] = self._with_found(chunks[-1])
        return chunks

    def _text(self, event: Text) -> list[bytes]:
        return self._delta(event.choice, b'"content":' + _string(event.text), b'""', event.logprobs)

    def _reasoning(self, event: Reasoning) -> list[bytes]:
        return self._delta(event.choice, b'"reasoning_content":' + _string(event.text))

    def _refusal(self, event: Refusal) -> list[bytes]:
        return self._delta(event.choice, b'"refusal":' + _string(event.text))

    def _counted(self, event: Usage) -> list[bytes]:
        self._usage = event
        return []

    def _failed(self, event: Failed) -> list[bytes]:
        return [self.failure(event.error)]

    def _began_tool(self, event: ServerCall) -> list[bytes]:
        self._report.add(event)
        return []

    def _ran_tool(self, event: ServerResult) -> list[bytes]:
        self._report.add(event)
        return [reports.comment(event)]

    def _searched(self, event: SearchInfo) -> list[bytes]:
        self._found = b',"search_info":' + jsontext.dumps(event.info)
        return []

    def _with_found(self, chunk: bytes) -> bytes:
        """The chunk with what a search found; a chunk of its own would have no delta, and there are clients that want one."""
        found, self._found = self._found, b""
        return chunk.removesuffix(self._end) + found + self._end

    def close(self) -> list[bytes]:
        """The usage chunk when it was asked for, and the end; nothing after a failure."""
        if self._over:
            return []
        self._over = True
        out = []
        if self._turn.include_usage:
            counts = jsontext.dumps(usage_object(self._usage or Usage()))
            more = self._found + self._reported()
            out.append(b'%b,"choices":[],"usage":%b%b}\n\n' % (self._envelope, counts, more))
        return [*out, b"data: [DONE]\n\n"]

    def _reported(self) -> bytes:
        return b',"qproxy":' + jsontext.dumps(self._report.object()) if self._turn.reports_tools else b""

    def failure(self, error: QproxyError) -> bytes:
        """The one frame that says that a stream which has begun cannot go on."""
        self._over = True
        return sse.encode(jsontext.dumps(error.body()))

    def _head(self, choice: int, content: bytes) -> list[bytes]:
        """The choice's first chunk.  `content` is "" before text and null before anything else.

        Choices begin in order, whichever speaks first: openai-python's stream helper keeps them in a list.
        """
        before = range(choice if choice < (self._turn.params.get("n") or 1) else 0)
        out = [piece for lower in before if lower not in self._heads for piece in self._head(lower, b"null")]
        self._heads[choice] = b'%b,"choices":[{"index":%d,"delta":{' % (self._envelope, choice)
        return [*out, self._chunk(choice, b'"role":"assistant","content":' + content)]

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null") -> bytes:
        return b'%b%b},"logprobs":%b,"finish_reason":null}]%b' % (
            self._heads[choice],
            delta,
            logprobs,
            self._end,
        )

    def _delta(
        self, choice: int, delta: bytes, content: bytes = b"null", logprobs: JSON = None
    ) -> list[bytes]:
        probabilities = b"null" if logprobs is None else jsontext.dumps(logprobs_object(logprobs))
        if choice in self._heads:
            return [self._chunk(choice, delta, probabilities)]
        return [*self._head(choice, content), self._chunk(choice, delta, probabilities)]

    def _call(self, event: ToolCall) -> list[bytes]:
        name = _string(event.name)
        if self._legacy:
            return self._delta(event.choice, b'"function_call":{"name":%b,"arguments":""}' % name)
        if event.custom:
            self._custom.add((event.choice, event.index))
        shape = b'"type":"custom","custom":{"name":%b,"input":""}' if event.custom else _FUNCTION
        entry = b'"tool_calls":[{"index":%d,"id":%b,%b}]' % (event.index, _string(event.id), shape % name)
        return self._delta(event.choice, entry)

    def _arguments(self, event: Arguments) -> list[bytes]:
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

    def _finish(self, event: Finish) -> list[bytes]:
        reason, choice = event.reason, event.choice
        out = [] if choice in self._heads else self._head(choice, b'""')
        if self._legacy and reason == "tool_calls":
            reason = "function_call"
        report = b"" if self._turn.include_usage else self._reported()
        out.append(
            b'%b},"logprobs":null,"finish_reason":%b}]%b%b'
            % (self._heads[choice], _string(reason), report, self._end)
        )
        return out


_SAYINGS: dict[type, Callable[[Encoder, Any], list[bytes]]] = {
    Text: Encoder._text,
    Reasoning: Encoder._reasoning,
    Arguments: Encoder._arguments,
    ToolCall: Encoder._call,
    Refusal: Encoder._refusal,
    Finish: Encoder._finish,
    Usage: Encoder._counted,
    Failed: Encoder._failed,
    ServerCall: Encoder._began_tool,
    ServerResult: Encoder._ran_tool,
    SearchInfo: Encoder._searched,
}
_FUNCTION = b'"type":"function","function":{"name":%b,"arguments":""}'


def logprobs_object(value: JSON) -> JSON:
    """`choices[].logprobs` with both of its required keys."""
    if not isinstance(value, dict):
        return None
    return {"content": value.get("content"), "refusal": value.get("refusal")}


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's `CompletionUsage`; Qwen's further details stay beside OpenAI's own."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, **_without_nulls(usage.prompt_details)},
        "completion_tokens_details": {"reasoning_tokens": 0, **_without_nulls(usage.completion_details)},
    }


def _without_nulls(details: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in details.items() if value is not None}


class _Choice:
    """What the events of one choice add up to."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.thoughts: list[str] = []
        self.refusal: list[str] = []
        self.calls: list[tuple[ToolCall, list[str]]] = []
        self.logprobs: list[JSON] = []
        self.reason = "stop"


def whole(turn: Turn, events: Iterable[Event]) -> dict[str, Any]:
    """The `chat.completion` that the events add up to; raises the error of a `Failed`."""
    choices: dict[int, _Choice] = {}
    usage, found = Usage(), None
    events = list(events)
    for event in events:
        if isinstance(event, Usage):
            usage = event
        elif isinstance(event, SearchInfo):
            found = event.info
        elif isinstance(event, Failed):
            raise event.error
        elif hasattr(event, "choice"):
            _add(choices.setdefault(event.choice, _Choice()), event)
    return {
        "id": turn.id,
        "object": "chat.completion",
        "created": turn.created,
        "model": turn.model,
        "choices": [_choice_object(turn, number, choices[number]) for number in sorted(choices)],
        "usage": usage_object(usage),
        **({} if found is None else {"search_info": found}),
        **({"qproxy": reports.of(events)} if turn.reports_tools else {}),
    }


def _add(choice: _Choice, event: Event) -> None:
    match event:
        case Text(text, _, logprobs):
            choice.text.append(text)
            if isinstance(logprobs, dict):
                choice.logprobs.extend(logprobs.get("content") or ())
        case Reasoning(text):
            choice.thoughts.append(text)
        case Refusal(text):
            choice.refusal.append(text)
        case ToolCall():
            choice.calls.append((event, []))
        case Arguments(index, text):
            choice.calls[index][1].append(text)
        case Finish(reason):
            choice.reason = reason


def _choice_object(turn: Turn, number: int, choice: _Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(choice.text) if choice.text or not choice.calls else None,
        "refusal": "".join(choice.refusal) or None,
    }
    if choice.thoughts:
        message["reasoning_content"] = "".join(choice.thoughts)
    reason = choice.reason
    if choice.calls and turn.legacy_functions:
        call, pieces = choice.calls[0]
        message["function_call"] = {"name": call.name, "arguments": "".join(pieces)}
        reason = "function_call" if reason == "tool_calls" else reason
    elif choice.calls:
        message["tool_calls"] = [_call_object(call, "".join(pieces)) for call, pieces in choice.calls]
    logprobs = {"content": choice.logprobs, "refusal": None} if choice.logprobs else None
    return {"index": number, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _call_object(call: ToolCall, arguments: str) -> dict[str, Any]:
    if call.custom:
        return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": arguments}}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
