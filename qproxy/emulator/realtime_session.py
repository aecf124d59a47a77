"""The realtime responses of the emulated Qwen-Omni: an event in, events out. Pure and deterministic.

Its words are those of Alibaba's pages on client and server events, its strictness too: tools are nested,
sound is 16 kHz unless `audio.input.format` has another rate, OpenAI's names are errors.
It answers text with text and, where sound is wanted, with a tone; sound with the same sound, at 24 kHz; and
calls the first tool that it is given.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import struct
from collections.abc import Generator, Iterator
from typing import Any, TypeAlias

from qproxy.emulator.schema_values import example_arguments
from qproxy.wire.realtime.audio import RATES, Resampler

Event: TypeAlias = dict[str, Any]
_MALFORMED_EVENT_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    struct.error,
)
"""What reading JSON of another shape than the expected one raises."""
VOICES = ("Cherry", "Ethan", "Chelsie", "Serena", "Tina")
SETTINGS = frozenset(
    (
        "modalities", "voice", "input_audio_format", "output_audio_format", "instructions", "turn_detection",
        "tools",
        "input_audio_transcription", "temperature", "top_p", "top_k", "max_tokens", "repetition_penalty",
        "presence_penalty", "seed", "enable_search", "search_options", "smooth_output",
        "audio", "video", "translation", "sample_rate",
    )
)  # fmt: skip
INPUT_RATE, OUTPUT_RATE = 16_000, 24_000
FORMATS = ("pcm", "pcm16", "pcm24")
"""The words for raw sound, old and new; the dashscope SDK sends `pcm16` for both ways."""
LOUD_THRESHOLD = 500
"""From here on sound is speech."""
CHUNK_SECONDS = 0.1
CHUNK_BYTES = 12


class RealtimeModel:
    """One session."""

    def __init__(self, model: str) -> None:
        self._count = 0
        self.finished = False
        self.session: Event = {
            "id": "sess_emu1",
            "object": "realtime.session",
            "model": model,
            "modalities": ["text", "audio"],
            "voice": "Cherry",
            "input_audio_format": "pcm",
            "output_audio_format": "pcm",
            "input_audio_transcription": None,
            "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 800},
            "instructions": "",
            "tools": [],
            "temperature": 0.9,
            "max_tokens": 16384,
        }
        self._sound = b""
        self._speaking = False
        self._silence = 0.0
        self._pending_response: Any = ""
        """The user's latest text, or its sound."""
        self._results: list[str] = []
        self._turns = 0

    def start(self) -> Iterator[Event]:
        """Return the events sent before the first client event."""
        yield self._event("session.created", session=self.session)

    def handle(self, event: Any) -> Iterator[Event]:
        """Return the events for a client event of any shape."""
        kind = event.get("type") if isinstance(event, dict) else None
        answer = getattr(self, f"_on_{kind.replace('.', '_')}", None) if isinstance(kind, str) else None
        if answer is None:
            message = f"Invalid value: {str(kind)[:80]!r}. Unsupported event type."
            yield self._error("invalid_value", message, "type")
            return
        try:
            yield from answer(event)
        except _MALFORMED_EVENT_ERRORS as error:
            yield self._error("invalid_value", f"Invalid event '{kind}': {type(error).__name__}.")

    def _event(self, kind: str, **fields: Any) -> Event:
        self._count += 1
        return {"event_id": f"event_emu{self._count}", "type": kind, **fields}

    def _error(self, code: str, message: str, param: str | None = None) -> Event:
        error = {"type": "invalid_request_error", "code": code, "message": message, "param": param}
        return self._event("error", error=error)

    def _on_session_update(self, event: Event) -> Iterator[Event]:
        wanted = event.get("session") or {}
        problem = _validate_event(wanted)
        if problem is not None:
            yield self._error("invalid_value", problem[1], f"session.{problem[0]}")
            return
        wanted = {name: value for name, value in wanted.items() if value is not None or name != "voice"}
        self.session = {**self.session, **wanted}
        yield self._event("session.updated", session=self.session)

    def _on_input_audio_buffer_append(self, event: Event) -> Iterator[Event]:
        data = base64.b64decode(event["audio"])
        self._sound += data
        if self.session["turn_detection"] is None:
            return
        samples = struct.unpack(f"<{len(data) // 2}h", data)
        loud = max(map(abs, samples), default=0) > LOUD_THRESHOLD
        self._silence = 0.0 if loud else self._silence + len(samples) / self._input_rate
        if loud and not self._speaking:
            self._speaking = True
            yield self._event("input_audio_buffer.speech_started", audio_start_ms=0, item_id=self._item_id())
        elif self._speaking and self._silence * 1000 >= self.session["turn_detection"]["silence_duration_ms"]:
            self._speaking = False
            yield self._event("input_audio_buffer.speech_stopped", audio_end_ms=1000, item_id=self._item_id())
            yield from self._on_input_audio_buffer_commit(event)
            yield from self._on_response_create(event)

    def _item_id(self) -> str:
        return f"item_emu{self._turns + 1}"

    def _on_input_audio_buffer_commit(self, event: Event) -> Iterator[Event]:
        if not self._sound:
            yield self._error(
                "input_audio_buffer_commit_empty", "Error committing input audio buffer: it is empty."
            )
            return
        item_id, self._pending_response, self._sound = self._item_id(), self._sound, b""
        self._turns += 1
        yield self._event("input_audio_buffer.committed", item_id=item_id, previous_item_id=None)
        content = [{"type": "input_audio", "transcript": None}]
        yield self._created({"id": item_id, "type": "message", "role": "user", "content": content})
        if self.session["input_audio_transcription"] is not None:
            text = describe_sound(self._pending_response, self._input_rate)
            about = {"item_id": item_id, "content_index": 0}
            kind = "conversation.item.input_audio_transcription"
            for end in (len(text) // 2, len(text)):
                yield self._event(f"{kind}.text", **about, language="en", text=text[:end], stash=text[end:])
            yield self._event(f"{kind}.completed", **about, transcript=text)

    def _on_input_audio_buffer_clear(self, event: Event) -> Iterator[Event]:
        self._sound = b""
        yield self._event("input_audio_buffer.cleared")

    def _on_input_image_buffer_append(self, event: Event) -> Iterator[Event]:
        base64.b64decode(event["image"], validate=True)
        yield from ()

    def _created(self, item: Event) -> Event:
        item = {"object": "realtime.item", "status": "completed", **item}
        return self._event("conversation.item.created", previous_item_id=None, item=item)

    def _on_conversation_item_create(self, event: Event) -> Iterator[Event]:
        item = event.get("item") or {}
        if item.get("type") == "function_call_output":
            self._results.append(str(item.get("output")))
        elif item.get("type") == "message":
            kinds = {str(part.get("type")) for part in item.get("content") or ()}
            if not kinds <= {"input_text", "text"}:
                yield self._error("invalid_value", f"Invalid value: {sorted(kinds)}.", "item.content")
                return
            self._pending_response = " ".join(part.get("text", "") for part in item["content"])
        self._turns += 1
        yield self._created({"id": self._item_id(), **item})

    def _on_response_cancel(self, event: Event) -> Iterator[Event]:
        yield self._error("response_cancel_not_active", "Conversation has none active response.")

    def _on_session_finish(self, event: Event) -> Iterator[Event]:
        self.finished = True
        yield self._event("session.finished")

    def _on_response_create(self, event: Event) -> Iterator[Event]:
        overrides = event.get("response") or {}
        modalities = list(overrides.get("modalities") or self.session["modalities"])
        self._turns += 1
        response = {
            "id": f"resp_emu{self._turns}",
            "object": "realtime.response",
            "conversation_id": "conv_emu1",
            "status": "in_progress",
            "modalities": modalities,
            "voice": self.session["voice"],
            "output_audio_format": "pcm",
            "output": [],
        }
        yield self._event("response.created", response=response)
        where = {"response_id": response["id"], "item_id": f"item_out{self._turns}", "output_index": 0}
        if self.session["tools"] and not self._results:
            item = yield from self._call(where)
        else:
            item = yield from self._message(where, audio="audio" in modalities)
        usage = {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "input_tokens_details": {"text_tokens": 10},
            "output_tokens_details": {"text_tokens": 5},
        }
        done = {**response, "status": "completed", "output": [item], "usage": usage}
        yield self._event("response.done", response=done)

    def _added(self, where: Event, item: Event) -> Iterator[Event]:
        place = {key: where[key] for key in ("response_id", "output_index")}
        yield self._event("response.output_item.added", **place, item=item)
        yield self._event("conversation.item.created", previous_item_id=None, item=item)

    def _done(self, where: Event, item: Event) -> Event:
        place = {key: where[key] for key in ("response_id", "output_index")}
        return self._event("response.output_item.done", **place, item=item)

    def _call(self, where: Event) -> Generator[Event, None, Event]:
        function = self.session["tools"][0]["function"]
        question = (
            self._pending_response
            if isinstance(self._pending_response, str)
            else describe_sound(self._pending_response, self._input_rate)
        )
        text = json.dumps(example_arguments(function.get("parameters"), question))
        call = {"call_id": f"call_emu{self._turns}", "name": function["name"]}
        item: Event = {
            "id": where["item_id"],
            "object": "realtime.item",
            "type": "function_call",
            "status": "in_progress",
            **call,
            "arguments": "",
        }
        yield from self._added(where, item)
        kind = "response.function_call_arguments"
        for start in range(0, len(text), CHUNK_BYTES):
            delta = text[start : start + CHUNK_BYTES]
            yield self._event(f"{kind}.delta", **where, call_id=call["call_id"], delta=delta)
        yield self._event(f"{kind}.done", **where, **call, arguments=text)
        item = {**item, "status": "completed", "arguments": text}
        yield self._done(where, item)
        return item

    def _message(self, where: Event, *, audio: bool) -> Generator[Event, None, Event]:
        text, sound = self._respond()
        kind = "audio" if audio else "text"
        item: Event = {
            "id": where["item_id"],
            "object": "realtime.item",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        yield from self._added(where, item)
        where = {**where, "content_index": 0}
        part: Event = {"type": kind, "transcript" if audio else "text": ""}
        yield self._event("response.content_part.added", **where, part=part)
        words_in = "response.audio_transcript" if audio else "response.text"
        for start in range(0, len(text), CHUNK_BYTES):
            yield self._event(f"{words_in}.delta", **where, delta=text[start : start + CHUNK_BYTES])
        if audio:
            size = int(self._output_rate * CHUNK_SECONDS) * 2
            for start in range(0, len(sound), size):
                delta = base64.b64encode(sound[start : start + size]).decode()
                yield self._event("response.audio.delta", **where, delta=delta)
            yield self._event("response.audio.done", **where)
        yield self._event(f"{words_in}.done", **where, **{"transcript" if audio else "text": text})
        part = {"type": kind, "transcript" if audio else "text": text}
        yield self._event("response.content_part.done", **where, part=part)
        item = {**item, "status": "completed", "content": [part]}
        yield self._done(where, item)
        return item

    def _respond(self) -> tuple[str, bytes]:
        """Words, and their sound at the rate of the output."""
        heard, rate = self._pending_response, self._output_rate
        if self._results:
            text, self._results = f"The tool says: {'; '.join(self._results)}", []
            return text, tone(440, 0.3, rate)
        if isinstance(heard, bytes):
            text = f"I heard {describe_sound(heard, self._input_rate)}."
            return text, Resampler(self._input_rate, rate).feed(heard)
        return f"This is the emulator's {self.session['model']}. You said: {heard}", tone(440, 0.3, rate)

    @property
    def _input_rate(self) -> int:
        return _rate(self.session, "input", INPUT_RATE)

    @property
    def _output_rate(self) -> int:
        return _rate(self.session, "output", OUTPUT_RATE)


def _validate_event(wanted: Event) -> tuple[str, str] | None:
    """The first setting that Qwen would refuse, and its words."""
    unknown = sorted(set(wanted) - SETTINGS)
    if unknown:
        return unknown[0], f"Unknown parameter: 'session.{unknown[0]}'."
    if wanted.get("voice") not in (None, *VOICES):
        return "voice", f"Voice '{wanted['voice']}' is not supported."
    for name in ("input_audio_format", "output_audio_format"):
        if wanted.get(name, "pcm") not in FORMATS:
            return name, f"Invalid value: '{wanted[name]}'. Supported values are: 'pcm'."
    if "audio" in wanted and not _is_audio(wanted["audio"]):
        return "audio", "Invalid value: 'session.audio' has formats of input and output, 'pcm' or 'wav'."
    if any("function" not in tool for tool in wanted.get("tools") or ()):
        return "tools", "Missing required parameter: 'session.tools[0].function'."
    if wanted.get("modalities", ["text"]) not in (["text"], ["text", "audio"]):
        return "modalities", f"Invalid modalities: {wanted['modalities']}."
    return None


def _is_audio(audio: Event) -> bool:
    """Return whether these are formats of sound, and nothing else."""
    formats = [side["format"] for side in audio.values() if side.keys() == {"format"}]
    known = all(item["type"] in ("pcm", "wav") and item.get("sample_rate", 8000) in RATES for item in formats)
    return bool(audio) and audio.keys() <= {"input", "output"} and len(formats) == len(audio) and known


def _rate(session: Event, side: str, default: int) -> int:
    found = session.get("audio", {}).get(side, {}).get("format", {})
    return int(found.get("sample_rate", default))


def describe_sound(sound: bytes, rate: int = INPUT_RATE) -> str:
    """Return a description of audio: its length, and its pitch by zero crossings."""
    samples = struct.unpack(f"<{len(sound) // 2}h", sound)
    loud = [place for place, value in enumerate(samples) if abs(value) > LOUD_THRESHOLD]
    rises = sum(samples[a] < 0 < samples[b] for a, b in itertools.pairwise(loud))
    hertz = rises * rate / (loud[-1] - loud[0] + 1) if loud else 0
    return f"{len(samples) / rate:.2f} s of sound at about {round(hertz, -1):.0f} Hz"


def tone(hertz: float, seconds: float, rate: int = OUTPUT_RATE) -> bytes:
    """A sine, half as loud as can be."""
    count = int(seconds * rate)
    step = math.tau * hertz / rate
    return struct.pack(f"<{count}h", *(round(16_000 * math.sin(step * n)) for n in range(count)))
