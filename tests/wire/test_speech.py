"""Texts are split where a speaker pauses, WAV heads are removed, and plans name what a model lacks."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator.speech import samples, wav
from qproxy.wire.errors import RequestError
from qproxy.wire.speech import SpeechInput, make_plan
from qproxy.wire.speech.sentences import split_text
from qproxy.wire.speech.sound import WavReader, wav_head
from tests.examples import examples

TEXTS = {
    "short": ("One. Two.", 20, ["One. Two."]),
    "at the last sentence": ("One two. Three four. Five.", 22, ["One two. Three four. ", "Five."]),
    "at a clause": ("One two three, four five", 16, ["One two three, ", "four five"]),
    "at a blank": ("One two three", 9, ["One two ", "three"]),
    "a long word": ("abcdefghij", 4, ["abcd", "efgh", "ij"]),
    "Chinese": ("你好。今天天气很好，我们走。", 8, ["你好。", "今天天气很好，", "我们走。"]),
    "no cut within a number": ("It is 3.14 today", 9, ["It is ", "3.14 ", "today"]),
    "quotes": ('"Go!" he cried. Then', 16, ['"Go!" he cried. ', "Then"]),
}


@pytest.mark.parametrize(("text", "limit", "parts"), TEXTS.values(), ids=TEXTS)
def test_cuts(text, limit, parts):
    """A part ends with a sentence if it can, then a clause, a word, or where it must."""
    assert split_text(text, limit) == parts


@examples(100)
@given(st.text(alphabet="ab .,!？。\n", max_size=80), st.integers(1, 12))
def test_parts_are_the_text(text, limit):
    """No part is longer than the limit, and nothing but blank parts is lost."""
    parts = split_text(text, limit)
    assert all(len(part) <= limit and part.strip() for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


@pytest.mark.parametrize("size", [1, 3, 44, 1000])
def test_a_wav_head_is_removed(size):
    """The samples are the same at any split, with the rate of the head, and with chunks before the data."""
    data = samples("hello")
    extra = wav(data).replace(b"data", b"LIST\x05\0\0\0abcde\0data", 1)
    for file in (wav(data), wav_head(24_000) + data, extra, data):
        reader = WavReader()
        pieces = [file[start : start + size] for start in range(0, len(file), size)]
        assert b"".join(map(reader.feed, pieces)) + reader.close() == data
    reader = WavReader()
    reader.feed(wav_head(16_000))
    assert reader.rate == 16_000


def test_a_streamed_wav_head_reads_as_wav():
    """Its format is 16 bits, mono, and its size is that of a stream."""
    head = wav_head(24_000)
    assert struct.unpack("<4sI4s4sIHHIIHH4sI", head)[5:11] == (1, 1, 24_000, 48_000, 2, 16)
    assert (len(head), head[4:8], head[40:]) == (44, b"\xff" * 4, b"\xff" * 4)


def plan(model, *, can_encode=False, voices=None, **fields):
    request = SpeechInput(**{"model": model, "text": "Hello.", "voice": "alloy", **fields})
    return make_plan(request, model, package_catalog().get(model), voices or {}, can_encode=can_encode)


QWEN, OTHER = "qwen3-tts-flash", "qwen-audio-3.0-tts-flash"
OWN = {"voice": "longanhuan_v3.6"}
PLANS = {
    "open, with ffmpeg": (QWEN, {"can_encode": True}, ("pcm", "mp3", True), ()),
    "open, without": (QWEN, {}, ("pcm", "wav", False), ()),
    "pcm": (QWEN, {"format": "pcm"}, ("pcm", "pcm", False), ()),
    "speed with ffmpeg": (
        QWEN, {"format": "pcm", "speed": 2.0, "can_encode": True}, ("pcm", "pcm", True), (),
    ),
    "speed without": (QWEN, {"format": "pcm", "speed": 2.0}, ("pcm", "pcm", False), ("speed",)),
    "no instructions": (
        QWEN, {"format": "wav", "instructions": "x"}, ("pcm", "wav", False), ("instructions",),
    ),
    "instructions": (
        "qwen3-tts-instruct-flash", {"format": "wav", "instructions": "x"}, ("pcm", "wav", False), (),
    ),
    "an unknown field": (
        QWEN, {"format": "wav", "params": {"x": 1, "seed": 2}}, ("pcm", "wav", False), ("x",),
    ),
    "mp3 of its own": (OTHER, {**OWN, "format": "mp3"}, ("mp3", "mp3", False), ()),
    "wav of its own": (OTHER, {**OWN, "format": "wav"}, ("pcm", "wav", False), ()),
    "flac by ffmpeg": (OTHER, {**OWN, "format": "flac", "can_encode": True}, ("pcm", "flac", True), ()),
}  # fmt: skip


@pytest.mark.parametrize(("model", "fields", "sound", "ignored"), PLANS.values(), ids=PLANS)
def test_plans(model, fields, sound, ignored):
    """A format is the model's, or ours of its samples, or ffmpeg's; what is lost is named."""
    made = plan(model, **fields)
    assert (made.source, made.format, made.encodes) == sound
    assert made.ignored == ignored


def test_voices():
    """OpenAI's names are Qwen3-TTS's voices; a setting is for all models or for one, and wins."""
    voices = {"alloy": "Kai", f"{OTHER}/alloy": "longanhuan_v3.6"}
    assert [plan(QWEN, voice=name).voice for name in ("alloy", "Momo", "own-7")] == [
        "Cherry",
        "Momo",
        "own-7",
    ]
    assert plan(QWEN, voices=voices).voice == "Kai"
    assert plan(OTHER, voices=voices).voice == "longanhuan_v3.6"
    with pytest.raises(RequestError, match="speech_voices") as caught:
        plan(OTHER)
    assert caught.value.param == "voice"


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac"])
def test_a_format_that_cannot_be_had(format):
    """The error names the formats that can, and the setting."""
    with pytest.raises(RequestError, match=r"gives wav, pcm; .*setting ffmpeg") as caught:
        plan(QWEN, format=format)
    assert (caught.value.param, caught.value.code) == ("response_format", "unsupported_value")


def test_speed_and_instructions_of_the_synthesizer():
    """Its rate has bounds, and its instruction is singular."""
    made = plan(OTHER, **OWN, speed=4.0, instructions="Slowly.", params={"volume": 60})
    assert made.fields == {"rate": 2.0, "instruction": "Slowly.", "volume": 60}
