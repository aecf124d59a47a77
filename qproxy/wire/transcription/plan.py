"""The choice of a service for a recording, and the client's wishes in its terms.

    chat         Qwen3-ASR: text and language at once
    recognition  Qwen-Audio-ASR, Fun-ASR-Flash: sentences and words with times, some with speakers
    file, files  tasks for recordings of up to twelve hours: of Qwen3-ASR, and of Fun-ASR

A recording beyond the limits of a model goes to its model for files, named by the models' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

from qproxy.wire.errors import RequestError
from qproxy.wire.events import JSON
from qproxy.wire.models import ModelCatalog, ModelSpec
from qproxy.wire.transcription import languages
from qproxy.wire.transcription.audio import AudioFile
from qproxy.wire.transcription.request import DIARIZED, TranscriptionInput

Service: TypeAlias = Literal["chat", "recognition", "file", "files"]
TASKS = ("file", "files")
MAX_HINTS = 4
MAX_CONTEXT = 400
"""Characters of a message before the recording."""
KEYWORD_WEIGHT = 3
"""Of 1 to 5."""
MEGABYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TranscriptionPlan:
    """The service and the parameters for one request at Model Studio."""

    request: TranscriptionInput
    service: Service
    model: str
    """The client's model, or the one for files."""
    audio: AudioFile
    context: str
    """Text that helps to recognize the speech."""
    parameters: Mapping[str, JSON]
    """In the service's terms."""
    ignored: tuple[str, ...]
    """Fields that are dropped."""

    @property
    def is_task(self) -> bool:
        """Return whether the service is a task."""
        return self.service in TASKS


def make_plan(
    request: TranscriptionInput,
    model: str,
    catalog: ModelCatalog,
    audio: AudioFile,
    *,
    needs_file_model: bool = False,
) -> TranscriptionPlan:
    """Return how to serve a request; `needs_file_model` is whether the model has proved unable to.

    Raises RequestError for a format that the model cannot give, and a recording that is too large.
    """
    spec = catalog.get(model)
    model, spec = _fitting_model(model, spec, catalog, audio, needs_file_model)
    service = spec.transcription or "chat"
    if request.format == DIARIZED and not spec.diarizes:
        able = [row.id for row in catalog.models() if row.diarizes]
        _unsupported(request.format, model, "speakers", able)
    if request.has_times and service == "chat":
        able = [row.id for row in catalog.models() if (row.transcription or "chat") != "chat"]
        _unsupported(request.format, model, "times", able)
    parameters, dropped = _PARAMETERS[service](request, spec)
    if service == "recognition" and request.has_times and spec.diarizes:
        parameters["speaker_diarization_enabled"] = True  # else a short recording has its last sentence only
    context = _context(request, service)
    return TranscriptionPlan(
        request, service, model, audio, context, parameters, tuple(sorted({*request.unread, *dropped}))
    )


def _unsupported(format: str, model: str, what: str, able: list[str]) -> NoReturn:
    """Refuse a format, and name the models that give it."""
    message = f"response_format={format} needs {what}, which {model} does not give; use {', '.join(able)}."
    raise RequestError(message, param="response_format", code="unsupported_value")


def _fitting_model(
    model: str, spec: ModelSpec, catalog: ModelCatalog, audio: AudioFile, needs_file_model: bool
) -> tuple[str, ModelSpec]:
    """Return the model, or its model for files if the recording is beyond its limits."""
    excess = "it is longer than the model takes" if needs_file_model else _excess(spec, audio)
    if excess is None:
        return model, spec
    files = spec.file_model
    if files is not None and spec.transcription not in TASKS:
        other = catalog.get(files)
        if (excess := _excess(other, audio)) is None:
            return files, other
    message = f"The file is too large for {files or model}: {excess}. Send a shorter recording."
    raise RequestError(message, status=413, param="file", code="request_too_large")


def _excess(spec: ModelSpec, audio: AudioFile) -> str | None:
    """Return how a recording is beyond a model's limits, None if it is not known to be."""
    limits = spec.limits or {}
    seconds, megabytes = limits.get("seconds"), limits.get("megabytes")
    if seconds is not None and (audio.seconds or 0) > seconds:
        return f"{audio.seconds:.0f} s of at most {seconds} s"
    length = audio.length if spec.transcription in TASKS else audio.length * 4 // 3 + 100  # in base64
    if megabytes is not None and length > megabytes * MEGABYTE:
        return f"{length / MEGABYTE:.1f} MB of at most {megabytes} MB"
    return None


def _context(request: TranscriptionInput, service: Service) -> str:
    if service == "chat":
        return "\n".join(filter(None, [request.prompt, ", ".join(request.keywords)]))
    return request.prompt[:MAX_CONTEXT] if service == "recognition" else ""


def _language_fields(request: TranscriptionInput) -> list[str]:
    """Return the name of the field of each language."""
    return ["language"] * request.language + ["languages"] * (len(request.languages) - request.language)


def _one_language(request: TranscriptionInput) -> tuple[dict[str, JSON], list[str]]:
    """Return the language of speech in one language, and the fields that are dropped."""
    codes = list(dict.fromkeys(map(languages.code_of, request.languages)))
    if len(codes) == 1 and codes[0] in languages.CHAT:
        return {"language": codes[0]}, []
    return {}, _language_fields(request)  # mixed speech has none


def _chat(request: TranscriptionInput, spec: ModelSpec) -> tuple[dict[str, JSON], list[str]]:
    options, dropped = _one_language(request)
    if request.itn is not None:
        options["enable_itn"] = request.itn
    return options, [*dropped, *_set_fields(request, "keep_dialect", "vocabulary_id")]


def _recognition(request: TranscriptionInput, spec: ModelSpec) -> tuple[dict[str, JSON], list[str]]:
    parameters: dict[str, JSON] = {}
    dropped = _set_fields(request, "enable_itn")
    limits = spec.limits or {}
    most = limits.get("languages", MAX_HINTS)
    names = _language_fields(request)
    hints: list[str] = []
    for name, language in zip(names, request.languages, strict=True):
        code = languages.code_of(language)
        if code in hints:
            continue
        if code in languages.RECOGNITION and len(hints) < most:
            hints.append(code)
        else:
            dropped.append(name)
    if hints:
        parameters["language_hints"] = hints
    if request.keywords and limits.get("keywords") == 0:
        dropped.append("keywords")
    elif request.keywords:
        parameters["vocabulary"] = dict.fromkeys(request.keywords, KEYWORD_WEIGHT)
    if request.vocabulary_id is not None:
        parameters["vocabulary_id"] = request.vocabulary_id
    if request.keep_dialect is not None:
        parameters["keep_dialect"] = request.keep_dialect
    return parameters, dropped


_NO_CONTEXT = ("keywords", "prompt", "keep_dialect", "vocabulary_id")
"""Fields that the tasks do not have."""


def _file(request: TranscriptionInput, spec: ModelSpec) -> tuple[dict[str, JSON], list[str]]:
    language, dropped = _one_language(request)
    parameters: dict[str, JSON] = {"channel_id": [0], **language}
    if request.itn is not None:
        parameters["enable_itn"] = request.itn
    if request.words:
        parameters["enable_words"] = True
    return parameters, [*dropped, *_set_fields(request, *_NO_CONTEXT)]


def _files(request: TranscriptionInput, spec: ModelSpec) -> tuple[dict[str, JSON], list[str]]:
    parameters: dict[str, JSON] = {"channel_id": [0]}
    if request.format == DIARIZED:
        parameters["diarization_enabled"] = True
    return parameters, [*_language_fields(request), *_set_fields(request, "enable_itn", *_NO_CONTEXT)]


def _set_fields(request: TranscriptionInput, *names: str) -> list[str]:
    """Return those of the fields that the client has sent."""
    values: dict[str, object] = {
        "keywords": request.keywords,
        "prompt": request.prompt,
        "enable_itn": request.itn is not None,
        "keep_dialect": request.keep_dialect is not None,
        "vocabulary_id": request.vocabulary_id is not None,
    }
    return [name for name in names if values[name]]


_PARAMETERS = {"chat": _chat, "recognition": _recognition, "file": _file, "files": _files}
"""Given the request and the model's data, the service's parameters and the fields that are dropped."""
