"""OpenAI's chat completions and older completions as implemented by DashScope's compatible mode, vLLM,
SGLang, llama.cpp and Ollama.

This module encodes the request and decodes the response's chunks into events. `tool_calls` interprets tool
calls, `request_rules` the fields that a server rejects.

Every field is validated; everything that carries content is kept, and empty fields are dropped (`content:
""`, `tool_calls: []`, `usage: null`). A whole response is one big delta per choice.

Sources: Qwen's chat reference; quirks by number as in the tests' recorded streams (content and calls in
one chunk, `reasoning` for `reasoning_content`, `error_finish`, errors inside a 200).
"""

from __future__ import annotations

from copy import copy

from qproxy.wire import json_codec, raw_json
from qproxy.wire.dialects import dashscope, deltas, finish_reasons, function_declarations
from qproxy.wire.dialects.error_mapping import error_from_event, unknown_body_error
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.errors import RetryHint, UpstreamError
from qproxy.wire.events import (
    JSON,
    ChoiceFinished,
    CompletionPrompt,
    Event,
    RawToolCallDelta,
    ReasoningDelta,
    StreamDone,
    StreamFailed,
    TextDelta,
    Turn,
)
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.sse import ServerSentEvent


def request(turn: Turn, target: UpstreamTarget) -> HTTPRequest:
    """Return `POST {base}/chat/completions` with the turn's fields; usage is always requested.

    A prompt is sent to `/completions` if the server supports that for the model: a chat model answers it as a
    user's message, wrapped in its template, instead of continuing it.
    """
    if turn.completion is not None and target.supports_completions:
        return _completion(turn, turn.completion, target)
    body: dict[str, JSON] = {"model": target.model, "messages": turn.messages}
    if target.tool_schema == function_declarations.TOOL_SCHEMA:
        body |= {
            "messages": function_declarations.convert_messages(turn.messages),
            **function_declarations.request_fields(turn),
        }
    else:
        if turn.tools:
            body["tools"] = turn.tools
        if turn.tool_choice is not None:
            body["tool_choice"] = turn.tool_choice
    body.update(turn.params)
    return _post("chat/completions", body, turn, target)


def _completion(turn: Turn, asked: CompletionPrompt, target: UpstreamTarget) -> HTTPRequest:
    """Return `POST {base}/completions`, with one prompt and log probabilities in the older shape."""
    body: dict[str, JSON] = {"model": target.model, "prompt": asked.prompts[0], **turn.params}
    if body.get("logprobs"):
        body["logprobs"] = body.pop("top_logprobs", 0)
    return _post("completions", body, turn, target)


def _post(path: str, body: dict[str, JSON], turn: Turn, target: UpstreamTarget) -> HTTPRequest:
    stream = turn.stream
    body["stream"] = stream
    if stream:
        body["stream_options"] = {"include_usage": True}
    headers = target.with_authorization((b"accept", b"text/event-stream" if stream else b"application/json"))
    return HTTPRequest("POST", f"{target.base_url}/{path}", headers, raw_json.dumps(body, turn.raw_fields))


class Decoder:
    """A decoder from server-sent events to events."""

    def __init__(self, target: UpstreamTarget) -> None:
        self._target = target
        self._plan = target.plan
        self._native: dashscope.Decoder | None = None
        """The decoder for a server that returns DashScope's native shape."""
        self._declared = function_declarations.normalizer_for(target)
        self._lone_surrogates: dict[tuple[type, int, int | None], Event] = {}
        self._extras = deltas.ChunkExtras()
        self._unread: JSON = None
        """The last event, if it is no chunk; its words explain a response that is cut after it."""
        self._has_ended = False
        self._escaped = True
        """Whether this chunk contains `\\u` escapes, of which a surrogate pair takes two."""
        self._last_event: dict[int, bool] = {}
        """Choices that continue: True after a null finish reason, False after an empty one, which is an end
        if nothing follows."""

    def feed(self, item: ServerSentEvent) -> list[Event]:
        """Yield the events of one chunk."""
        data = item.data
        self._escaped = "\\u" in data
        if data == "[DONE]":
            self._last_event = dict.fromkeys(self._last_event, True)
            self._has_ended = True
            return [StreamDone(tuple(self._last_event) if len(self._last_event) > 1 else ())]
        try:
            chunk = json_codec.loads(data)
        except ValueError:
            return self._not_json(item)
        if not isinstance(chunk, dict):
            return self._not_an_object(chunk, item)
        if isinstance(chunk.get("output"), dict) and "choices" not in chunk:
            self._native = self._native or dashscope.Decoder(self._target, asked=False)
            return self._native.feed(item)
        if self._declared is not None:
            chunk = self._declared.normalize(chunk)
        self._unread = None
        if "choices" not in chunk or "error" in chunk or item.event == "error":
            error = error_from_event(chunk, item.status, plan=self._plan, is_error=item.event == "error")
            if error is not None:
                return [StreamFailed(error)]
            self._unread = chunk if "choices" not in chunk and "usage" not in chunk else None
        return self._chunk(chunk)

    def close(self) -> list[Event]:
        """Release the held surrogates, which only a truncated stream leaves behind."""
        native = self._native.close() if self._native is not None else []
        over = [
            ChoiceFinished("stop", number)
            for number in sorted(self._last_event)
            if not self._last_event[number]
        ]
        unread = [] if self._unread is None or self._has_ended or over else [self._unread]
        failed = [StreamFailed(_unread_error(value)) for value in unread]
        return [*self._replace_unpaired(), *native, *over, *failed]

    def _not_an_object(self, chunk: JSON, item: ServerSentEvent) -> list[Event]:
        error = error_from_event(chunk, item.status, plan=self._plan, is_error=item.event == "error")
        self._unread = chunk
        return [] if error is None else [StreamFailed(error)]

    def _not_json(self, item: ServerSentEvent) -> list[Event]:
        if not item.data.lstrip().startswith(("{", "[", "<")) and item.event != "error":
            self._unread = item.data  # a ping, or the error of a proxy
            return []
        error = UpstreamError("The upstream sent a chunk that is not JSON.", code="upstream_invalid_response")
        if item.event == "error":
            error = error_from_event(item.data, item.status, plan=self._plan, is_error=True) or error
        return [StreamFailed(error)]

    def _chunk(self, chunk: JSON) -> list[Event]:
        events: list[Event] = []
        choices = chunk.get("choices")
        if not deltas.CHUNK_FIELDS.issuperset(chunk):
            events += self._extras.feed(chunk)
        for position, choice in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(choice, dict):
                events.extend(self._choice(choice, position))
        if isinstance(chunk.get("usage"), dict):
            events.append(deltas.parse_usage(chunk["usage"]))
        return events

    def _choice(self, choice: dict[str, JSON], position: int) -> list[Event]:
        number = deltas.choice_index(choice, position)
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            delta = choice.get("message")
        logprobs = choice.get("logprobs")
        if delta is None and "text" in choice:  # of a completion
            delta, logprobs = {"content": choice["text"]}, deltas.chat_logprobs(logprobs)
        reason = choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            reason = finish_reasons.parse_reason(reason)
        if reason == "error_finish":
            return [finish_reasons.error_finish(delta, self._plan)]
        events: list[Event] = []
        if isinstance(delta, dict):
            events = deltas.parse_delta(delta, number, logprobs)
            if self._lone_surrogates or (self._escaped and any(map(_ends_in_lone_surrogate, events))):
                events = [whole for event in events if (whole := self._join_surrogates(event)) is not None]
        if not deltas.CHOICE_FIELDS.issuperset(choice):
            events += deltas.parse_choice_extras(choice, number)
        failure = finish_reasons.choice_failure(choice, delta, self._plan)
        if failure is not None:
            return [*events, *self._replace_unpaired(number), failure]
        if reason is not None and reason not in finish_reasons.UNFINISHED:
            self._has_ended = True
            events += self._replace_unpaired(number)
            # vLLM's name, then SGLang's; a number is a token
            matched = choice.get("stop_reason") or choice.get("matched_stop")
            events.append(
                finish_reasons.finish_event(reason, number, matched if isinstance(matched, str) else None)
            )
        if reason is None or number in self._last_event:
            self._last_event[number] = reason != ""
        return events

    def _join_surrogates(self, event: Event) -> Event | None:
        """Join a character outside the BMP whose two `\\u` escapes were sent in two deltas."""
        if isinstance(event, RawToolCallDelta):
            name = "arguments"
            key: tuple[type, int, int | None] = (RawToolCallDelta, event.choice, event.index)
        elif isinstance(event, TextDelta | ReasoningDelta):
            name, key = "text", (type(event), event.choice, None)
        else:
            return event
        text = getattr(event, name)
        if not isinstance(text, str) or not text:
            return event
        if key in self._lone_surrogates:
            joined = getattr(self._lone_surrogates.pop(key), name) + text
            text = joined.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if "\ud800" <= text[-1] <= "\udbff":
            self._lone_surrogates[key] = half = copy(event)
            setattr(half, name, text[-1])
            text = text[:-1]
        setattr(event, name, text)
        return event if text or isinstance(event, RawToolCallDelta) else None

    def _replace_unpaired(self, choice: int | None = None) -> list[Event]:
        keys = [key for key in self._lone_surrogates if choice is None or key[1] == choice]
        return [self._lone_surrogates.pop(key) for key in keys]


def _unread_error(value: JSON) -> UpstreamError:
    """Return the error of a response that is cut after an event that is no chunk; plain text is a proxy's."""
    error = unknown_body_error(value, "a chunk")
    if isinstance(value, str):
        error.retry = RetryHint.ONCE
    return error


def _ends_in_lone_surrogate(event: Event) -> bool:
    """Return whether an event's text ends with a high surrogate."""
    text = event.arguments if isinstance(event, RawToolCallDelta) else getattr(event, "text", None)
    return isinstance(text, str) and "\ud800" <= text[-1:] <= "\udbff"


def response(body: JSON, target: UpstreamTarget) -> list[Event]:
    """Return the events of a whole response; an error body becomes `StreamFailed`."""
    if isinstance(body, dict) and isinstance(body.get("output"), dict) and "choices" not in body:
        return dashscope.response(body, target)
    if isinstance(body, dict) and (declared := function_declarations.normalizer_for(target)) is not None:
        body = declared.normalize(body)
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        error = error_from_event(body, None, plan=target.plan)
        return [StreamFailed(error or unknown_body_error(body, "a chat completion"))]
    decoder = Decoder(target)
    events = decoder._chunk(body)
    deltas.index_calls(events)
    if any(isinstance(event, StreamFailed) for event in events):
        return events
    finished = {event.choice for event in events if isinstance(event, ChoiceFinished)}
    for position, choice in enumerate(body["choices"]):
        if not isinstance(choice, dict) or not deltas.ANSWER_FIELDS.intersection(choice):
            return [StreamFailed(unknown_body_error(body, "a chat completion"))]
        number = deltas.choice_index(choice, position)
        if number not in finished:  # some servers omit it from whole responses
            events.append(ChoiceFinished("stop", number))
    return [*events, StreamDone()]
