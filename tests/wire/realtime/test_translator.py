"""Translation of realtime events in both directions, validated by OpenAI's own types."""

import base64
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.beta.realtime import RealtimeServerEvent as BetaEvent
from openai.types.realtime import RealtimeServerEvent as ModernEvent

from qproxy.emulator.realtime_session import RealtimeModel, tone
from qproxy.wire import json_codec
from qproxy.wire.realtime import SessionTranslator, ToClient, ToUpstream, default_realtime_url, session_url


def _by_type(union):
    members = get_args(get_args(union)[0])
    return {kind: model for model in members for kind in get_args(model.model_fields["type"].annotation)}


WORDS = (
    "session",
    "response",
    "item",
    "error",
    "type",
    "id",
    "event_id",
    "item_id",
    "content",
    "role",
    "status",
    "output",
    "usage",
    "text",
    "stash",
    "audio",
    "input",
    "format",
    "rate",
    "voice",
    "tools",
    "tool_choice",
    "name",
    "function",
    "modalities",
    "output_modalities",
    "turn_detection",
    "silence_duration_ms",
    "transcription",
    "input_audio_transcription",
    "image_url",
    "audio_start_ms",
    "audio_end_ms",
    "input_tokens",
    "input_tokens_details",
    "conversation",
    "max_output_tokens",
)
KINDS = (
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "conversation.item.create",
    "response.create",
    "session.created",
    "conversation.item.created",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "input_audio_buffer.speech_started",
    "input_audio_buffer.speech_stopped",
    "input_audio_buffer.committed",
    "error",
    "conversation.item.input_audio_transcription.text",
    "conversation.item.input_audio_transcription.completed",
    "response.function_call_arguments.done",
    "x",
)
JUDGES = {True: _by_type(ModernEvent), False: _by_type(BetaEvent)}


def judge(event, modern):
    """Raise ValidationError unless the event is one of OpenAI's."""
    JUDGES[modern][event["type"]].model_validate(event, strict=True)


FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
FLAT, NESTED = {"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}
PCM = {"type": "audio/pcm", "rate": 24000}


def translation(*, modern=True, **more):
    return SessionTranslator(
        "gpt-realtime",
        modern=modern,
        transcriber="qwen3-asr-flash-realtime",
        voices={"marin": "Cherry"},
        event_prefix="e",
        **more,
    )


def upstream_events(event, given=None):
    """Return the upstream events for a client event; an error fails the test."""
    outs = list((given or translation()).from_client(json.dumps(event)))
    assert all(isinstance(out, ToUpstream) for out in outs), outs
    return [out.event for out in outs]


def session(**settings):
    return {"type": "session.update", "session": settings}


TRANSCRIPTION = {"model": "qwen3-asr-flash-realtime"}
SETTINGS = {
    "today's modalities": ({"output_modalities": ["audio"]}, {"modalities": ["text", "audio"]}),
    "text alone": ({"output_modalities": ["text"]}, {"modalities": ["text"]}),
    "the beta's modalities": ({"modalities": ["audio", "text"]}, {"modalities": ["text", "audio"]}),
    "the beta's formats": (
        {"input_audio_format": "pcm16", "output_audio_format": "pcm16"},
        {"input_audio_format": "pcm", "output_audio_format": "pcm"},
    ),
    "today's formats": (
        {"audio": {"input": {"format": PCM}, "output": {"format": PCM}}},
        {"input_audio_format": "pcm", "output_audio_format": "pcm"},
    ),
    "a voice that is mapped": ({"audio": {"output": {"voice": "marin"}}}, {"voice": "Cherry"}),
    "a voice of Qwen's": ({"voice": "Ethan"}, {"voice": "Ethan"}),
    "a voice of OpenAI's": ({"voice": "alloy"}, {}),
    "a voice by its id": ({"audio": {"output": {"voice": {"id": "mine"}}}}, {"voice": "mine"}),
    "transcription": (
        {"audio": {"input": {"transcription": {"model": "whisper-1", "prompt": "x", "language": "en"}}}},
        {"input_audio_transcription": {"language": "en", **TRANSCRIPTION}},
    ),
    "the beta's transcription": (
        {"input_audio_transcription": {}},
        {"input_audio_transcription": TRANSCRIPTION},
    ),
    "no transcription": ({"input_audio_transcription": None}, {"input_audio_transcription": None}),
    "turn detection": (
        {"turn_detection": {"type": "server_vad", "silence_duration_ms": 50, "idle_timeout_ms": None}},
        {"turn_detection": {"type": "server_vad", "silence_duration_ms": 200}},
    ),
    "today's turn detection": (
        {"audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}}}},
        {"turn_detection": {"type": "semantic_vad"}},
    ),
    "no turn detection": ({"audio": {"input": {"turn_detection": None}}}, {"turn_detection": None}),
    "flat tools": ({"tools": [FLAT], "tool_choice": "auto"}, {"tools": [NESTED]}),
    "nested tools": ({"tools": [NESTED]}, {"tools": [NESTED]}),
    "no tools": ({"tools": [FLAT], "tool_choice": "none"}, {"tools": []}),
    "a limit": ({"max_output_tokens": 100}, {"max_tokens": 100}),
    "no limit": ({"max_response_output_tokens": "inf"}, {}),
    "Qwen's own": (
        {"top_k": 5, "enable_search": True, "seed": 1},
        {"top_k": 5, "enable_search": True, "seed": 1},
    ),
    "words": (
        {"instructions": "Be kind.", "temperature": 0.8},
        {"instructions": "Be kind.", "temperature": 0.8},
    ),
    "echoes": ({"id": "s", "object": "realtime.session", "type": "realtime", "model": "gpt-realtime"}, {}),
    "what has no meaning": ({"tracing": "auto", "truncation": "auto", "include": None, "speed": 1.0}, {}),
}


@pytest.mark.parametrize(("settings", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_settings(settings, expected):
    """A session's settings reach Qwen under Qwen's names."""
    assert upstream_events(session(**settings)) == [session(**expected)]


@pytest.mark.parametrize(("settings", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_the_emulator_accepts_the_settings(settings, expected):
    """The emulator, which is as strict as Alibaba's documentation, accepts the translated settings."""
    (event,) = upstream_events(session(**settings))
    event["session"].pop("voice", None)
    assert [event_out["type"] for event_out in RealtimeModel("m").handle(event)] == ["session.updated"]


def test_unsupported_settings_are_named():
    """Settings that Qwen does not support are named, and rejected in strict mode."""
    given = translation()
    upstream_events(session(voice="alloy", tracing="auto", tool_choice="required", tools=[FLAT]), given)
    assert sorted(given.usage.ignored) == ["session.tool_choice", "session.tracing", "session.voice"]
    (out,) = translation(strict=True).from_client(json.dumps(session(tracing="auto")))
    assert isinstance(out, ToClient)
    assert out.event["error"]["code"] == "unsupported_parameter"


def test_tools_and_their_choice_in_separate_updates():
    """A choice sent earlier applies to tools sent later."""
    given = translation()
    upstream_events(session(tools=[FLAT]), given)
    assert upstream_events(session(tool_choice="none"), given) == [session(tools=[])]
    assert upstream_events(session(instructions="x"), given) == [session(instructions="x")]
    assert upstream_events(session(tool_choice="auto"), given) == [session(tools=[NESTED])]


PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,QUJD"}
TEXT = {"type": "input_text", "text": "hi"}


def item(*content, role="user"):
    return {
        "type": "conversation.item.create",
        "item": {"type": "message", "role": role, "content": [*content]},
    }


RESULT = {
    "type": "conversation.item.create",
    "item": {"type": "function_call_output", "call_id": "c", "output": "4"},
}
EVENTS = {
    "text": (item(TEXT), [item(TEXT)]),
    "words of the model": (
        item({"type": "output_text", "text": "a"}, role="assistant"),
        [item({"type": "text", "text": "a"}, role="assistant")],
    ),
    "a picture": (item(PICTURE), [{"type": "input_image_buffer.append", "image": "QUJD"}]),
    "a picture with words": (item(PICTURE, TEXT),
        [{"type": "input_image_buffer.append", "image": "QUJD"}, item(TEXT)]),
    "a tool's result": (RESULT, [RESULT]),
    "a plain response": ({"type": "response.create"}, [{"type": "response.create"}]),
    "a response": (
        {"type": "response.create", "event_id": "x",
            "response": {"instructions": "i", "output_modalities": ["text"], "metadata": {}}},
        [{"type": "response.create", "event_id": "x",
            "response": {"instructions": "i", "modalities": ["text"]}}],
    ),
    "cancel": ({"type": "response.cancel"}, [{"type": "response.cancel"}]),
    "clear": ({"type": "input_audio_buffer.clear"}, [{"type": "input_audio_buffer.clear"}]),
    "an empty commit": ({"type": "input_audio_buffer.commit"}, [{"type": "input_audio_buffer.commit"}]),
    "something new": ({"type": "new.thing", "a": [1]}, [{"type": "new.thing", "a": [1]}]),
    "an odd item": ({"type": "conversation.item.create", "item": 1},
        [{"type": "conversation.item.create", "item": 1}]),
}  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), EVENTS.values(), ids=EVENTS)
def test_events_of_the_client(event, expected):
    """Each event reaches Qwen in a supported form; unknown ones are forwarded."""
    assert upstream_events(event) == expected


REFUSED = {
    "no JSON": ("{", None, "invalid_json"),
    "a binary frame": (b"{}", None, "invalid_event"),
    "no object": ("[]", "type", "invalid_event"),
    "no type": ("{}", "type", "invalid_event"),
    "too deep": ('{"type": "x", "a": ' + "[" * 200 + "]" * 200 + "}", None, "invalid_value"),
    "no session": (session() | {"session": 1}, "session", "invalid_value"),
    "another type": (session(type="transcription"), "session.type", "invalid_value"),
    "a format": (session(input_audio_format="g711_ulaw"), "session.input_audio_format", "invalid_value"),
    "today's format": (session(audio={"output": {"format": {"type": "audio/pcmu"}}}),
        "session.audio.output.format", "invalid_value"),
    "a rate": (session(audio={"input": {"format": {"type": "audio/pcm", "rate": 44100}}}),
        "session.audio.input.format.rate", "invalid_value"),
    "modalities": (session(modalities=["video"]), "session.modalities", "invalid_value"),
    "a voice": (session(voice=1), "session.voice", "invalid_value"),
    "a tool without a name": (session(tools=[{"type": "function"}]), "session.tools[0].name",
        "invalid_value"),
    "a tool of this server": (session(tools=[{"type": "qproxy", "name": "f"}]), "session.tools[0]",
        "invalid_value"),
    "sound that is none": ({"type": "input_audio_buffer.append", "audio": "?"}, "audio", "invalid_value"),
    "no sound": ({"type": "input_audio_buffer.append"}, "audio", "invalid_value"),
    "sound in an item": (item({"type": "input_audio", "audio": ""}), "item.content[0].type", "invalid_value"),
    "a picture from the web": (item({"type": "input_image", "image_url": "https://x.test/a.png"}),
        "item.content[0].image_url", "invalid_value"),
    "outside of the conversation": ({"type": "response.create", "response": {"conversation": "none"}},
        "response.conversation", "invalid_value"),
    "with other items": ({"type": "response.create", "response": {"input": []}}, "response.input",
        "invalid_value"),
    "a transcription session": ({"type": "transcription_session.update"}, "type", "unsupported_event"),
}  # fmt: skip


@pytest.mark.parametrize(("event", "param", "code"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("modern", [True, False])
def test_mistakes_of_the_client(event, param, code, modern):
    """A mistake is an error event that names the field and the event; nothing of it reaches Qwen."""
    if isinstance(event, dict):
        event = json.dumps({**event, "event_id": "mine"})
    (out,) = translation(modern=modern).from_client(event)
    assert isinstance(out, ToClient)
    judge(out.event, modern)
    assert (out.event["error"]["param"], out.event["error"]["code"]) == (param, code)
    assert out.event["error"]["type"] == "invalid_request_error"
    assert out.event["error"]["event_id"] == ("mine" if isinstance(event, str) and "mine" in event else None)


def test_audio_is_resampled_to_16_khz():
    """A second at 24 kHz becomes a second at 16 kHz, however it is split, and a commit sends the filter's
    remainder."""
    given = translation()
    data = base64.b64encode(tone(440, 1.0)).decode()
    outs = upstream_events({"type": "input_audio_buffer.append", "audio": data, "event_id": "x"}, given)
    outs += upstream_events({"type": "input_audio_buffer.commit"}, given)
    assert {out["type"] for out in outs[:-1]} == {"input_audio_buffer.append"}
    assert [out.get("event_id") for out in outs] == [None, "x", None, None]
    sizes = [len(base64.b64decode(out["audio"])) for out in outs[:-1]]
    assert max(sizes) <= 16_000
    assert 32_000 <= sum(sizes) < 32_200


def test_audio_at_qwens_own_rate_is_unchanged():
    """Audio of a client with 16 kHz is not resampled, and the session reports that rate."""
    given = translation()
    format = {"type": "audio/pcm", "rate": 16000}
    upstream_events(session(audio={"input": {"format": format}}), given)
    event = {"type": "input_audio_buffer.append", "audio": base64.b64encode(b"\x01\x02" * 50).decode()}
    assert upstream_events(event, given) == [event]
    (event_out,) = client_events({"type": "session.updated", "session": {}}, given)
    assert event_out["session"]["audio"]["input"]["format"] == format


# Events from Qwen


def client_events(event, given=None):
    """Return the client events for an upstream event."""
    text = event if isinstance(event, str | bytes) else json.dumps(event)
    return [out.event for out in (given or translation()).from_upstream(text)]


def conversation(**settings):
    """Return all events that the emulator sends in a session: text, audio and a tool call."""
    speaker = RealtimeModel("qwen-realtime")
    quiet = {"turn_detection": None, "input_audio_transcription": {"model": "m"}, **settings}
    heard_sound = base64.b64encode(tone(440, 0.3, 16_000)).decode()
    for event in (
        None,
        session(**quiet),
        item(TEXT),
        {"type": "response.create"},
        {"type": "input_audio_buffer.append", "audio": heard_sound},
        {"type": "input_audio_buffer.commit"},
        {"type": "response.create"},
        {"type": "response.cancel"},
        session(tools=[NESTED], modalities=["text"]),
        item(TEXT),
        {"type": "response.create"},
        RESULT,
        {"type": "response.create"},
        {"type": "input_audio_buffer.clear"},
        session(voice="alloy"),
    ):
        yield from speaker.start() if event is None else speaker.handle(event)


@pytest.mark.parametrize("modern", [True, False])
def test_whole_conversations_have_openais_types(modern):
    """Every event of a session with text, audio and tools is one of OpenAI's types, with every required
    field."""
    given = translation(modern=modern)
    kinds = []
    for event in conversation():
        for event_out in client_events(event, given):
            judge(event_out, modern)
            kinds.append(event_out["type"])
    names = {
        "response.output_text.delta",
        "response.output_audio.delta",
        "conversation.item.added",
        "conversation.item.done",
    }
    assert names <= set(kinds) if modern else not names & set(kinds)
    assert "conversation.item.input_audio_transcription.delta" in kinds
    assert kinds.count("response.done") == given.usage.responses == 4
    assert (
        given.usage.usage.prompt_tokens,
        given.usage.usage.completion_tokens,
        given.usage.usage.total_tokens,
    ) == (40, 20, 60)
    assert not given._server_events._open


@pytest.mark.parametrize("modern", [True, False])
def test_current_event_names_are_accepted(modern):
    """A server that sends the current names gives the client the same events."""
    old, new = translation(modern=modern), translation(modern=modern)
    for event in conversation():
        expected = client_events(json.dumps(event), old)
        newer = json.loads(json.dumps(event))
        from qproxy.wire.realtime import event_names as names

        names.to_ga(newer)
        got = client_events(newer, new)
        assert [event_out["type"] for event_out in got] == [event_out["type"] for event_out in expected]


def test_the_client_gets_its_own_names():
    """The model, the voice and the tools have the names that the client uses."""
    given = translation()
    upstream_events(session(voice="marin", tools=[FLAT]), given)
    qwens = {
        "model": "qwen-x",
        "voice": "Cherry",
        "tools": [NESTED],
        "modalities": ["text", "audio"],
        "top_k": 5,
    }
    (event_out,) = client_events({"type": "session.updated", "session": qwens}, given)
    about = event_out["session"]
    assert (about["model"], about["tools"], about["top_k"]) == ("gpt-realtime", [FLAT], 5)
    assert about["audio"]["output"]["voice"] == "marin"
    (event_out,) = client_events(
        {"type": "response.created", "response": {"id": "r", "voice": "Cherry"}}, given
    )
    assert event_out["response"]["audio"]["output"]["voice"] == "marin"


def test_an_event_under_two_names_is_sent_once():
    """Servers that send an event under both names use one id for it."""
    given = translation()
    event = {"type": "response.text.delta", "event_id": "1", "delta": "a"}
    assert len(client_events(event, given)) == 1
    assert client_events({**event, "type": "response.output_text.delta"}, given) == []
    assert client_events({"type": "x"}, given)[0]["event_id"] == "e1"


def test_memory_is_bounded():
    """A session without end keeps bounded state."""
    given = translation()
    for number in range(2000):
        client_events(
            {
                "type": "conversation.item.created",
                "event_id": str(number),
                "item": {"id": str(number), "status": "in_progress", "type": "function_call", "name": "f"},
            },
            given,
        )
        client_events(
            {"type": "conversation.item.input_audio_transcription.text", "item_id": str(number), "text": "a"},
            given,
        )
    telling = given._server_events
    assert max(map(len, (telling._events, telling._open, telling._calls, telling._input_samples))) <= 512


def test_the_name_of_a_call_is_found():
    """The final event of a call's arguments names its function, even if only its item did."""
    given = translation()
    client_events(
        {"type": "response.output_item.added", "item": {"id": "i", "type": "function_call", "name": "f"}},
        given,
    )
    (event_out,) = client_events(
        {"type": "response.function_call_arguments.done", "item_id": "i", "arguments": "{}"}, given
    )
    assert event_out["name"] == "f"


def test_a_transcription_is_sent_once_it_is_certain():
    """Qwen repeats the certain text and guesses the remainder; a client gets the new certain text."""
    given = translation()
    kind = "conversation.item.input_audio_transcription"
    event_out = []
    for text, stash in (
        ("", "hel"),
        ("hello", "wor"),
        ("hello", "world"),
        ("hello world", ""),
        ("other", ""),
    ):
        event_out += client_events(
            {"type": f"{kind}.text", "item_id": "i", "text": text, "stash": stash}, given
        )
    assert [(event["type"], event["delta"]) for event in event_out] == [
        (f"{kind}.delta", "hello"),
        (f"{kind}.delta", " world"),
    ]


ERRORS = {
    "whole": (
        {"type": "invalid_request_error", "code": "c", "message": "m", "param": "p", "event_id": "x"},
        "m",
    ),
    "bare": ({"message": "m"}, "m"),
    "a string": ("m", "m"),
    "nothing": (None, "The upstream reported an error."),
    "odd": ({"type": 1, "code": 2, "message": 3, "param": []}, "The upstream reported an error."),
}


@pytest.mark.parametrize(("error", "message"), ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("modern", [True, False])
def test_errors_of_the_server(error, message, modern):
    """An error has every key of OpenAI's errors."""
    (event_out,) = client_events({"type": "error", "error": error}, translation(modern=modern))
    judge(event_out, modern)
    assert event_out["error"]["message"] == message


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"a": 1}', b"\x00\xff", '{"type": null}'], ids=repr)
def test_invalid_events(text):
    """Invalid data becomes an error event that does not repeat it."""
    (event_out,) = client_events(text)
    assert event_out["error"]["code"] == "upstream_invalid_response"
    assert "nonsense" not in event_out["error"]["message"]


@pytest.mark.parametrize(
    "kind",
    [
        "session.created",
        "response.done",
        "response.created",
        "conversation.item.created",
        "response.output_item.done",
        "error",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "x",
        [],
        [1],
        {},
        {"output": 1, "usage": 1, "content": 1},
        {"output": [1], "usage": {"input_tokens": "x"}, "content": [1], "role": "assistant"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("modern", [True, False])
def test_unusual_shapes_are_forwarded(kind, value, modern):
    """An event with parts of an unexpected shape still reaches the client."""
    event_out = client_events(
        {"type": kind, "session": value, "response": value, "item": value, "error": value},
        translation(modern=modern),
    )
    assert event_out


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.sampled_from(KINDS), st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=6)
        ),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_json_keeps_the_session_open(inputs, modern):
    """For any JSON from either end, JSON or nothing is sent on."""
    given_one = translation(modern=modern)
    for from_client, kind, event in inputs:
        text = json.dumps({**event, "type": kind})
        for out in given_one.from_client(text) if from_client else given_one.from_upstream(text):
            json_codec.dumps(out.event)
            assert isinstance(out.event["type"], str)


def test_the_end_of_a_session_is_recorded():
    """Qwen's final event is unknown to OpenAI's clients, and is not forwarded."""
    given = translation()
    assert client_events({"type": "session.finished"}, given) == []
    assert given.usage.finished


def test_paths_of_realtime_models():
    """The realtime models have their own path on an account's host."""
    at = default_realtime_url("https://dashscope-intl.aliyuncs.com/compatible-mode/v1")
    assert at == "https://dashscope-intl.aliyuncs.com/api-ws/v1/realtime"
    assert session_url(at, "a b/c") == at + "?model=a%20b%2Fc"
    assert session_url("wss://x.test/r?k=1", "m") == "https://x.test/r?k=1&model=m"
    assert session_url("ws://x.test/r", "m") == "http://x.test/r?model=m"
