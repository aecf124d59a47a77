"""The emulated omni models in chat accept, reject and return sound like the real ones."""

import base64
import io
import wave

import pytest

from qproxy.emulator import chat, omni_audio
from qproxy.emulator.errors import ApiError
from qproxy.emulator.realtime_session import OUTPUT_RATE, describe_sound, tone
from qproxy.emulator.unverified import NATURAL, Unverified

MODEL = "qwen3.5-omni-plus"
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "Cherry", "format": "wav"}}


def wav(sound, channels=1):
    """Return a WAV file as a data URI."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, 2, 16_000, 0, "NONE", "NONE"))
        writer.writeframes(sound)
    return "data:;base64," + base64.b64encode(file.getvalue()).decode()


def body(*parts, **fields):
    content = [{"type": "text", "text": "Well?"}, *parts]
    return {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": content}], **fields}


def audio(data):
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def spoken(facts=NATURAL):
    """Return (content, transcript, sound, audio deltas) of a spoken response."""
    found = list(chat.deltas(body(**SPOKEN), facts=facts))
    sounds = [delta["audio"] for delta in found if "audio" in delta]
    data = b"".join(base64.b64decode(one["data"]) for one in sounds if "data" in one)
    content = "".join(delta.get("content") or "" for delta in found)
    return content, "".join(one.get("transcript", "") for one in sounds), data, sounds


def test_a_response_is_spoken_and_written():
    """The sound is a tone of raw PCM with an id and an expiry; its text is content and transcript."""
    content, transcript, data, sounds = spoken()
    assert content == transcript == chat.reply(body(**SPOKEN))[1]
    assert describe_sound(data, OUTPUT_RATE) == "0.30 s of sound at about 440 Hz"
    assert {(one["id"], one["expires_at"]) for one in sounds if "data" in one} == {
        ("audio_emu1", 1_760_003_600)
    }
    usage = chat.usage(body(**SPOKEN), chat.answer(body(**SPOKEN)))
    details = usage["completion_tokens_details"]
    assert details["audio_tokens"] + details["text_tokens"] == usage["completion_tokens"]
    assert details["audio_tokens"] == 7
    assert not any("audio" in delta for delta in chat.deltas(body()))


@pytest.mark.parametrize("place", ["content", "transcript", "both"])
def test_the_text_of_a_spoken_response_has_a_switch(place):
    """A switch selects the field of the spoken text, in which servers differ."""
    content, transcript, _, _ = spoken(Unverified(spoken_text=place))
    assert (bool(content), bool(transcript)) == (place != "transcript", place != "content")


def test_a_header_has_a_switch():
    """With the switch the sound is a whole WAV file."""
    data = spoken(Unverified(wav_header=True))[2]
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.readframes(file.getnframes())) == (OUTPUT_RATE, tone(440, 0.3))


def test_sound_is_described():
    """A WAV file of one channel is described, another one is not, and a URL is not fetched."""
    replies = [
        chat.reply(body(audio(url)))[1]
        for url in (
            wav(tone(440, 0.5, 16_000)),
            wav(bytes(400), 2),
            "data:;base64,AAAA",
            "https://example.com/a.wav",
        )
    ]
    assert [omni_audio.describe_wav(wav(tone(440, 0.5, 16_000))) in text for text in replies] == [
        True,
        *[False] * 3,
    ]
    assert "I heard 0.50 s of sound at about 440 Hz." in replies[0]


REFUSALS = {
    "not a stream": ({"stream": False}, "only support stream mode"),
    "sound alone": ({"modalities": ["audio"]}, "modalities"),
    "a model without sound": ({"model": "qwen3.8-omni-flash", **SPOKEN}, "modalities"),
    "a voice of OpenAI's": ({**SPOKEN, "audio": {"voice": "alloy", "format": "wav"}}, "Voice 'alloy'"),
    "a format": ({**SPOKEN, "audio": {"voice": "Cherry", "format": "mp3"}}, "'wav'"),
}


@pytest.mark.parametrize(("fields", "pattern"), REFUSALS.values(), ids=REFUSALS)
def test_rejections(fields, pattern):
    """The emulator rejects what the real models reject."""
    with pytest.raises(ApiError, match=pattern):
        chat.validate(body(**fields))


def test_sound_requires_a_url():
    """Bare base64 is rejected, a data URI accepted."""
    chat.validate(body(audio(wav(b""))))
    with pytest.raises(ApiError, match="does not appear to be valid"):
        chat.validate(body(audio("UklGRg==")))
