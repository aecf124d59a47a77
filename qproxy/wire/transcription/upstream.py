"""Model Studio's services that transcribe in one response, and the routes of own servers.

    chat         `POST /compatible-mode/v1/chat/completions` with an `input_audio` part; `asr_options`
                 (natively where the compatible mode does not have the model)
    recognition  `POST /api/v1/services/aigc/multimodal-generation/generation` with `parameters.format`; an
                 event for each sentence, times in milliseconds
    own servers  `POST {base}/audio/transcriptions` and `/audio/translations`: the client's form

Source: Model Studio's pages qwen-asr-api-reference and fun-asr-flash-http-api.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator

from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.dialects.deltas import parse_text, parse_usage
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.form_data import FormBody
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.transcription.audio import TYPES, AudioFile
from qproxy.wire.transcription.plan import TranscriptionPlan
from qproxy.wire.transcription.transcript import Sentence, Transcript, Word

NATIVE = "/api/v1/services/aigc/multimodal-generation/generation"
NATIVE_ONLY = "-us"
"""How the names of models end that the compatible mode does not have."""
SHORT_SECONDS = 60
"""Recordings below this are not streamed by the recognition service."""
MAX_NUMBER = 1e12
"""Limit of times and lengths."""
_JSON = (b"accept", b"application/json")
_STREAM = ((b"accept", b"text/event-stream"), (b"x-dashscope-sse", b"enable"))


def sync_request(plan: TranscriptionPlan, recording: bytes, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to the service of a plan that answers at once."""
    uri = f"data:{TYPES[plan.audio.format]};base64,{b64encode(recording).decode()}"
    if plan.service == "recognition":
        return _recognition_request(plan, uri, target)
    if target.native or target.model.endswith(NATIVE_ONLY):
        messages: list[JSON] = [{"role": "user", "content": [{"audio": uri}]}]
        if plan.context:
            messages.insert(0, {"role": "system", "content": [{"text": plan.context}]})
        parameters = {"asr_options": plan.parameters} if plan.parameters else {}
        return _native(messages, parameters, target, _JSON)
    part = {"type": "input_audio", "input_audio": {"data": uri}}
    body: dict[str, JSON] = {
        "model": target.model,
        "messages": [{"role": "user", "content": [part]}],
        "stream": plan.request.stream,
    }
    if plan.context:
        body["messages"].insert(0, {"role": "system", "content": [{"text": plan.context}]})
    if plan.parameters:
        body["asr_options"] = plan.parameters
    if plan.request.stream:
        body["stream_options"] = {"include_usage": True}
    url = f"{target.base_url}/chat/completions"
    return HTTPRequest("POST", url, target.with_authorization(_JSON), json_codec.dumps(body))


def _recognition_request(plan: TranscriptionPlan, uri: str, target: UpstreamTarget) -> HTTPRequest:
    """Return a request for events: a whole response may have the last sentence only."""
    part = {"type": "input_audio", "input_audio": {"data": uri}}
    messages: list[JSON] = [{"role": "user", "content": [part]}]
    if plan.context:
        text = {"type": "input_text", "text": plan.context}
        messages.insert(0, {"role": "user", "content": [text]})
    is_short = plan.audio.seconds is not None and plan.audio.seconds < SHORT_SECONDS
    parameters = {"format": plan.audio.format, **plan.parameters}
    return _native(messages, parameters, target, *((_JSON,) if is_short else _STREAM))


def _native(
    messages: list[JSON], parameters: dict[str, JSON], target: UpstreamTarget, *fields: tuple[bytes, bytes]
) -> HTTPRequest:
    body = {"model": target.model, "input": {"messages": messages}, "parameters": parameters}
    url = dashscope.api_root(target.base_url) + NATIVE
    return HTTPRequest("POST", url, target.with_authorization(*fields), json_codec.dumps(body))


def own_request(form: FormBody, route: str, target: UpstreamTarget) -> HTTPRequest:
    """Return the request to an own server; `route` is the last part of its path."""
    fields = [field for field in target.with_authorization() if field[0] != b"content-type"]
    headers = ((b"content-type", form.content_type.encode()), *fields)
    return HTTPRequest("POST", f"{target.base_url}/audio/{route}", headers, upload=form)


def parse_chat(data: dict[str, JSON]) -> Transcript:
    """Return the transcript in a response of the chat service, compatible or native. Raises UpstreamError."""
    output = data.get("output")
    choices = (output if isinstance(output, dict) else data).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise invalid("a transcription without a message")
    usage, seconds = parse_counts(data.get("usage"))
    return Transcript(text_of(message), language_of(message), seconds=seconds, usage=usage)


def text_of(message: dict[str, JSON]) -> str:
    """Return the text of a message or a delta."""
    content = message.get("content")
    return content if isinstance(content, str) else parse_text(content) or ""


def language_of(message: dict[str, JSON]) -> str | None:
    """Return the language that a message's annotations name."""
    notes = message.get("annotations")
    for note in notes if isinstance(notes, list) else ():
        language = note.get("language") if isinstance(note, dict) else None
        if isinstance(language, str) and language:
            return language
    return None


def parse_counts(usage: JSON) -> tuple[Usage | None, float | None]:
    """Return tokens and seconds, each None if they are not reported."""
    if not isinstance(usage, dict):
        return None, None
    tokens = parse_usage(usage)
    seconds = parse_number(usage.get("seconds")) or parse_number(usage.get("duration"))
    return (tokens if tokens.total_tokens else None), seconds


def parse_number(value: JSON) -> float | None:
    """Return a number from 0 to `MAX_NUMBER`, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= MAX_NUMBER else None


class RecognitionReader:
    """Collects the sentences of a response of the recognition service, whole or in events."""

    def __init__(self) -> None:
        self._text = ""
        self._sentences: dict[JSON, Sentence] = {}
        self._usage: Usage | None = None
        self._seconds: float | None = None
        self._any = False
        """Whether there was an output."""

    def feed(self, data: JSON) -> None:
        """Take a response, or an event. Raises UpstreamError."""
        output = data.get("output") if isinstance(data, dict) else None
        if not isinstance(output, dict):
            raise invalid("a transcription without an output")
        self._any = True
        self._text = text if isinstance(text := output.get("text"), str) else self._text
        sentences = output.get("sentences")
        for item in sentences if isinstance(sentences, list) else [output.get("sentence")]:
            if isinstance(item, dict) and item.get("sentence_end") is not False:
                number = item.get("sentence_id")
                key = number if isinstance(number, int) else (len(self._sentences), "")
                self._sentences[key] = parse_sentence(item)
        usage, seconds = parse_counts(data.get("usage"))
        self._usage, self._seconds = usage or self._usage, seconds or self._seconds

    def transcript(self) -> Transcript:
        """Return the transcript. Raises UpstreamError if the response was empty."""
        if not self._any:
            raise invalid("an empty transcription")
        sentences = sorted(self._sentences.values(), key=lambda sentence: sentence.start)
        text = self._text or join_texts(sentence.text for sentence in sentences)
        return Transcript(text, None, sentences, self._seconds, self._usage)


def join_texts(texts: Iterator[str]) -> str:
    """Return sentences as one text, with spaces where the script has them between words."""
    whole = ""
    for text in texts:
        spaced = whole[-1:].isascii() and text[:1].isascii() and not whole[-1:].isspace()
        whole += (" " if whole and text and spaced else "") + text
    return whole


def parse_sentence(item: dict[str, JSON]) -> Sentence:
    """Return a sentence with times of milliseconds. Raises UpstreamError without times."""
    start, end = _times(item)
    words = item.get("words")
    speaker = item.get("speaker_id")
    return Sentence(
        str(item.get("text") or ""),
        start,
        end,
        None if speaker is None else str(speaker),
        [_word(word) for word in words if isinstance(word, dict)] if isinstance(words, list) else (),
    )


def _word(item: dict[str, JSON]) -> Word:
    start, end = _times(item)
    return Word(f"{item.get('text') or ''}{item.get('punctuation') or ''}".strip(), start, end)


def _times(item: dict[str, JSON]) -> tuple[float, float]:
    start, end = parse_number(item.get("begin_time")), parse_number(item.get("end_time"))
    if start is None or end is None:
        raise invalid("a sentence without times")
    return start / 1000, end / 1000


def needs_file_model(error: UpstreamError, audio: AudioFile) -> bool:
    """Return whether a model may have failed at the length of a recording, which was not known, or at its
    times."""
    too_long = audio.seconds is None and error.code == "invalid_audio_length"
    return too_long or error.code == "upstream_incomplete_times"


def invalid(what: str) -> UpstreamError:
    """Return the error of a response that has something else than the documented form."""
    return UpstreamError(f"The upstream returned {what}.", code="upstream_invalid_response")
