"""Speech of the emulated Qwen: a tone whose length follows the text, in Model Studio's two forms.

Qwen3-TTS streams one WAV file of 24 kHz in pieces; the synthesizer streams the events of a sentence, its
mp3, opus and pcm being the same samples under each name. With their refusals: an unknown voice, too long a
text, a format that is not had.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import ApiError
from qproxy.emulator.faults import SSE, ScriptedReply, event, json_reply
from qproxy.emulator.realtime_session import tone
from qproxy.emulator.spoken_text import embed

RATE = 24_000
SECONDS_PER_CHARACTER = 0.02
PIECE = 4800
"""Bytes of sound in one event: a tenth of a second."""
RESULT_PATH = "/results/speech.wav"
"""The path of a whole sound, whose text is in the query."""
SYNTHESIZER_VOICES = ("longanhuan_v3.6", "longhua_v3.1", "longanyang")


def samples(text: str) -> bytes:
    """The sound of a text, which can be heard in it again (`spoken_text`)."""
    return embed(tone(220.0 + len(text) % 20 * 10, len(text) * SECONDS_PER_CHARACTER, RATE), text)


def wav(data: bytes) -> bytes:
    """Samples as a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(data)
    return file.getvalue()


def _refuse(message: str, code: str = "InvalidParameter") -> ApiError:
    return ApiError(400, message, code)


def qwen_tts(seen: Any) -> ScriptedReply:
    """The answer of Qwen3-TTS, whole or streamed."""
    body = seen.body
    catalog, inputs = package_catalog(), body["input"]
    spec = catalog.get(body["model"])
    if not catalog.knows(body["model"]):
        raise ApiError(404, f"Model not exist: {body['model']}", "ModelNotFound")
    text = inputs["text"]
    if inputs.get("voice") not in (spec.voices or ()):
        raise _refuse(f"Voice '{inputs.get('voice')}' is not supported.", "BadRequest.VoiceNotFound")
    if not 0 < len(text) <= 600:
        raise _refuse("Range of input length should be [1, 600]")
    sound = wav(samples(text))
    return _reply(
        seen, sound, _url(seen, text), {"characters": len(text), "input_tokens": 0, "output_tokens": 0}
    )


def synthesizer(seen: Any) -> ScriptedReply:
    """The answer of Qwen-Audio-TTS and CosyVoice."""
    inputs = seen.body["input"]
    text, format = inputs["text"], inputs.get("format", "mp3")
    if inputs.get("voice") not in SYNTHESIZER_VOICES:
        raise _refuse("[tts:]Engine return error code: 411", "InvalidParameter")
    if format not in ("mp3", "pcm", "wav", "opus"):
        raise _refuse(f"format {format} is not supported")
    sound = samples(text)
    sound = wav(sound) if format == "wav" else sound
    usage: dict[str, Any] = {"characters": len(text)}
    if "3.1" in seen.body["model"]:
        usage = {"input_tokens": len(text), "output_tokens": 5 * len(text), "total_tokens": 6 * len(text)}
    return _reply(seen, sound, _url(seen, text), usage)


def _reply(seen: Any, sound: bytes, url: str, usage: dict[str, Any]) -> ScriptedReply:
    if seen.headers.get("x-dashscope-sse") != "enable":
        return json_reply(_event(b"", url, usage, "stop"))
    return ScriptedReply(tuple(event(item) for item in _events(sound, url, usage)), content_type=SSE)


def _events(sound: bytes, url: str, usage: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(sound), PIECE):
        yield _event(sound[start : start + PIECE], "", {}, "null")
    yield _event(b"", url, usage, "stop")


def _event(sound: bytes, url: str, usage: dict[str, Any], reason: str) -> dict[str, Any]:
    audio = {"data": base64.b64encode(sound).decode(), "url": url, "id": "audio_emu-1", "expires_at": 0}
    return {
        "request_id": "emu-1",
        "output": {"finish_reason": reason, "audio": audio},
        "usage": usage,
    }


def result(seen: Any) -> ScriptedReply:
    """The file that an answer links to."""
    return ScriptedReply((wav(samples(seen.query.get("text", ""))),), content_type="audio/wav")


def _url(seen: Any, text: str) -> str:
    return f"http://{seen.headers.get('host', '127.0.0.1')}{RESULT_PATH}?{urlencode({'text': text})}"


def open_speech(seen: Any) -> ScriptedReply:
    """The answer of an own server: the bytes."""
    return ScriptedReply((wav(samples(seen.body["input"])),), content_type="audio/wav")
