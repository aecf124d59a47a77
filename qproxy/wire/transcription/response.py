"""Transcripts in OpenAI's formats: JSON, text, subtitles (SubRip, WebVTT), and the events of a stream.

Segments have all fields that OpenAI's type requires. Those that Whisper alone measures, such as
`avg_logprob`, have neutral values.
"""

from __future__ import annotations

from collections.abc import Iterator

from qproxy.wire import json_codec
from qproxy.wire.events import JSON
from qproxy.wire.transcription.languages import NAMES
from qproxy.wire.transcription.request import TranscriptionInput
from qproxy.wire.transcription.transcript import Sentence, Transcript

TEXT_TYPE = "text/plain; charset=utf-8"
JSON_TYPE = "application/json"


def body(request: TranscriptionInput, transcript: Transcript, task: str = "transcribe") -> tuple[bytes, str]:
    """Return the body of a whole response and its type."""
    if request.format == "text":
        return _encode(f"{transcript.text}\n"), TEXT_TYPE
    if request.format == "srt":
        return _encode("".join(_srt(transcript))), TEXT_TYPE
    if request.format == "vtt":
        return _encode("".join(_vtt(transcript))), TEXT_TYPE
    if request.format == "verbose_json":
        return json_codec.dumps(_verbose(request, transcript, task)), JSON_TYPE
    if request.format == "diarized_json":
        return json_codec.dumps(_diarized(transcript)), JSON_TYPE
    found = _json(transcript) if task == "transcribe" else {"text": transcript.text}
    return json_codec.dumps(found), JSON_TYPE


def _encode(text: str) -> bytes:
    """Return the text in UTF-8, which has no lone surrogates."""
    return text.encode("utf-8", "replace")


def _json(transcript: Transcript) -> dict[str, JSON]:
    found: dict[str, JSON] = {"text": transcript.text}
    if transcript.language is not None:
        found["languages"] = [{"code": transcript.language}]
    return {**found, **_usage(transcript)}


def _usage(transcript: Transcript) -> dict[str, JSON]:
    """Return the tokens, or the seconds of a model that counts those."""
    used = transcript.usage
    if used is None:
        return _duration(transcript)
    details = {
        name: used.prompt_details[name]
        for name in ("audio_tokens", "text_tokens")
        if isinstance(used.prompt_details.get(name), int)
    }
    tokens: dict[str, JSON] = {
        "type": "tokens",
        "input_tokens": used.prompt_tokens,
        "output_tokens": used.completion_tokens,
        "total_tokens": used.total_tokens,
    }
    return {"usage": {**tokens, "input_token_details": details} if details else tokens}


def _duration(transcript: Transcript) -> dict[str, JSON]:
    if transcript.seconds is None:
        return {}
    return {"usage": {"type": "duration", "seconds": transcript.seconds}}


def _verbose(request: TranscriptionInput, transcript: Transcript, task: str) -> dict[str, JSON]:
    language = transcript.language or (request.languages[0] if len(request.languages) == 1 else "")
    found: dict[str, JSON] = {
        "task": task,
        "language": NAMES.get(language, language) or "unknown",
        "duration": transcript.duration,
        "text": transcript.text,
    }
    if request.segments:
        found["segments"] = [_segment(n, sentence) for n, sentence in enumerate(transcript.sentences)]
    if request.words:
        words = [word for sentence in transcript.sentences for word in sentence.words]
        found["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in words]
    return {**found, **_duration(transcript)} if task == "transcribe" else found


def _segment(number: int, sentence: Sentence) -> dict[str, JSON]:
    """Return a sentence as a segment of Whisper; what only Whisper measures has neutral values."""
    return {
        "id": number,
        "seek": 0,
        "start": sentence.start,
        "end": sentence.end,
        "text": sentence.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.0,
    }


def _diarized(transcript: Transcript) -> dict[str, JSON]:
    found: dict[str, JSON] = {
        "task": "transcribe",
        "duration": transcript.duration,
        "text": transcript.text,
        "segments": list(_speaker_segments(transcript)),
    }
    return {**found, **_usage(transcript)}


def _speaker_segments(transcript: Transcript) -> Iterator[dict[str, JSON]]:
    labels = transcript.speakers()
    for number, sentence in enumerate(transcript.sentences):
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{number}",
            "speaker": labels[sentence.speaker],
            "start": sentence.start,
            "end": sentence.end,
            "text": sentence.text,
        }


def _srt(transcript: Transcript) -> Iterator[str]:
    for number, sentence in enumerate(transcript.sentences, 1):
        times = f"{_time(sentence.start, ',')} --> {_time(sentence.end, ',')}"
        yield f"{number}\n{times}\n{_line(sentence.text)}\n\n"


def _vtt(transcript: Transcript) -> Iterator[str]:
    yield "WEBVTT\n\n"
    for sentence in transcript.sentences:
        times = f"{_time(sentence.start, '.')} --> {_time(sentence.end, '.')}"
        yield f"{times}\n{_line(sentence.text)}\n\n"


def _line(text: str) -> str:
    """Return the text of a cue, which an arrow or an empty line would end (W3C, WebVTT 4.1)."""
    return " ".join(text.split()).replace("-->", "->")


def _time(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    rest, milliseconds = divmod(milliseconds, 1000)
    minutes, second = divmod(rest, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"


def delta(text: str) -> bytes:
    """Return the event of a piece of text."""
    return _event({"type": "transcript.text.delta", "delta": text})


def segments(transcript: Transcript) -> bytes:
    """Return the events of the sentences with their speakers."""
    return b"".join(map(_event, _speaker_segments(transcript)))


def done(transcript: Transcript) -> bytes:
    """Return the last event; its usage is tokens only."""
    return _event(
        {
            "type": "transcript.text.done",
            **_json(transcript if transcript.usage else Transcript(transcript.text, transcript.language)),
        }
    )


def _event(value: dict[str, JSON]) -> bytes:
    return b"data: " + json_codec.dumps(value) + b"\n\n"
