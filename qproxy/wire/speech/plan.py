"""The plan of one request for speech: what the model is asked for, and what is made of its sound.

Qwen3-TTS gives WAV at one speed only; the other models of Model Studio give mp3, opus, wav and pcm. What a
model lacks is made by ffmpeg if the operator has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qproxy.wire.endpoints import validation
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.models import ModelSpec
from qproxy.wire.speech.request import FORMATS, MODEL_STUDIO_FIELDS, SpeechInput
from qproxy.wire.speech.sentences import split_text

OPENAI_VOICES = {
    "alloy": "Cherry", "ash": "Ethan", "ballad": "Moon", "coral": "Serena", "echo": "Ethan", "fable": "Kai",
    "onyx": "Ethan", "nova": "Chelsie", "sage": "Serena", "shimmer": "Cherry", "verse": "Ethan",
    "marin": "Cherry", "cedar": "Ethan",
}  # fmt: skip
"""OpenAI's voices as Qwen3-TTS's."""
OWN_FORMATS = ("mp3", "opus", "wav", "pcm")
"""Formats of the synthesizer's models."""
RATES = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class SpeechPlan:
    """The plan of one request."""

    service: Literal["qwen_tts", "synthesizer"]
    voice: str
    parts: tuple[str, ...]
    """The text in parts that the model accepts."""
    source: str
    """The format of the model's sound: pcm, mp3 or opus."""
    format: str
    """The format of the client's sound."""
    encodes: bool = False
    """Whether ffmpeg makes the client's sound from the model's."""
    tempo: float = 1.0
    """The speed that ffmpeg makes."""
    fields: Mapping[str, JSON] | None = None
    """Further fields of the model's input."""
    ignored: tuple[str, ...] = ()


def make_plan(
    request: SpeechInput, model: str, spec: ModelSpec, voices: Mapping[str, str], *, can_encode: bool
) -> SpeechPlan:
    """Return the plan for a model of Model Studio. Raises RequestError for what cannot be had."""
    ignored = sorted(request.params.keys() - MODEL_STUDIO_FIELDS)
    fields = {name: value for name, value in request.params.items() if name in MODEL_STUDIO_FIELDS}
    limit = (spec.limits or {}).get("characters")
    parts = split_text(request.text, limit) if limit else [request.text]
    if spec.native_path == "multimodal":
        format = _format(request, ("wav", "pcm"), can_encode)
        if request.instructions is not None:
            if "instruction_tokens" in (spec.limits or {}):
                fields["instructions"] = request.instructions
            else:
                ignored.append("instructions")
        if request.speed != 1.0 and not can_encode:
            ignored.append("speed")
        tempo = request.speed if can_encode else 1.0
        return SpeechPlan(
            "qwen_tts",
            _voice(request, model, {**OPENAI_VOICES, **voices}, spec),
            tuple(parts),
            "pcm",
            format,
            format not in ("wav", "pcm") or tempo != 1.0,
            tempo,
            fields,
            tuple(ignored),
        )
    format = _format(request, OWN_FORMATS, can_encode)
    if request.instructions is not None:
        fields["instruction"] = request.instructions
    if request.speed != 1.0:
        fields["rate"] = min(max(request.speed, RATES[0]), RATES[1])
    joined = len(parts) > 1 and can_encode
    encodes = format not in OWN_FORMATS or (joined and format in ("mp3", "opus"))
    source = "pcm" if encodes or format in ("wav", "pcm") else format
    voice = _voice(request, model, voices, spec)
    return SpeechPlan(
        "synthesizer", voice, tuple(parts), source, format, encodes, 1.0, fields, tuple(ignored)
    )


def _format(request: SpeechInput, own: tuple[str, ...], can_encode: bool) -> str:
    """Return the format of the response; a format that was left open is mp3 if that can be had."""
    available = FORMATS if can_encode else own
    format = request.format or ("mp3" if "mp3" in available else "wav")
    if format not in available:
        message = (
            f"The model {request.model!r} gives {', '.join(own)}; {format} requires ffmpeg on the server "
            "(setting ffmpeg)."
        )
        raise RequestError(message, param="response_format", code="unsupported_value")
    return format


def _voice(request: SpeechInput, model: str, voices: Mapping[str, str], spec: ModelSpec) -> str:
    """Return the model's name of a voice: of a setting for the model, then for all, then its own."""
    name = request.voice
    voice = voices.get(f"{model}/{name}", voices.get(name, name))
    if voice in OPENAI_VOICES and voice not in (spec.voices or ()):
        validation.wrong_value(
            "voice", f"{name!r} is OpenAI's voice; name one of {model}, or set speech_voices for it."
        )
    return voice
