"""A judge of what we send: OpenAI's own types, strictly.

`judge(kind, value)` holds a body (as parsed JSON) against a model of the official SDK: every value has
exactly the declared type (pydantic's strict mode: no "1" for 1), every literal is one of the declared ones,
every required key is there, and every key that the model does not know stands in `EXTRAS`. The SDK's own
parsing is far more lenient, so that it works is no proof.

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
    "Response": frozenset({"store"}),  # OpenAI sends it, its SDK does not declare it
    "ResponseErrorEvent": frozenset({"error"}),  # what OpenAI sends, and what makes the SDK raise
}
"""By the SDK's class: what we send on purpose and the SDK does not declare."""


adapter = cache(TypeAdapter)
"""A union of all events takes pydantic a tenth of a second to prepare."""


def judge(kind, value):
    """The value as an instance of the SDK's class; AssertionError or ValidationError names what is wrong."""
    text = json.dumps(value)
    instance = adapter(kind).validate_json(text, strict=True)
    unknown(instance, kind.__name__ if isinstance(kind, type) else str(kind))
    return instance


def unknown(value, path):
    """Assert that no model in `value` holds a key that it does not declare and that `EXTRAS` does not
    list."""
    if isinstance(value, BaseModel):
        name = type(value).__name__
        strange = set(value.model_extra or ()) - EXTRAS.get(name, frozenset())
        assert not strange, f"{path} ({name}) has unknown keys {sorted(strange)}"
        for key in type(value).model_fields:
            unknown(getattr(value, key), f"{path}.{key}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            unknown(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            unknown(item, f"{path}[{number}]")


def stream(kind, text, *, done=True):
    """The chunks of a stream's text, each judged; with `done` the last frame is `[DONE]`."""
    frames = [frame.partition("data: ")[2] for frame in text.split("\n\n") if "data: " in frame]
    if done:
        assert frames, "an empty stream"
        assert frames.pop() == "[DONE]"
    return [judge(kind, _said(json.loads(frame))) for frame in frames]


def _said(chunk):
    """The chunk in the words that the SDK declares, where OpenAI itself says what its SDK does not: null for
    a completion that goes on, and streamed calls of custom tools (judged in a function's place)."""
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
    """An error's body: `error` alone, with its four keys, the code never a number."""
    assert set(value) == {"error"}, value
    assert set(value["error"]) == {"message", "type", "param", "code"}, value
    return judge(ErrorObject, value["error"])
