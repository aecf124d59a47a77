"""Translate each client event for Qwen.

Audio is filtered to Qwen's rate, tools are nested, images use a separate buffer. What Qwen does not support
is an error if dropping it would change the meaning, and otherwise dropped and noted. Unknown events pass.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime import event_names, session_config
from qproxy.wire.realtime.audio import MAX_CHUNK, RATE, Resampler
from qproxy.wire.realtime.session import SessionUsage, ToUpstream, TranslatedEvent


class ClientEventTranslator:
    """A translator of one session's client events."""

    def __init__(
        self,
        message: session_config.SessionSettings,
        seen: SessionUsage,
        voices: Mapping[str, str],
        *,
        strict: bool,
    ) -> None:
        self._settings = message
        self._usage = seen
        self._voices = voices
        self._strict = strict
        self._resampler = Resampler(session_config.CLIENT_RATE)

    def translate(self, event: dict[str, Any]) -> Iterator[TranslatedEvent]:
        """Yield the events to send for a client event; raise RequestError if it cannot be served."""
        kind = event["type"]
        if kind == "session.update":
            yield self._update(event)
        elif kind == "input_audio_buffer.append":
            yield from self._audio(event)
        elif kind in ("input_audio_buffer.commit", "input_audio_buffer.clear"):
            rest = self._resampler.flush()
            if kind == "input_audio_buffer.clear":
                self._usage.pending_events = 0.0
            elif rest:
                yield _append(rest)
            yield ToUpstream(event)
        elif kind == "conversation.item.create":
            yield from self._item(event)
        elif kind == "response.create":
            yield self._response(event)
        elif kind == "transcription_session.update":
            raise RequestError(
                "This server does not support transcription sessions.", param="type", code="unsupported_event"
            )
        else:
            yield ToUpstream(event)

    def _update(self, event: dict[str, Any]) -> ToUpstream:
        wanted = session_config.to_upstream_session(
            event.get("session"), self._voices, self._settings.transcriber
        )
        self._ignore(wanted.ignored)
        if wanted.rate is not None and wanted.rate != self._settings.rate:
            self._settings.rate, self._resampler = wanted.rate, Resampler(wanted.rate)
        self._settings.voice = wanted.voice or self._settings.voice
        if wanted.tools is not None:
            self._settings.tools = wanted.tools
        if wanted.tool_choice is not None:
            self._settings.tool_choice = wanted.tool_choice
        session = wanted.session
        if wanted.tools is not None or wanted.tool_choice is not None:
            session["tools"] = self._settings.callable_tools()
        return ToUpstream({**event, "session": session})

    def _audio(self, event: dict[str, Any]) -> Iterator[TranslatedEvent]:
        data = _decoded(event.get("audio"), "audio")
        for start in range(0, len(data), MAX_CHUNK):
            resampled = self._resampler.feed(data[start : start + MAX_CHUNK])
            if resampled:
                self._usage.pending_events += len(resampled) / (2 * RATE)
                yield _append(resampled, event if start + MAX_CHUNK >= len(data) else {})

    def _item(self, event: dict[str, Any]) -> Iterator[TranslatedEvent]:
        """Send images by a separate buffer, and reject audio, which must use the audio buffer."""
        item = event.get("item")
        content = item.get("content") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(content, list):
            yield ToUpstream(event)
            return
        kept: list[JSON] = []
        pictures: list[TranslatedEvent] = []
        for number, part in enumerate(content):
            path = f"item.content[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "input_image":
                picture = _picture(part.get("image_url"), path)
                pictures.append(ToUpstream({"type": "input_image_buffer.append", "image": picture}))
            elif kind == "input_audio":
                _rejected(f"{path}.type", "send audio with input_audio_buffer.append.")
            else:
                kept.append(
                    {**part, "type": event_names.BETA_PARTS.get(str(kind), kind)}
                    if isinstance(part, dict)
                    else part
                )
        yield from pictures
        if kept or not content:
            yield ToUpstream({**event, "item": {**item, "content": kept}})

    def _response(self, event: dict[str, Any]) -> ToUpstream:
        response = event.get("response")
        if not isinstance(response, dict):
            return ToUpstream(event)
        if response.get("conversation") not in (None, "auto") or response.get("input") is not None:
            name = "input" if response.get("input") is not None else "conversation"
            _rejected(f"response.{name}", "Qwen does not support responses outside of the conversation.")
        kept: dict[str, JSON] = {}
        for name, value in response.items():
            if name in ("modalities", "output_modalities"):
                kept["modalities"] = session_config.modalities(value, f"response.{name}")
            elif name == "instructions":
                kept[name] = value
            elif value is not None and name != "conversation":
                self._ignore([f"response.{name}"])
        return ToUpstream({**event, "response": kept})

    def _ignore(self, paths: list[str]) -> None:
        if paths and self._strict:
            raise RequestError(
                f"Unsupported parameter: '{paths[0]}' is not supported with this model.",
                param=paths[0],
                code="unsupported_parameter",
            )
        self._usage.ignored += [path for path in paths if path not in self._usage.ignored]


def _append(data: bytes, event: Mapping[str, JSON] | None = None) -> ToUpstream:
    return ToUpstream(
        {
            **(event or {}),
            "type": "input_audio_buffer.append",
            "audio": base64.b64encode(data).decode("ascii"),
        }
    )


def _decoded(value: JSON, path: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        _rejected(path, "expected base64.")


def _picture(value: JSON, path: str) -> str:
    """Return the data of an image, which Qwen wants without its type."""
    head, comma, data = value.partition(",") if isinstance(value, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        _rejected(f"{path}.image_url", "expected an image as a data: URL.")
    return str(data)


def _rejected(path: str, message: str) -> NoReturn:
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")
