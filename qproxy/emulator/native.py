"""DashScope's native generation services of the emulated Qwen: chat's answers in other envelopes. Pure.

    request   `{"model", "input": {"messages" or "prompt"}, "parameters"}`; content parts without a `type`
    answer    `{"output": {"choices" or "text"}, "usage", "request_id"}`
    stream    numbered events without `[DONE]`: increments with `incremental_output`, else everything so far
    error     `{"code", "message", "request_id"}`

Each model is served by the text service or the multimodal one, and the other one rejects it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import chat, omni_audio, prompt_cache, thinking
from qproxy.emulator.errors import ApiError, bad_request
from qproxy.emulator.faults import DONE, SSE, RepeatSteps, ScriptedReply, Step
from qproxy.emulator.prompt_cache import NOT_CACHED, CacheUse
from qproxy.emulator.unverified import NATURAL, Unverified
from qproxy.wire import json_codec

ROOT = "/api/v1/"
PREFIX = f"{ROOT}services/"
SERVICES = {
    f"{PREFIX}aigc/text-generation/generation": "text",
    f"{PREFIX}aigc/multimodal-generation/generation": "multimodal",
}
REQUEST_ID = "emu-1"
_MEDIA = {"image": "image_url", "audio": "input_audio", "video": "video"}
_CODES = {
    None: "InvalidParameter",
    "invalid_parameter_error": "InvalidParameter",
    "invalid_api_key": "InvalidApiKey",
    "model_not_found": "ModelNotFound",
    "limit_requests": "Throttling.RateQuota",
    "limit_burst_rate": "Throttling.BurstRate",
    "insufficient_quota": "Throttling.AllocationQuota",
    "internal_error": "InternalError",
    "data_inspection_failed": "DataInspectionFailed",
}
"""Native codes of the compatible mode's; the others are the same."""
_CITATION = re.compile(r"\[<number>\]|\[ref_<number>\]")
_SOURCE = {"index": 1, "title": "The emulator", "url": "https://example.com/emulator", "site_name": "Example"}


def chat_request(body: Any, stream: bool) -> dict[str, Any]:
    """Return a native request in the compatible mode's form."""
    given, parameters = body.get("input") or {}, body.get("parameters") or {}
    messages = given.get("messages")
    if messages is None and given.get("prompt"):
        messages = [{"role": "user", "content": given["prompt"]}]
    converted = [{**message, "content": _content(message.get("content"))} for message in messages or ()]
    return {**parameters, "model": body.get("model"), "messages": converted, "stream": stream}


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part) for part in content]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a content part in the compatible mode's form, with its cache markers."""
    kept = {name: part[name] for name in prompt_cache.MARKERS if name in part}
    for name, kind in _MEDIA.items():
        if name in part:
            return {"type": kind, kind: part[name], **kept}
    return {"type": "text", "text": part.get("text", ""), **kept}


def validate(body: Any, service: str, facts: Unverified = NATURAL) -> None:
    """Raise the refusal of a request in the compatible mode's form that came to one of the services."""
    chat.validate(body, facts)
    path = package_catalog().get(str(body["model"])).native_path
    if path not in (None, service) and not str(body["model"]).startswith(chat.FAULTS):
        raise ApiError(400, "url error, please check url!", "invalid_parameter_error")
    if omni_audio.is_spoken(body):
        raise bad_request("Audio output is supported in the compatible mode only.")
    if service == "text" and any(not isinstance(m["content"], str | None) for m in body["messages"]):
        raise bad_request("Input should be a valid string: input.messages.content")
    if body["stream"] and thinking.is_on(body) and not body.get("incremental_output"):
        raise bad_request('The incremental_output parameter must be "true" when enable_thinking is true')
    if body.get("enable_search") and service == "multimodal" and not body["stream"]:
        raise bad_request("Non-streaming mode does not support Web Search")


def response(body: Any, service: str, cached: CacheUse = NOT_CACHED) -> dict[str, Any]:
    """The answer in one piece."""
    whole = chat.response(body, cached)
    (choice,) = whole["choices"]
    if choice["message"]["content"]:
        choice["message"]["content"] += _mark(body)
    output = _output(body, service, choice["message"], choice["finish_reason"])
    return {"output": output, "usage": _usage(whole["usage"]), "request_id": REQUEST_ID}


def events(
    body: Any, service: str, size: int = 12, cached: CacheUse = NOT_CACHED, facts: Unverified = NATURAL
) -> Iterator[bytes]:
    """The events of a streamed answer, with the usage in each of them."""
    usage = _usage(chat.usage(body, chat.answer(body), cached))
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    chunks = [chunk for chunk in chat.chunks(body, size, cached, facts) if chunk["choices"]]
    for piece in _cut(_mark(body), size) if chat.reply(body)[1] else ():
        chunks.insert(-1, {"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
    for number, chunk in enumerate(chunks, 1):
        (choice,) = chunk["choices"]
        if body.get("incremental_output"):
            message = {"role": "assistant", "content": ""}
        message = _added(message, choice["delta"])
        output = _output(body, service, message, choice["finish_reason"] or "null")
        yield event({"output": output, "usage": usage, "request_id": REQUEST_ID}, number)


def _mark(body: Any) -> str:
    """Return the mark with which a searched text cites its source, "" unless it was asked for."""
    options = body.get("search_options") or {}
    if not body.get("enable_search") or not options.get("enable_citation"):
        return ""
    found = _CITATION.fullmatch(str(options.get("citation_format", "[<number>]")))
    return f" {found[0].replace('<number>', '1')}." if found else ""


def _cut(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def event(data: Any, number: int = 1, status: int = 200) -> bytes:
    """One event of a stream: a result, or an error with its status."""
    kind = "result" if status == 200 else "error"
    return (
        f"id:{number}\nevent:{kind}\n:HTTP_STATUS/{status}\ndata:".encode() + json_codec.dumps(data) + b"\n\n"
    )


def translate(reply: ScriptedReply) -> ScriptedReply:
    """Return a fault's reply in the native form: its error body, or the events of its stream."""
    if reply.content_type == "application/json" and reply.status != 200:
        (body,) = reply.steps
        assert isinstance(body, bytes)
        return replace(reply, steps=(json_codec.dumps(error(json_codec.loads(body))),))
    if reply.content_type == SSE:
        return replace(reply, steps=tuple(map(_translate_step, reply.steps)))
    return reply


def _translate_step(step: Step) -> Step:
    if isinstance(step, RepeatSteps):
        return RepeatSteps(tuple(map(_translate_step, step.steps)), step.times)
    if not isinstance(step, bytes) or not step.startswith(b"data: {"):
        return b"" if step == DONE else step
    return b"".join(map(_translate_event, step.split(b"\n\n")))


def _translate_event(text: bytes) -> bytes:
    """Return an event of the compatible mode as a native one; bytes that are none stay as they are."""
    try:
        data = json_codec.loads(text.removeprefix(b"data: "))
    except ValueError:
        return text and text + b"\n\n"
    if "error" in data:
        return event(error(data), status=500)
    (choice,) = data["choices"]
    message = {"role": "assistant", "content": "", **choice["delta"]}
    output = {"choices": [{"message": message, "finish_reason": choice["finish_reason"] or "null"}]}
    return event({"output": output, "request_id": REQUEST_ID})


def error(body: Any) -> dict[str, Any]:
    """Return an error body of the compatible mode in the native form."""
    given = body["error"]
    code = given.get("code")
    return {
        "code": _CODES.get(code, code),
        "message": given.get("message", ""),
        "request_id": body.get("request_id", REQUEST_ID),
    }


def _added(message: dict[str, Any], delta: dict[str, Any]) -> dict[str, Any]:
    """Return a message with a delta added."""
    texts = ("content", "reasoning_content", "encrypted_content")
    added = {name: message.get(name, "") + (delta[name] or "") for name in texts if name in delta}
    calls = [dict(call) for call in message.get("tool_calls", ())]
    for piece in delta.get("tool_calls") or ():
        known = [call for call in calls if call["index"] == piece["index"]]
        if known:
            arguments = known[0]["function"]["arguments"] + piece["function"]["arguments"]
            known[0]["function"] = {**known[0]["function"], "arguments": arguments}
        else:
            calls.append(dict(piece))
    return {**message, **added, **({"tool_calls": calls} if calls else {})}


def _output(body: Any, service: str, message: dict[str, Any], finish: str) -> dict[str, Any]:
    if service == "text" and body.get("result_format") != "message":
        return {"text": message["content"], "finish_reason": finish, "choices": None}
    if service == "multimodal":
        message = {**message, "content": [{"text": message["content"]}] if message["content"] else []}
    output: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if body.get("enable_search") and (body.get("search_options") or {}).get("enable_source"):
        output["search_info"] = {"search_results": [_SOURCE]}
    return output


def _usage(counts: dict[str, Any]) -> dict[str, Any]:
    reasoning = counts["completion_tokens_details"]["reasoning_tokens"]
    written = counts["completion_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"],
        "output_tokens": written,
        "total_tokens": counts["total_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning, "text_tokens": written - reasoning},
        "prompt_tokens_details": counts["prompt_tokens_details"],
    }
