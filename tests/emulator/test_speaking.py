"""The emulated Qwen-Omni is as strict as Alibaba's pages: what OpenAI's clients say must be translated for it."""

import base64

import pytest

from qproxy.emulator.speaking import Speaker, tone

FUNCTION = {"name": "f", "parameters": {}}
WRONG = {
    "today's settings": ({"output_modalities": ["text"]}, "session.output_modalities"),
    "nested settings": ({"audio": {}}, "session.audio"),
    "a tool choice": ({"tool_choice": "auto"}, "session.tool_choice"),
    "flat tools": ({"tools": [{"type": "function", **FUNCTION}]}, "session.tools"),
    "a voice of OpenAI's": ({"voice": "alloy"}, "session.voice"),
    "a format of OpenAI's": ({"input_audio_format": "pcm16"}, "session.input_audio_format"),
    "sound alone": ({"modalities": ["audio"]}, "session.modalities"),
}


@pytest.mark.parametrize(("settings", "param"), WRONG.values(), ids=WRONG)
def test_what_it_refuses(settings, param):
    """A setting that Qwen does not have is an error that names it, and changes nothing."""
    speaker = Speaker("m")
    before = dict(speaker.session)
    (told,) = speaker.hear({"type": "session.update", "session": settings})
    assert (told["type"], told["error"]["param"]) == ("error", param)
    assert speaker.session == before


@pytest.mark.parametrize(
    "kind", ["conversation.item.truncate", "input_audio_buffer.commit", "response.cancel"]
)
def test_what_it_does_not_do(kind):
    """An event that it has no use for is an error, not the end."""
    (told,) = Speaker("m").hear({"type": kind})
    assert told["type"] == "error"


def test_it_hears_16_khz():
    """A tone at another rate is another tone to it."""
    speaker = Speaker("m")
    list(
        speaker.hear({"type": "session.update", "session": {"turn_detection": None, "modalities": ["text"]}})
    )
    for rate, hertz in ((16_000, 440), (24_000, 290)):
        audio = base64.b64encode(tone(440, 0.5, rate)).decode()
        list(speaker.hear({"type": "input_audio_buffer.append", "audio": audio}))
        list(speaker.hear({"type": "input_audio_buffer.commit"}))
        told = [
            event
            for event in speaker.hear({"type": "response.create"})
            if event["type"] == "response.text.done"
        ]
        assert f"about {hertz} Hz" in told[0]["text"]
