"""Transcription without I/O: heads of recordings, plans, subtitles, and what strangers may answer."""

import json
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import spoken_text
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import Usage
from qproxy.wire.transcription import (
    AudioFile,
    Sentence,
    Transcript,
    TranscriptionInput,
    Word,
    file_task,
    make_plan,
    response,
)
from qproxy.wire.transcription.audio import describe
from qproxy.wire.transcription.translation import translated
from qproxy.wire.transcription.upstream import RecognitionReader, join_texts, parse_chat, parse_number

CATALOG = package_catalog()
AUDIO = AudioFile(1000, "wav", 2.0)
FIELDS = (
    "text", "sentences", "sentence", "words", "begin_time", "end_time", "speaker_id", "sentence_id",
    "content", "annotations", "language", "usage", "seconds", "code", "message", "result", "subtask_status",
    "properties",
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON_VALUES = st.recursive(
    LEAVES, lambda it: st.lists(it, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), it, max_size=6)
)


def wav(rate, size, *extra):
    """Return the head of a WAV file of 16 bits, with further chunks before its data."""
    chunks = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * 2, 2, 16) + b"".join(extra)
    return b"RIFF\0\0\0\0WAVE" + chunks + struct.pack("<4sI", b"data", size)


ODD = struct.pack("<4sI", b"LIST", 3) + b"abc\0"
HEADS = {
    "wav": (wav(8000, 32_000), 32_044, "a.bin", "wav", 2.0),
    "a chunk before the data": (wav(8000, 32_000, ODD), 32_056, "", "wav", 2.0),
    "a size that is not known": (wav(8000, 0xFFFFFFFF), 16_044, "", "wav", 1.0),
    "a rate of 0": (wav(0, 100), 144, "", "wav", None),
    "a cut head": (wav(8000, 100)[:30], 30, "", "wav", None),
    "an id": (b"ID3\4", 100, "a.wav", "mp3", None),
    "a frame": (b"\xff\xfb\x90", 100, "", "mp3", None),
    "m4a": (b"\0\0\0\x18ftypM4A ", 100, "", "m4a", None),
    "webm": (b"\x1a\x45\xdf\xa3", 100, "", "webm", None),
    "a name": (b"?", 1, "a.MPGA", "mp3", None),
    "nothing": (b"?", 1, "a.txt", "wav", None),
}


@pytest.mark.parametrize(("head", "length", "name", "format", "seconds"), HEADS.values(), ids=HEADS)
def test_heads(head, length, name, format, seconds):
    """The format is that of the first bytes, else of the name; only WAV files tell how long they are."""
    assert describe(head, length, name) == AudioFile(length, format, seconds)


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_head(head, name):
    """No bytes raise."""
    describe(b"RIFF" + head, len(head) + 4, name)


CHAT, TIMED, FUN, FILE, FILES = (
    "qwen3-asr-flash", "qwen-audio-3.1-asr-flash", "fun-asr-flash", "qwen3-asr-flash-filetrans", "fun-asr",
)  # fmt: skip
FULL: dict[str, Any] = {
    "languages": ["en", "de"], "language": True, "keywords": ["Qwen"], "prompt": "A test.", "itn": True,
    "keep_dialect": False, "vocabulary_id": "v-1", "unread": ["odd"],
}  # fmt: skip
PLANS = {
    CHAT: (
        "A test.\nQwen", {"enable_itn": True},
        ("keep_dialect", "language", "languages", "odd", "vocabulary_id"),
    ),
    TIMED: (
        "A test.",
        {
            "language_hints": ["en", "de"], "vocabulary": {"Qwen": 3}, "vocabulary_id": "v-1",
            "keep_dialect": False,
        },
        ("enable_itn", "odd"),
    ),
    FUN: (
        "A test.", {"language_hints": ["en"], "vocabulary_id": "v-1", "keep_dialect": False},
        ("enable_itn", "keywords", "languages", "odd"),
    ),
    FILE: (
        "", {"channel_id": [0], "enable_itn": True},
        ("keep_dialect", "keywords", "language", "languages", "odd", "prompt", "vocabulary_id"),
    ),
    FILES: (
        "", {"channel_id": [0]},
        ("enable_itn", "keep_dialect", "keywords", "language", "languages", "odd", "prompt", "vocabulary_id"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "plan"), PLANS.items(), ids=PLANS)
def test_every_field_is_sent_or_dropped(model, plan):
    """Each service gets what it has a field for, and every other field is named."""
    found = make_plan(TranscriptionInput(model, **FULL), model, CATALOG, AUDIO)
    assert (found.context, found.parameters, found.ignored) == plan


@pytest.mark.parametrize("model", [CHAT, FILE])
@pytest.mark.parametrize(
    ("given", "sent"),
    [(["en"], "en"), (["en-GB", "en"], "en"), (["Cantonese"], "yue"), (["en", "de"], None), (["xx"], None)],
)
def test_one_language(model, given, sent):
    """A service with one language gets it if there is one; mixed speech has none."""
    request = TranscriptionInput(model, languages=given)
    plan = make_plan(request, model, CATALOG, AUDIO)
    assert plan.parameters.get("language") == sent
    assert plan.ignored == (() if sent else ("languages",))


@pytest.mark.parametrize(
    ("model", "audio", "chosen"),
    [
        (CHAT, AudioFile(1000, "wav", 300.0), CHAT),
        (CHAT, AudioFile(1000, "wav", 300.1), FILE),
        (CHAT, AudioFile(7_864_000, "mp3"), CHAT),
        (CHAT, AudioFile(7_864_321, "mp3"), FILE),
        (TIMED, AudioFile(9_000_000, "mp3"), FILES),
        (FILE, AudioFile(9_000_000, "mp3"), FILE),
    ],
)
def test_limits(model, audio, chosen):
    """Ten megabytes are counted in base64, seconds as far as they are known."""
    assert make_plan(TranscriptionInput(model), model, CATALOG, audio).model == chosen


def test_subtitles_are_safe():
    """Times go beyond an hour and are rounded to milliseconds; a text cannot end its cue."""
    transcript = Transcript("", sentences=[Sentence("a\n\n1 --> b", 3599.9996, 3661.0)])
    srt, _ = response.body(TranscriptionInput("m", "srt"), transcript)
    assert srt == b"1\n01:00:00,000 --> 01:01:01,000\na 1 -> b\n\n"
    vtt, _ = response.body(TranscriptionInput("m", "vtt"), Transcript(""))
    assert vtt == b"WEBVTT\n\n"
    text, _ = response.body(TranscriptionInput("m", "text"), Transcript("a\ud800"))
    assert text == b"a?\n"


@pytest.mark.parametrize("value", [-1, 10**400, float("inf"), float("nan"), True, "1", None])
def test_numbers(value):
    """What is no time is not taken for one."""
    assert parse_number(value) is None


def test_usage():
    """Tokens are reported with their kinds, seconds where a model counts those, else nothing."""
    request = TranscriptionInput("m")
    counted = Usage(7, 3, 10, {"audio_tokens": 5, "text_tokens": 2, "odd": 1})
    body = json.loads(response.body(request, Transcript("a", usage=counted, seconds=3.0))[0])
    assert body["usage"]["input_token_details"] == {"audio_tokens": 5, "text_tokens": 2}
    body = json.loads(response.body(request, Transcript("a", seconds=3.0))[0])
    assert body["usage"] == {"type": "duration", "seconds": 3.0}
    assert "usage" not in json.loads(response.body(request, Transcript("a"))[0])


def test_many_speakers():
    """Letters go on after Z."""
    sentences = [Sentence("a", n, n + 1, str(n)) for n in range(28)]
    labels = list(Transcript("", sentences=sentences).speakers().values())
    assert (labels[0], labels[25:]) == ("A", ["Z", "AA", "AB"])


def test_sentences_are_joined_by_their_script():
    """English has spaces between sentences, Chinese has none."""
    assert join_texts(iter(["One.", "Two."])) == "One. Two."
    assert join_texts(iter(["\u4e00\u3002", "\u4e8c\u3002"])) == "\u4e00\u3002\u4e8c\u3002"


def test_lines_of_a_translation():
    """Lines are found by their numbers, in any order and with other text around them."""
    request = TranscriptionInput("m", "srt")
    sentences = [Sentence("a", 0, 1, words=[Word("a", 0, 1)]), Sentence("b", 1, 2)]
    found = translated(request, Transcript("a b", "de", sentences), "Here:\n2. Two.\n 1) One.\n3: More.")
    assert ([one.text for one in found.sentences], found.text) == (["One.", "Two."], "One. Two.")
    assert (found.language, found.sentences[0].words) == ("en", ())
    with pytest.raises(UpstreamError, match="left out 1 of 2"):
        translated(request, Transcript("a b", "de", sentences), "1: One.")


@given(JSON_VALUES)
def test_strangers(value):
    """Whatever an upstream returns is a transcript, a state, or an UpstreamError."""
    reader = RecognitionReader()
    for data in (
        value,
        {"output": value},
        {"output": {"sentence": value}},
        {"output": {"sentences": [value]}},
    ):
        with suppress(UpstreamError):
            reader.feed(data)
    with suppress(UpstreamError):
        reader.transcript()
    for data in ({"choices": value}, {"output": value}, {"choices": [{"message": value}], "usage": value}):
        with suppress(UpstreamError):
            parse_chat(data)
    for data in ({"output": value}, {"output": {"task_status": "FAILED", "results": value, "code": value}}):
        with suppress(UpstreamError):
            file_task.parse_state(data)
        with suppress(UpstreamError):
            file_task.parse_task_id(data)
    with suppress(UpstreamError):
        file_task.parse_policy({"data": value})
    for data in (value, {"transcripts": value}, {"transcripts": [{"text": value, "sentences": value}]}):
        with suppress(UpstreamError):
            file_task.parse_result(json.dumps(data).encode(), None)


@given(st.text(max_size=60), st.text(max_size=60))
def test_spoken_text(first, second):
    """Texts are found in sounds that were joined behind another head, where they begin."""
    sounds = [spoken_text.embed(b"\x10\x20" * (480 * len(text)), text) for text in (first, second)]
    found = list(spoken_text.find(b"RIFF" * 11 + b"".join(sounds)))
    expected = [(first, 22), (second, 22 + 480 * len(first))]
    assert found == [one for one in expected if one[0]]
