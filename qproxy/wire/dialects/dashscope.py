"""DashScope's native generation API: `POST /api/v1/services/aigc/{text,multimodal}-generation/generation`.

The body is `{"model", "input": {"messages"}, "parameters"}`; a response is `{"output": {"choices": [...]},
"usage"}`, or `output.text` in the older format. Search results are `output.search_info`, in the first events
of a stream or in all of them. A stream has no `[DONE]`: it just ends, so its end is good only after a finish
reason (which is the *string* "null" until then). Usage is in every event, cumulative. A stream consists of
increments if requested, otherwise of everything so far (`cumulative.IncrementalOrCumulative`).

Source: Model Studio's DashScope reference and the dashscope SDK.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qproxy.wire import json_codec
from qproxy.wire.cumulative import IncrementalOrCumulative
from qproxy.wire.dialects import deltas, finish_reasons, function_declarations
from qproxy.wire.dialects.error_mapping import error_from_event, unknown_body_error
from qproxy.wire.dialects.target import UpstreamTarget
from qproxy.wire.events import JSON, ChoiceFinished, Event, SearchInfo, StreamDone, StreamFailed, Turn
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.sse import ServerSentEvent

_SERVICE = "/api/v1/services/aigc/{}-generation/generation"
_BASES = ("/compatible-mode/v1", "/api/v1", "/v1")
_CACHE_MARKS = ("cache_control", "prompt_cache_breakpoint")
_MEDIA = {"image_url": "image", "input_audio": "audio", "video_url": "video", "video": "video"}
_ENVELOPE = ("output", "usage", "request_id", "code", "message", "status_code", "status")
_TEXTS = ("text", "refusal")


def request(turn: Turn, target: UpstreamTarget) -> HTTPRequest:
    """Return the turn as a native request; a stream is requested by a header, and as increments."""
    multimodal = target.spec.native_path == "multimodal" or any(map(_has_media, turn.messages))
    parameters: dict[str, JSON] = {**turn.params, "result_format": "message"}
    messages: Sequence[JSON] = [_message(message, multimodal) for message in turn.messages]
    if target.tool_schema == function_declarations.TOOL_SCHEMA:
        messages = function_declarations.convert_messages(messages)
        parameters |= function_declarations.request_fields(turn)
    else:
        if turn.tools:
            parameters["tools"] = turn.tools
        if turn.tool_choice is not None:
            parameters["tool_choice"] = turn.tool_choice
    headers = target.with_authorization((b"accept", b"application/json"))
    if turn.stream:
        parameters["incremental_output"] = True
        headers = target.with_authorization(
            (b"accept", b"text/event-stream"), (b"x-dashscope-sse", b"enable")
        )
    body = {"model": target.model, "input": {"messages": messages}, "parameters": parameters}
    return HTTPRequest("POST", _url(target.base_url, multimodal), headers, json_codec.dumps(body))


def _url(base_url: str, multimodal: bool) -> str:
    return api_root(base_url) + _SERVICE.format("multimodal" if multimodal else "text")


def api_root(base_url: str) -> str:
    """Return the part of an account's base URL below which the native services are."""
    suffix = next((suffix for suffix in _BASES if base_url.endswith(suffix)), "")
    return base_url.removesuffix(suffix)


def _has_media(message: JSON) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") not in _TEXTS for part in content)


def _message(message: JSON, multimodal: bool) -> JSON:
    """Return a message with native content parts (no `type`); text models take a string, or parts with a
    mark of the context cache.
    """
    content = message.get("content")
    if isinstance(content, list) and not multimodal and not any(map(_has_cache_mark, content)):
        return {**message, "content": deltas.parse_text(content)}
    if isinstance(content, list):
        return {**message, "content": [_part(part) for part in content]}
    if multimodal and isinstance(content, str) and message.get("role") != "tool":
        return {**message, "content": [{"text": content}]}
    return message


def _has_cache_mark(part: JSON) -> bool:
    return any(mark in part for mark in _CACHE_MARKS)


def _part(part: JSON) -> JSON:
    kind = part.get("type", "text")
    if kind not in _MEDIA and kind not in _TEXTS:
        return {key: value for key, value in part.items() if key != "type"}  # named by its key there
    value = part.get(kind, "")
    if isinstance(value, dict):
        value = value.get("url") or value.get("data")
    kept = {mark: part[mark] for mark in _CACHE_MARKS if mark in part}
    return {_MEDIA.get(kind, "text"): value, **kept}


class Decoder:
    """A decoder of server-sent events; `asked` is whether increments were requested."""

    def __init__(self, target: UpstreamTarget, *, asked: bool = True) -> None:
        self._plan = target.plan
        self._declared = function_declarations.normalizer_for(target)
        self._texts = IncrementalOrCumulative(request=asked)
        self._extras = deltas.ChunkExtras(native=True)
        self._started: set[int] = set()
        self._ended: set[int] = set()
        """Choices that sent something, and those that had a finish reason."""
        self._found: dict[str, JSON] = {}
        self._unread: JSON = None
        """The last event, if it is no generation; its words explain a response that is cut after it."""

    def feed(self, item: ServerSentEvent) -> list[Event]:
        if item.data == "[DONE]":
            return [StreamDone()]
        try:
            data = json_codec.loads(item.data)
        except ValueError:
            data = item.data
        is_error = item.event == "error"
        if is_error or not isinstance(data, dict) or not isinstance(data.get("output"), dict):
            error = error_from_event(data, item.status, plan=self._plan, is_error=is_error)
            if error is None and not isinstance(data, dict):
                error = unknown_body_error(data, "a generation")
            self._unread = data
            return [StreamFailed(error)] if error is not None else []
        self._unread = None
        if self._declared is not None:
            data = self._declared.normalize(data)
        events = self._extras.feed(_chunk_fields(data))
        events += [
            event for one in _events(data, self._plan) if self._is_new(one) for event in self._texts.feed(one)
        ]
        self._started.update(getattr(event, "choice", 0) for event in events)
        self._ended.update(event.choice for event in events if isinstance(event, ChoiceFinished))
        return events

    def _is_new(self, event: Event) -> bool:
        """Return whether search results differ from those before."""
        if not isinstance(event, SearchInfo):
            return True
        before, self._found = self._found, event.info
        return event.info != before

    def close(self) -> list[Event]:
        """Finish the stream: its end is good after the finish reasons of all choices."""
        is_complete = bool(self._ended) and self._started <= self._ended
        end: list[Event] = [StreamDone(implied=True)] if is_complete else []
        if self._unread is not None and not self._ended:
            end = [StreamFailed(unknown_body_error(self._unread, "a generation"))]
        return [*self._texts.close(), *end]


def _chunk_fields(data: dict[str, JSON]) -> dict[str, JSON]:
    """Return the fields of an event and of its output, but for those of the envelope."""
    fields = {name: data[name] for name in data if name not in _ENVELOPE}
    return {**fields, **data["output"]}


def _events(data: dict[str, JSON], plan: str) -> Iterator[Event]:
    output = data["output"]
    found = output.get("search_info")
    if found and isinstance(found, dict):
        yield SearchInfo(found)
    choices = output.get("choices")
    if not isinstance(choices, list):  # the older format
        choices = [{"message": {"content": output.get("text")}, "finish_reason": output.get("finish_reason")}]
    for position, choice in enumerate(choices):
        if not isinstance(choice, dict):
            continue
        number = deltas.choice_index(choice, position)
        message = choice.get("message") or choice.get("delta")
        reason = choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            reason = finish_reasons.parse_reason(reason)
        if reason == "error_finish":
            yield finish_reasons.error_finish(message, plan)
            return
        if isinstance(message, dict):
            yield from deltas.parse_delta(message, number, choice.get("logprobs"))
        yield from deltas.parse_choice_extras(choice, number)
        if (failure := finish_reasons.choice_failure(choice, message, plan)) is not None:
            yield failure
            return
        if reason is not None and reason not in finish_reasons.UNFINISHED:
            yield finish_reasons.finish_event(reason, number)
    if isinstance(data.get("usage"), dict):
        yield deltas.parse_usage(data["usage"])


def response(body: JSON, target: UpstreamTarget) -> list[Event]:
    """Return the events of a whole response; an error body (even with status 200) becomes `StreamFailed`."""
    if not isinstance(body, dict) or not isinstance(body.get("output"), dict):
        error = error_from_event(body, None, plan=target.plan)
        return [StreamFailed(error or unknown_body_error(body, "a generation"))]
    if (declared := function_declarations.normalizer_for(target)) is not None:
        body = declared.normalize(body)
    events = [*deltas.ChunkExtras(native=True).feed(_chunk_fields(body)), *_events(body, target.plan)]
    deltas.index_calls(events)
    if any(isinstance(event, StreamFailed) for event in events):
        return events
    finished = {event.choice for event in events if isinstance(event, ChoiceFinished)}
    open_choices = {getattr(event, "choice", 0) for event in events} - finished if finished else {0}
    events += [ChoiceFinished("stop", choice) for choice in sorted(open_choices)]
    return [*events, StreamDone()]
