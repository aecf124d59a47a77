"""The fields of `POST /v1/audio/transcriptions` and `/v1/audio/translations` as a `TranscriptionInput`.

They are those of a form: texts, arrays as repeated `name[]`. Fields without a meaning here are named in
`unread`, so that a service can drop them by name; own servers get the form itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qproxy.wire.endpoints import validation
from qproxy.wire.endpoints.request_schemas import NAME, object_schema
from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON

UNTIMED = ("json", "text")
TIMED = ("srt", "vtt", "verbose_json")
DIARIZED = "diarized_json"
FORMATS = (*UNTIMED, *TIMED, DIARIZED)
STREAMED = (*UNTIMED, DIARIZED)
GRANULARITIES = ("word", "segment")
FLAGS = ("enable_itn", "keep_dialect", "stream")
"""Fields that are true or false; the first two are Model Studio's."""
_READ = frozenset(
    ("model", "response_format", "language", "languages", "keywords", "prompt", "timestamp_granularities",
     "vocabulary_id", *FLAGS)
)  # fmt: skip
"""Fields with a meaning here; others are dropped, but for own servers."""


class FormFields(Protocol):
    """The fields of a form."""

    @property
    def fields(self) -> Sequence[tuple[str, str]]:
        """Return names and values, in order."""
        ...

    def text(self, name: str) -> str | None:
        """Return the value of a field."""
        ...

    def texts(self, name: str) -> list[str]:
        """Return the values of an array."""
        ...


@dataclass(frozen=True, slots=True)
class TranscriptionInput:
    """One request: what is wanted of a recording."""

    model: str
    format: str = "json"
    languages: Sequence[str] = ()
    """Of the speech, as the client wrote them; the field `language` first."""
    language: bool = False
    """Whether the field `language` was sent."""
    keywords: Sequence[str] = ()
    prompt: str = ""
    words: bool = False
    """Whether the times of words are wanted."""
    segments: bool = True
    """Whether those of sentences are."""
    stream: bool = False
    itn: bool | None = None
    """Whether numbers are written in digits (inverse text normalization)."""
    keep_dialect: bool | None = None
    vocabulary_id: str | None = None
    unread: Sequence[str] = ()
    """Further fields."""

    @property
    def has_times(self) -> bool:
        """Return whether the format has the times of sentences."""
        return self.format not in UNTIMED


def decode(form: FormFields) -> TranscriptionInput:
    """Return the validated request. Raises RequestError naming the invalid field."""
    model = validation.require_model({"model": form.text("model")}, None)
    format = validation.one_of(FORMATS)(form.text("response_format") or "json", "response_format")
    granularities = form.texts("timestamp_granularities")
    for value in granularities:
        validation.one_of(GRANULARITIES)(value, "timestamp_granularities")
    if granularities and format != "verbose_json":
        validation.wrong_value("timestamp_granularities", "it needs response_format=verbose_json.")
    flags = {name: _flag(form, name) for name in FLAGS}
    if flags["stream"] and format not in STREAMED:
        message = f"response_format={format} cannot be streamed; {', '.join(STREAMED)} can."
        raise RequestError(message, param="stream", code="unsupported_value")
    language = form.text("language")
    return TranscriptionInput(
        model=model,
        format=format,
        languages=[*filter(None, [language]), *form.texts("languages")],
        language=bool(language),
        keywords=[keyword for keyword in form.texts("keywords") if keyword.strip()],
        prompt=form.text("prompt") or "",
        words="word" in granularities,
        segments=not granularities or "segment" in granularities,
        stream=bool(flags["stream"]),
        itn=flags["enable_itn"],
        keep_dialect=flags["keep_dialect"],
        vocabulary_id=form.text("vocabulary_id"),
        unread=sorted({name.removesuffix("[]") for name, _ in form.fields} - _READ),
    )


def _flag(form: FormFields, name: str) -> bool | None:
    text = form.text(name)
    known = {"": None, "true": True, "1": True, "false": False, "0": False}
    if (text or "").lower() not in known:
        validation.wrong_value(name, f"expected true or false, but got {(text or '')[:40]!r}.")
    return known[(text or "").lower()]


_TEXT: JSON = {"type": "string"}
_TEXTS: JSON = {"type": "array", "items": _TEXT}
_COMMON: dict[str, JSON] = {
    "file": {"type": "string", "format": "binary"},
    "model": NAME,
    "prompt": _TEXT,
    "temperature": {"type": "number", "minimum": 0, "maximum": 1},
}
TRANSLATION_SCHEMA: JSON = object_schema(
    ["file", "model"], _COMMON, {"response_format": {"type": "string", "enum": [*UNTIMED, *TIMED]}}
)
SCHEMA: JSON = object_schema(
    ["file", "model"],
    _COMMON,
    {
        "response_format": {"type": "string", "enum": [*FORMATS]},
        "language": _TEXT,
        "languages[]": _TEXTS,
        "keywords[]": _TEXTS,
        "timestamp_granularities[]": {"type": "array", "items": {"type": "string", "enum": [*GRANULARITIES]}},
        "include[]": _TEXTS,
        "chunking_strategy": _TEXT,
        "known_speaker_names[]": _TEXTS,
        "known_speaker_references[]": _TEXTS,
        **{name: {"type": "boolean"} for name in FLAGS},
        "vocabulary_id": _TEXT,
    },
)
