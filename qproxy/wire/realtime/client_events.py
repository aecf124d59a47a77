"""From the client: each of its events as what Qwen hears of it.

Sound is filtered to Qwen's rate, tools are nested, pictures go in by a buffer of their own.  What Qwen cannot do is
refused where it would come to something else than was asked for, and else left out and noted.  Events that nobody here
knows pass.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.realtime import event_names as names
from qproxy.wire.realtime import session_config as settings
from qproxy.wire.realtime.audio import MAX_PIECE, RATE, Resampler
from qproxy.wire.realtime.session import Out, Seen, ToQwen


class Hearing:
    """Of one session."""

    def __init__(self, told: settings.Told, seen: Seen, voices: Mapping[str, str], *, strict: bool) -> None:
        self._told = told
        self._seen = seen
        self._voices = voices
        self._strict = strict
        self._ear = Resampler(settings.CLIENT_RATE)

    def said(self, event: dict[str, Any]) -> Iterator[Out]:
        """What goes out for an event; RequestError when it cannot be served."""
        kind = event["type"]
        if kind == "session.update":
            yield self._update(event)
        elif kind == "input_audio_buffer.append":
            yield from self._audio(event)
        elif kind in ("input_audio_buffer.commit", "input_audio_buffer.clear"):
            rest = self._ear.flush()
            if kind == "input_audio_buffer.clear":
                self._seen.waiting = 0.0
            elif rest:
                yield _append(rest)
            yield ToQwen(event)
        elif kind == "conversation.item.create":
            yield from self._item(event)
        elif kind == "response.create":
            yield self._response(event)
        elif kind == "transcription_session.update":
            raise RequestError(
                "This server offers no transcription sessions.", param="type", code="unsupported_event"
            )
        else:
            yield ToQwen(event)

    def _update(self, event: dict[str, Any]) -> ToQwen:
        wanted = settings.for_qwen(event.get("session"), self._voices)
        self._ignore(wanted.ignored)
        if wanted.rate is not None and wanted.rate != self._told.rate:
            self._told.rate, self._ear = wanted.rate, Resampler(wanted.rate)
        self._told.voice = wanted.voice or self._told.voice
        if wanted.tools is not None:
            self._told.tools = wanted.tools
        if wanted.tool_choice is not None:
            self._told.tool_choice = wanted.tool_choice
        session = wanted.session
        if wanted.tools is not None or wanted.tool_choice is not None:
            session["tools"] = self._told.callable()
        return ToQwen({**event, "session": session})

    def _audio(self, event: dict[str, Any]) -> Iterator[Out]:
        data = _decoded(event.get("audio"), "audio")
        for start in range(0, len(data), MAX_PIECE):
            heard = self._ear.feed(data[start : start + MAX_PIECE])
            if heard:
                self._seen.waiting += len(heard) / (2 * RATE)
                yield _append(heard, event if start + MAX_PIECE >= len(data) else {})

    def _item(self, event: dict[str, Any]) -> Iterator[Out]:
        """Pictures go in by a buffer of their own; sound must come by the other one."""
        item = event.get("item")
        content = item.get("content") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(content, list):
            yield ToQwen(event)
            return
        kept: list[JSON] = []
        pictures: list[Out] = []
        for number, part in enumerate(content):
            path = f"item.content[{number}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "input_image":
                picture = _picture(part.get("image_url"), path)
                pictures.append(ToQwen({"type": "input_image_buffer.append", "image": picture}))
            elif kind == "input_audio":
                _refuse(f"{path}.type", "send sound by input_audio_buffer.append.")
            else:
                kept.append(
                    {**part, "type": names.PARTS.get(str(kind), kind)} if isinstance(part, dict) else part
                )
        yield from pictures
        if kept or not content:
            yield ToQwen({**event, "item": {**item, "content": kept}})

    def _response(self, event: dict[str, Any]) -> ToQwen:
        asked = event.get("response")
        if not isinstance(asked, dict):
            return ToQwen(event)
        if asked.get("conversation") not in (None, "auto") or asked.get("input") is not None:
            name = "input" if asked.get("input") is not None else "conversation"
            _refuse(f"response.{name}", "a response outside of the conversation is nothing that Qwen has.")
        kept: dict[str, JSON] = {}
        for name, value in asked.items():
            if name in ("modalities", "output_modalities"):
                kept["modalities"] = settings.modalities(value, f"response.{name}")
            elif name == "instructions":
                kept[name] = value
            elif value is not None and name != "conversation":
                self._ignore([f"response.{name}"])
        return ToQwen({**event, "response": kept})

    def _ignore(self, paths: list[str]) -> None:
        if paths and self._strict:
            raise RequestError(
                f"Unsupported parameter: '{paths[0]}' has no meaning for this model's server.",
                param=paths[0],
                code="unsupported_parameter",
            )
        self._seen.ignored += [path for path in paths if path not in self._seen.ignored]


def _append(data: bytes, event: Mapping[str, JSON] | None = None) -> ToQwen:
    return ToQwen(
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
        _refuse(path, "expected base64.")


def _picture(value: JSON, path: str) -> str:
    """The data of a picture, which Qwen wants without its type."""
    head, comma, data = value.partition(",") if isinstance(value, str) else ("", "", "")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        _refuse(f"{path}.image_url", "expected a picture as a data: URL.")
    return str(data)


def _refuse(path: str, message: str) -> NoReturn:
    raise RequestError(f"Invalid value for '{path}': {message}", param=path, code="invalid_value")
