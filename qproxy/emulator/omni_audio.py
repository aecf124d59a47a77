"""Audio of the emulated omni models in chat: descriptions of the input, and a tone as the answer. Pure.

A stream has the audio after the text, in pieces of raw PCM (16 bits, 24 kHz): `delta.audio` with `id`, `data`
and `expires_at`, and its `transcript`. Source: Model Studio, "Qwen-Omni"; `Unverified` has what differs.
"""

from __future__ import annotations

import base64
import binascii
import io
import wave
from collections.abc import Iterator
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.errors import bad_request
from qproxy.emulator.realtime_session import OUTPUT_RATE, VOICES, describe_sound, tone
from qproxy.emulator.unverified import NATURAL, Unverified

SECONDS = 0.3
CHUNK_BYTES = 4800
"""A tenth of a second."""
TOKENS_PER_SECOND = 25
EXPIRES_AT = 1_760_003_600
MODALITIES = (["text"], ["text", "audio"], ["audio", "text"])


def is_spoken(body: Any) -> bool:
    """Return whether the answer has sound."""
    return "audio" in (body.get("modalities") or ())


def validate(body: Any) -> None:
    """Raise the refusal of sound that the model does not have, or not in this form."""
    spec = package_catalog().get(str(body["model"]))
    if spec.stream_only == "always" and not body.get("stream"):
        raise bad_request(
            "This model only support stream mode, please enable the stream parameter to access it."
        )
    for part in _audio_parts(body):
        if not _url(part).startswith(("data:", "http://", "https://", "oss://")):
            raise bad_request(
                "The provided URL does not appear to be valid. Ensure it is correctly formatted."
            )
    if (wanted := body.get("modalities")) is None:
        return
    if wanted not in MODALITIES or (is_spoken(body) and "audio" not in (spec.outputs or ())):
        raise bad_request(f"The modalities {wanted} are not supported by this model.")
    audio = body.get("audio") or {}
    if audio.get("voice", VOICES[0]) not in (*VOICES, *(spec.voices or ())):
        raise bad_request(f"Voice '{audio['voice']}' is not supported.")
    if audio.get("format", "wav") != "wav":
        raise bad_request(f"Audio format '{audio['format']}' is not supported; supported is 'wav'.")


def hear(message: Any) -> str:
    """Return a description of the sounds in a message, "" for one without sound that can be read."""
    content = message.get("content")
    parts = content if isinstance(content, list) else ()
    sounds = [describe_wav(_url(part)) for part in parts if part.get("type") == "input_audio"]
    return ", ".join(filter(None, sounds))


def describe_wav(url: str) -> str:
    """Return a description of the WAV file in a data URI, "" for anything else."""
    head, _, data = url.partition(",")
    if not head.startswith("data:"):
        return ""
    try:
        with wave.open(io.BytesIO(base64.b64decode(data))) as file:
            mono = file.getnchannels() == 1 and file.getsampwidth() == 2
            sound = file.readframes(file.getnframes())
            return describe_sound(sound[: len(sound) & ~1], file.getframerate()) if mono else ""
    except (wave.Error, EOFError, binascii.Error):
        return ""


def deltas(body: Any, text: str, size: int, facts: Unverified = NATURAL) -> Iterator[dict[str, Any]]:
    """Yield the deltas of the answer's text and of its sound."""
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    for piece in pieces if facts.spoken_text != "transcript" else ():
        yield {"content": piece}
    about = {"id": f"audio_emu{len(body['messages'])}", "expires_at": EXPIRES_AT}
    for piece in pieces if facts.spoken_text != "content" else ():
        yield {"content": None, "audio": {"transcript": piece}}
    sound = tone(440, SECONDS)
    data = _wav(sound) if facts.wav_header else sound
    for start in range(0, len(data), CHUNK_BYTES):
        piece = base64.b64encode(data[start : start + CHUNK_BYTES]).decode()
        yield {"content": None, "audio": {"data": piece, **about}}


def count_tokens(body: Any) -> int:
    """Return the tokens of the answer's sound."""
    return int(SECONDS * TOKENS_PER_SECOND) if is_spoken(body) else 0


def _audio_parts(body: Any) -> Iterator[dict[str, Any]]:
    for message in body["messages"]:
        if isinstance(message.get("content"), list):
            yield from (part for part in message["content"] if part.get("type") == "input_audio")


def _url(part: dict[str, Any]) -> str:
    """Return the URL of a part: in the native form it is the part's own value."""
    value = part["input_audio"]
    return str(value if isinstance(value, str) else value["data"])


def _wav(sound: bytes) -> bytes:
    """Return a WAV file of one channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, OUTPUT_RATE, 0, "NONE", "NONE"))
        writer.writeframes(sound)
    return file.getvalue()
