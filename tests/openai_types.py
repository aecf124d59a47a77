"""Checks responses against OpenAI's own types, strictly.

`judge(kind, value)` validates a body (as parsed JSON) against a model of the official SDK: every value has
exactly the declared type (pydantic's strict mode: no "1" for 1), every literal is declared, every required
key is present, and every undeclared key is in `EXTRAS`. The SDK's own parsing is far more lenient, so that
its success is no proof.

`stream(kind, text)` does so for every chunk of a stream that ends with `[DONE]`; `refusal(value)` for an
error's body.
"""

import json
from collections.abc import Mapping
from functools import cache

from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter

EXTRAS: Mapping[str, frozenset[str]] = {
    "ChatCompletionMessage": frozenset({"reasoning_content"}),
    "ChoiceDelta": frozenset({"reasoning_content"}),
    "Model": frozenset({"context_length", "max_output_tokens"}),
    "PromptTokensDetails": frozenset({"text_tokens", "image_tokens", "video_tokens"}),  # Qwen's own details
    "CompletionTokensDetails": frozenset({"text_tokens"}),
    "ResponseFunctionCallArgumentsDoneEvent": frozenset({"name"}),  # OpenAI's schema requires it
    "Response": frozenset({"store", "search_info"}),  # OpenAI sends the first, Qwen the second
    "ChatCompletion": frozenset({"search_info"}),
    "TranscriptionVerbose": frozenset({"task"}),  # OpenAI sends it
    "TranslationVerbose": frozenset({"task"}),
    "ResponseErrorEvent": frozenset({"error"}),  # OpenAI sends it, and the SDK raises because of it
}
"""Keys by the SDK's class that qproxy sends on purpose and the SDK does not declare."""


adapter = cache(TypeAdapter)
"""pydantic needs a tenth of a second to prepare a union of all events."""


def judge(kind, value):
    """Return the value as an instance of the SDK's class; AssertionError or ValidationError names the
    fault."""
    text = json.dumps(value)
    instance = adapter(kind).validate_json(text, strict=True)
    unknown(instance, kind.__name__ if isinstance(kind, type) else str(kind))
    return instance


def unknown(value, path):
    """Assert that no model in `value` has a key that neither it nor `EXTRAS` declares."""
    if isinstance(value, BaseModel):
        name = type(value).__name__
        undeclared = set(value.model_extra or ()) - EXTRAS.get(name, frozenset())
        assert not undeclared, f"{path} ({name}) has unknown keys {sorted(undeclared)}"
        for key in type(value).model_fields:
            unknown(getattr(value, key), f"{path}.{key}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            unknown(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            unknown(item, f"{path}[{number}]")


def stream(kind, text, *, done=True):
    """Return the validated chunks of a stream's text; with `done` the last frame is `[DONE]`."""
    frames = [frame.partition("data: ")[2] for frame in text.split("\n\n") if "data: " in frame]
    if done:
        assert frames, "an empty stream"
        assert frames.pop() == "[DONE]"
    return [judge(kind, _as_declared(json.loads(frame))) for frame in frames]


def _as_declared(chunk):
    """Return the chunk as the SDK declares it, for two forms that OpenAI sends but its SDK does not declare:
    null for an unfinished completion, and streamed calls of custom tools (checked as function calls)."""
    for choice in chunk.get("choices", ()):
        if chunk["object"] == "text_completion" and choice["finish_reason"] is None:
            choice["finish_reason"] = "stop"
        for call in choice.get("delta", {}).get("tool_calls") or ():
            if "custom" in call:
                assert call.pop("type", "custom") == "custom"
                custom = call.pop("custom")
                assert set(custom) <= {"name", "input"}
                call["function"] = {"arguments": custom["input"]}
    return chunk


def refusal(value):
    """Check an error's body: `error` alone, with its four keys, the code never a number."""
    assert set(value) == {"error"}, value
    assert set(value["error"]) == {"message", "type", "param", "code"}, value
    return judge(ErrorObject, value["error"])
