"""Speech at Model Studio, and at own servers.

    Qwen3-TTS     `POST /api/v1/services/aigc/multimodal-generation/generation`; each event has a piece of one
                  WAV file, the last one the URL of all of it
    synthesizer   `POST /api/v1/services/audio/tts/SpeechSynthesizer` (Qwen-Audio-TTS, CosyVoice); events of
                  sentences, with pieces in the format that was asked for
    own servers   `POST {base}/audio/speech`, the client's fields as they are

Source: Model Studio's pages qwen-tts-api, qwen-audio-tts-http-api, cosyvoice-tts-http-api.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from dataclasses import dataclass

from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.speech.plan import SpeechPlan
from qproxy.wire.speech.request import SpeechInput
from qproxy.wire.speech.sound import RATE

QWEN_TTS = "/api/v1/services/aigc/multimodal-generation/generation"
SYNTHESIZER = "/api/v1/services/audio/tts/SpeechSynthesizer"
_STREAM = ((b"accept", b"text/event-stream"), (b"x-dashscope-sse", b"enable"))


@dataclass(frozen=True, slots=True)
class SpeechEvent:
    """One event of a stream of sound."""

    sound: bytes
    finished: bool
    url: JSON
    """Of the whole sound, valid for a day."""
    usage: dict[str, JSON]


def studio_request(plan: SpeechPlan, part: str, target: UpstreamTarget) -> HTTPRequest:
    """Return the request for the sound of one part of the text."""
    inputs: dict[str, JSON] = {"text": part, "voice": plan.voice, **(plan.fields or {})}
    path = QWEN_TTS
    if plan.service == "synthesizer":
        path = SYNTHESIZER
        inputs |= {"format": plan.source, "sample_rate": 48_000 if plan.source == "opus" else RATE}
    body = json_codec.dumps({"model": target.model, "input": inputs})
    url = dashscope.api_root(target.base_url) + path
    return HTTPRequest("POST", url, target.with_authorization(*_STREAM), body)


def open_request(request: SpeechInput, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to an own server."""
    body = json_codec.dumps({**request.body, "model": target.model})
    return HTTPRequest("POST", f"{target.base_url}/audio/speech", target.with_authorization(), body)


def parse_event(data: JSON) -> SpeechEvent:
    """Return an event of either service. Raises UpstreamError for anything else."""
    output = data.get("output") if isinstance(data, dict) else None
    if not isinstance(output, dict):
        raise _invalid("an event without an output")
    audio = output.get("audio")
    audio = audio if isinstance(audio, dict) else {}
    encoded = audio.get("data") or ""
    try:
        sound = b64decode(encoded, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise _invalid("sound that is not base64") from None
    usage = data.get("usage")
    return SpeechEvent(
        sound,
        output.get("finish_reason") == "stop",
        audio.get("url"),
        usage if isinstance(usage, dict) else {},
    )


def _invalid(what: str) -> UpstreamError:
    return UpstreamError(f"The upstream returned {what}.", code="upstream_invalid_response")
