"""`POST /v1/audio/speech`: OpenAI's request as a `SpeechInput`.

OpenAI `CreateSpeechRequest`. A field of Model Studio's own is passed to it; any other one is dropped and
named. An own server gets the client's fields as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.events import JSON

MAX_CHARACTERS = 100_000
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
FIELDS = {
    "instructions": validation.string,
    "response_format": validation.one_of(FORMATS),
    "speed": validation.number(0.25, 4.0),
    "stream_format": validation.one_of(("audio", "sse")),
}
MODEL_STUDIO_FIELDS = frozenset(
    (
        "language_type", "optimize_instructions", "volume", "pitch", "bit_rate", "language_hints", "seed",
        "enable_ssml", "hot_fix", "enable_aigc_tag",
    )
)  # fmt: skip
"""Fields of `input` at Model Studio, beside those that OpenAI's become."""
SCHEMA: JSON = object_schema(
    ["model", "input", "voice"],
    {
        "model": NAME,
        "input": {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS},
        "voice": {"type": ["string", "object"]},
    },
    validation.properties(FIELDS),
)
_NAMED = frozenset(("model", "input", "voice", *FIELDS))


@dataclass(frozen=True, slots=True)
class SpeechInput:
    """One request for speech."""

    model: str
    text: str
    voice: str
    format: str | None = None
    """None if the client leaves the format open."""
    speed: float = 1.0
    instructions: str | None = None
    sse: bool = False
    """Whether the sound comes in events rather than as it is."""
    params: Mapping[str, JSON] = field(default_factory=dict)
    body: Mapping[str, JSON] = field(default_factory=dict, repr=False)
    """The client's own fields."""


def decode(body: JSON) -> SpeechInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    body = validation.body(body)
    model = validation.require_model(body, None)
    fields = validation.check_fields(body, FIELDS)
    for name in ("input", "voice"):
        if name not in fields:
            validation.missing(name)
    text = validation.string(fields["input"], "input")
    if not text.strip():
        validation.wrong_value("input", "the text is empty.")
    if len(text) > MAX_CHARACTERS:
        validation.wrong_value("input", f"expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}.")
    return SpeechInput(
        model=model,
        text=text,
        voice=_voice(fields["voice"]),
        format=fields.get("response_format"),
        speed=fields.get("speed", 1.0),
        instructions=fields.get("instructions") or None,
        sse=fields.get("stream_format") == "sse",
        params={name: value for name, value in fields.items() if name not in _NAMED},
        body=fields,
    )


def _voice(value: JSON) -> str:
    if isinstance(value, dict):
        if "id" not in value:
            validation.missing("voice.id")
        return validation.identifier(value["id"], "voice.id")
    voice = validation.identifier(value, "voice")
    return voice or validation.wrong_value("voice", "the name is empty.")
