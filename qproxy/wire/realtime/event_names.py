"""The names of server events, and the shapes inside them, in OpenAI's beta and current (GA) API.

Qwen uses the beta's. Some of its servers use newer names already, so every event is converted to the beta
first (`to_beta`), and from there with `to_ga` for any client that does not use the beta. Events are changed
in place: they were parsed here and have no other user.
"""

from __future__ import annotations

from typing import Any

from qproxy.wire.events import JSON

GA_NAMES = {
    "response.text.delta": "response.output_text.delta",
    "response.text.done": "response.output_text.done",
    "response.audio.delta": "response.output_audio.delta",
    "response.audio.done": "response.output_audio.done",
    "response.audio_transcript.delta": "response.output_audio_transcript.delta",
    "response.audio_transcript.done": "response.output_audio_transcript.done",
    "conversation.item.created": "conversation.item.added",
}
"""The beta's names, and the current ones."""
BETA_NAMES = {new: old for old, new in GA_NAMES.items()} | {"rate_limit.updated": "rate_limits.updated"}
GA_PARTS = {"text": "output_text", "audio": "output_audio"}
"""Types of content in an assistant's message."""
BETA_PARTS = {new: old for old, new in GA_PARTS.items()}
PCM = {"type": "audio/pcm", "rate": 24_000}
"""The output format of Qwen and of OpenAI."""


def to_beta(event: dict[str, Any]) -> None:
    """Convert a server event to the beta, whatever its server's version."""
    event["type"] = BETA_NAMES.get(event["type"], event["type"])
    for item in _items(event):
        _rename_parts(item, BETA_PARTS)
    response = event.get("response")
    if isinstance(response, dict):
        _rename_usage(response)
        if "output_audio_format" in response:
            response["output_audio_format"] = "pcm16"


def to_ga(event: dict[str, Any]) -> None:
    """Convert a beta event to the current API."""
    event["type"] = GA_NAMES.get(event["type"], event["type"])
    for item in _items(event):
        _rename_parts(item, GA_PARTS)
    response = event.get("response")
    if isinstance(response, dict):
        _to_ga_shape(response)


def _items(event: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation's items that an event holds."""
    response = event.get("response")
    output = response.get("output") if isinstance(response, dict) else None
    found = [event.get("item"), *(output if isinstance(output, list) else ())]
    return [item for item in found if isinstance(item, dict)]


def _rename_parts(item: dict[str, Any], names: dict[str, str]) -> None:
    content = item.get("content")
    if item.get("role") != "assistant" or not isinstance(content, list):
        return
    for part in content:
        if isinstance(part, dict):
            part["type"] = names.get(str(part.get("type")), part.get("type"))


def _rename_usage(response: dict[str, Any]) -> None:
    """Rename token counts to OpenAI's `input_token_details`; Qwen writes `input_tokens_details`."""
    usage = response.get("usage")
    if isinstance(usage, dict):
        for side in ("input", "output"):
            details = usage.pop(f"{side}_tokens_details", None)
            if details is not None:
                usage.setdefault(f"{side}_token_details", details)


def _to_ga_shape(response: dict[str, Any]) -> None:
    modalities = response.pop("modalities", None)
    if modalities is not None:
        response["output_modalities"] = output_modalities(modalities)
    voice, audio = response.pop("voice", None), response.pop("output_audio_format", None)
    if voice is not None or audio is not None:
        response.setdefault("audio", {"output": {"format": dict(PCM), "voice": voice}})


def output_modalities(modalities: JSON) -> list[str]:
    """Return one output type, as the current API does; the beta named both for audio with text."""
    return ["audio"] if isinstance(modalities, list) and "audio" in modalities else ["text"]
