"""The emulated Qwen-Omni is as strict as Alibaba's documentation, so that OpenAI's events require
translation."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.emulator.realtime_session import RealtimeModel, tone
from qproxy.wire import json_codec
from qproxy.wire.realtime import SessionTranslator
from tests.examples import examples
from tests.wire.strangers import mutated, mutations, values

FUNCTION = {"name": "f", "parameters": {}}
WRONG = {
    "today's settings": ({"output_modalities": ["text"]}, "session.output_modalities"),
    "nested settings": ({"audio": {}}, "session.audio"),
    "a tool choice": ({"tool_choice": "auto"}, "session.tool_choice"),
    "flat tools": ({"tools": [{"type": "function", **FUNCTION}]}, "session.tools"),
    "a voice of OpenAI's": ({"voice": "alloy"}, "session.voice"),
    "OpenAI's nested settings": ({"audio": {"output": {"voice": "Cherry"}}}, "session.audio"),
    "a rate": ({"audio": {"input": {"format": {"type": "pcm", "sample_rate": 44_100}}}}, "session.audio"),
    "a format of OpenAI's": ({"input_audio_format": "g711_ulaw"}, "session.input_audio_format"),
    "sound alone": ({"modalities": ["audio"]}, "session.modalities"),
}


@pytest.mark.parametrize(("settings", "param"), WRONG.values(), ids=WRONG)
def test_unsupported_settings_are_rejected(settings, param):
    """A setting that Qwen does not support is an error that names it, and changes nothing."""
    model = RealtimeModel("m")
    before = dict(model.session)
    (reply,) = model.handle({"type": "session.update", "session": settings})
    assert (reply["type"], reply["error"]["param"]) == ("error", param)
    assert model.session == before


@pytest.mark.parametrize(
    "kind", ["conversation.item.truncate", "input_audio_buffer.commit", "response.cancel"]
)
def test_unsupported_events_are_rejected(kind):
    """An unsupported event is an error that does not close the session."""
    (reply,) = RealtimeModel("m").handle({"type": kind})
    assert reply["type"] == "error"


def test_sound_is_read_at_16_khz():
    """A tone at another rate is read as another tone."""
    model = RealtimeModel("m")
    list(
        model.handle({"type": "session.update", "session": {"turn_detection": None, "modalities": ["text"]}})
    )
    for rate, hertz in ((16_000, 440), (24_000, 290)):
        audio = base64.b64encode(tone(440, 0.5, rate)).decode()
        list(model.handle({"type": "input_audio_buffer.append", "audio": audio}))
        list(model.handle({"type": "input_audio_buffer.commit"}))
        reply = [
            event
            for event in model.handle({"type": "response.create"})
            if event["type"] == "response.text.done"
        ]
        assert f"about {hertz} Hz" in reply[0]["text"]


SOUND = base64.b64encode(tone(440, 0.05, 16_000)).decode()
EVENTS: dict[str, dict[str, Any]] = {
    "session.update": {
        "session": {
            "modalities": ["text", "audio"],
            "voice": "Cherry",
            "turn_detection": {"type": "server_vad", "silence_duration_ms": 300},
            "tools": [{"type": "function", "function": FUNCTION}],
            "input_audio_transcription": {"model": "m"},
            "instructions": "be kind",
            "temperature": 0.5,
        }
    },
    "input_audio_buffer.append": {"audio": SOUND},
    "input_audio_buffer.commit": {},
    "input_audio_buffer.clear": {},
    "input_image_buffer.append": {"image": "eA=="},
    "conversation.item.create": {
        "item": {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    },
    "response.create": {"response": {"modalities": ["text"]}},
    "response.cancel": {},
}
"""Valid events, by their type."""
RESULT = {
    "type": "conversation.item.create",
    "item": {"type": "function_call_output", "call_id": "c", "output": "x"},
}
TEMPLATES = [*({"type": kind, **fields} for kind, fields in EVENTS.items()), RESULT]
odd_events = st.sampled_from(TEMPLATES).flatmap(
    lambda event: mutations(event).map(lambda changes: mutated(event, changes))
)
events = st.one_of(odd_events, odd_events, st.sampled_from(TEMPLATES), values)


@given(st.lists(events, max_size=6))
@examples(100)
def test_any_event_is_handled(client_events):
    """Any JSON, at any field of any event, gets a response or none, and the session continues."""
    model = RealtimeModel("m")
    for event in client_events:
        for reply in model.handle(event):
            json_codec.dumps(reply)
    assert list(model.handle({"type": "response.cancel"}))


@given(st.lists(st.tuples(events, st.booleans()), max_size=6), st.booleans())
@examples(100)
def test_any_event_is_translated(client_events, modern):
    """Any JSON from the client is sent upstream or returned as an error, and so is any from the upstream."""
    model, session = RealtimeModel("m"), SessionTranslator("m", modern=modern)
    for event, from_client in client_events:
        text = json_codec.dumps(event).decode()
        outs = list(session.from_client(text) if from_client else session.from_upstream(text))
        for out in outs:
            for reply in model.handle(out.event):
                for outgoing in session.from_upstream(json_codec.dumps(reply).decode()):
                    json_codec.dumps(outgoing.event)
    assert session.usage.tokens >= 0
