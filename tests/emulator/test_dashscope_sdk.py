"""The vendor's own client, dashscope, parses every native response of the emulator.

The client blocks, so that each test runs it in a thread, over real sockets.
"""

import base64
import queue
from contextlib import closing
from functools import partial

import pytest
import trio
from dashscope import Generation, MultiModalConversation, MultiModalEmbedding, TextEmbedding
from dashscope.api_entities.http_request import close_shared_sync_session
from dashscope.audio.qwen_omni import (
    AudioFormatConfig,
    MultiModality,
    OmniRealtimeCallback,
    OmniRealtimeConversation,
)
from dashscope.common.error import InputRequired

from qproxy.emulator import Emulator
from qproxy.emulator.realtime_session import describe_sound, tone

KEY = "sk-emulated"
HI = [{"role": "user", "content": "What is a monad?"}]
LOOK = [{"role": "user", "content": [{"image": "https://example.com/cat.png"}, {"text": "What is this?"}]}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIMEOUT = 10


@pytest.fixture
async def emulator(nursery):
    """Run an emulator on its own port, and close the client's connections to it afterwards."""
    yield await nursery.start(Emulator(keys={KEY}).serve)
    close_shared_sync_session()
    nursery.cancel_scope.cancel()


async def run(emulator, call, *arguments, key=KEY, **fields):
    """Return the result of a client's call, or the whole list of a stream."""

    def blocking():
        answer = call(
            *arguments, api_key=key, base_address=f"{emulator.origin}/api/v1", timeout=TIMEOUT, **fields
        )
        return list(answer) if fields.get("stream") else answer

    return await trio.to_thread.run_sync(blocking)


async def generate(emulator, model="qwen-plus", messages=HI, **fields):
    return await run(
        emulator, Generation.call, model, messages=messages, **{"result_format": "message", **fields}
    )


def joined(answers, name="content"):
    """Return the text of a stream of increments."""
    return "".join(answer.output.choices[0].message.get(name) or "" for answer in answers)


async def test_a_text_comes_whole(emulator):
    """A text response comes as a message, and in the older format for a prompt."""
    answer = await generate(emulator)
    assert (answer.status_code, answer.code, answer.request_id) == (200, "", "emu-1")
    assert answer.output.choices[0].finish_reason == "stop"
    assert (
        answer.output.choices[0].message.content
        == "This is the emulator's qwen-plus. You said: What is a monad?"
    )
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0
    older = await run(emulator, Generation.call, "qwen-plus", prompt="What is a monad?")
    assert older.output.text == answer.output.choices[0].message.content


@pytest.mark.parametrize("incremental", [True, False, None])
async def test_a_text_is_streamed(emulator, incremental):
    """Increments add up; otherwise each response has the whole text so far, from the client or the server."""
    whole = (await generate(emulator)).output.choices[0].message.content
    answers = await generate(emulator, stream=True, incremental_output=incremental)
    texts = [answer.output.choices[0].message.content for answer in answers]
    assert len(texts) > 3
    assert (joined(answers) if incremental else texts[-1]) == whole
    assert [answer.output.choices[0].finish_reason for answer in answers[-2:]] == ["null", "stop"]
    sent = emulator.requests[-1].body["parameters"].get("incremental_output", False)
    assert sent is (incremental is not None)


@pytest.mark.parametrize("fields", [{}, {"incremental_output": True}, {"incremental_output": False}])
async def test_a_tool_is_called_and_its_result_read(emulator, fields):
    """A call has the same name, id and arguments whole and streamed, and its result is accepted."""
    stream = bool(fields)
    question = [{"role": "user", "content": "What is the weather in Hangzhou?"}]
    answers = await generate(emulator, messages=question, tools=[WEATHER], stream=stream, **fields)
    answers = answers if stream else [answers]
    assert answers[-1].output.choices[0].finish_reason == "tool_calls"
    call_parts = [
        call for answer in answers for call in answer.output.choices[0].message.get("tool_calls") or ()
    ]
    call = call_parts[-1]
    if fields.get("incremental_output"):
        arguments = "".join(piece["function"]["arguments"] for piece in call_parts)
        call = {**call_parts[0], "function": {**call_parts[0]["function"], "arguments": arguments}}
    assert call["function"] == {"name": "get_weather", "arguments": '{"city": "Hangzhou"}'}
    call_message = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "light rain"}
    last = await generate(emulator, messages=[*question, call_message, result], tools=[WEATHER])
    assert last.output.choices[0].message.content.startswith("The tool says: light rain")


async def test_reasoning_comes_before_the_text(emulator):
    """A model that thinks on request sends its reasoning before the text."""
    whole = (await generate(emulator, enable_thinking=True)).output.choices[0].message
    streamed = await generate(emulator, enable_thinking=True, stream=True, incremental_output=True)
    assert joined(streamed, "reasoning_content") == whole.reasoning_content
    assert joined(streamed) == whole.content
    assert whole.reasoning_content


async def test_a_picture_is_seen_in_parts(emulator):
    """A multimodal model responds with a list of parts, whole and streamed."""
    look = partial(run, emulator, MultiModalConversation.call, "qwen3.8-max", LOOK)
    whole = (await look()).output.choices[0].message.content
    answers = await look(stream=True, incremental_output=True)
    parts = [part for answer in answers for part in answer.output.choices[0].message.content]
    assert [{"text": "".join(part["text"] for part in parts)}] == whole
    assert whole[0]["text"].endswith("What is this?")


async def test_qwen4_keeps_its_reasoning_and_its_prompt(emulator):
    """The ciphertext on its message is read; the marked prefix is written and then read."""
    system = {"role": "system", "content": [{"text": "word " * 1020, "cache_control": {"type": "ephemeral"}}]}
    history: list[dict] = [system, {"role": "user", "content": [{"text": "Hm?"}]}]
    call = partial(run, emulator, MultiModalConversation.call, "qwen4-max")
    parameters = {"thinking_display": "summarized", "preserve_thinking": True}
    first = await call(messages=history, **parameters)
    message = first.output.choices[0].message
    assert message.reasoning_content.startswith("Summary of")
    history += [dict(message), {"role": "user", "content": [{"text": "So?"}]}]
    answers = await call(messages=history, stream=True, incremental_output=True, **parameters)
    text = "".join(part["text"] for answer in answers for part in answer.output.choices[0].message.content)
    assert "I remember 1 thoughts." in text
    details = [answer.usage["prompt_tokens_details"] for answer in (first, answers[-1])]
    assert [(one["cached_tokens"], one["cache_creation_input_tokens"]) for one in details] == [
        (0, 1024),
        (1024, 0),
    ]
    history[2]["encrypted_content"] += "x"
    rejected = await call(messages=history, **parameters)
    assert (rejected.status_code, rejected.code) == (400, "InvalidParameter")


async def test_embeddings(emulator):
    """Embeddings are dense and sparse, in any order, and of the requested length."""
    embed = partial(run, emulator, TextEmbedding.call, "text-embedding-v4", ["a b", "c"])
    answer = await embed(dimension=64, output_type="dense&sparse", text_type="query")
    rows = sorted(answer.output["embeddings"], key=lambda row: row["text_index"])
    assert [len(row["embedding"]) for row in rows] == [64, 64]
    assert [[entry["token"] for entry in row["sparse_embedding"]] for row in rows] == [["a", "b"], ["c"]]
    assert answer.usage["total_tokens"] == 3
    assert "embedding" not in (await embed(output_type="sparse")).output["embeddings"][0]
    assert (await embed(output_type="other")).code == "InvalidParameter"


async def test_multimodal_embeddings(emulator):
    """Contents have a vector each, or one together, and a model refuses more pictures than its limit."""
    contents = [{"text": "a cat"}, {"image": "https://example.com/cat.png"}]
    embed = partial(run, emulator, MultiModalEmbedding.call, "qwen3-vl-embedding")
    answer = await embed(contents, dimension=256)
    rows = sorted(answer.output["embeddings"], key=lambda row: row["index"])
    assert [(row["type"], len(row["embedding"])) for row in rows] == [("text", 256), ("image", 256)]
    assert answer.usage["input_tokens_details"]["text_tokens"] == 2
    (fused,) = (await embed(contents, enable_fusion=True)).output["embeddings"]
    assert (fused["type"], len(fused["embedding"])) == ("fusion", 2560)
    assert (await embed(contents[1:] * 6)).code == "InvalidParameter"


ERRORS = {
    "a key": ({"key": "sk-other"}, 401, "InvalidApiKey"),
    "a model": ({"model": "gpt"}, 404, "ModelNotFound"),
    "a path": ({"model": "qwen4-max"}, 400, "InvalidParameter"),
    "a parameter": ({"temperature": 2.5}, 400, "InvalidParameter"),
    "a rate": ({"model": "fault-429"}, 429, "Throttling.RateQuota"),
    "a quota": ({"model": "fault-quota"}, 429, "Throttling.AllocationQuota"),
    "an inspection": ({"model": "fault-filter"}, 400, "DataInspectionFailed"),
    "a fault": ({"model": "fault-500"}, 500, "InternalError"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "status", "code"), ERRORS.values(), ids=ERRORS)
async def test_errors_have_the_client_s_shape(emulator, fields, status, code, stream):
    """Status, code and message are in the client's fields."""
    answer = await generate(emulator, stream=stream, **fields)
    (answer,) = answer if stream else [answer]
    assert (answer.status_code, answer.code) == (status, code)
    assert answer.message


async def test_an_error_in_a_stream_ends_it(emulator):
    """An error in a stream keeps the events before it."""
    answers = await generate(emulator, model="fault-error-late", stream=True, incremental_output=True)
    assert joined(answers[:-1]) == "Hello"
    assert (answers[-1].code, answers[-1].output) == ("InternalError", None)


async def test_the_client_rejects_empty_messages(emulator):
    """Without messages the client sends nothing."""
    with pytest.raises(InputRequired):
        await generate(emulator, messages=[])
    assert emulator.requests == []


class Listener(OmniRealtimeCallback):
    """Collects the events of a session in a queue."""

    def __init__(self):
        self.events: queue.Queue[dict] = queue.Queue()

    def on_event(self, message):
        self.events.put(message)

    def until(self, kind):
        """Return the events up to the first of a kind."""
        call_parts = [self.events.get(timeout=TIMEOUT)]
        while call_parts[-1]["type"] != kind:
            assert call_parts[-1]["type"] != "error", call_parts[-1]
            call_parts.append(self.events.get(timeout=TIMEOUT))
        return call_parts


async def converse(emulator, play):
    """Run a conversation in a thread and return the result of `play`."""

    def blocking():
        listener = Listener()
        url = emulator.origin.replace("http", "ws", 1) + "/api-ws/v1/realtime"
        session = OmniRealtimeConversation("qwen3.5-omni-plus-realtime", listener, url=url, api_key=KEY)
        session.connect()
        with closing(
            vars(session)["ws"].sock.sock
        ):  # websocket-client leaves it open when the server closes first
            listener.until("session.created")
            result = play(session, listener)
            session.end_session(TIMEOUT)
            session.thread.join(TIMEOUT)
        return result

    return await trio.to_thread.run_sync(blocking)


def collect(events, kind, name="delta"):
    return [event[name] for event in events if event["type"] == kind]


BOTH = [MultiModality.TEXT, MultiModality.AUDIO]
RATE = 24_000
WIDE = {
    "input_audio_config": AudioFormatConfig(sample_rate=RATE),
    "output_audio_config": AudioFormatConfig(sample_rate=RATE),
}


@pytest.mark.parametrize(("formats", "rate"), [({}, 16_000), (WIDE, RATE)])
async def test_sound_is_received_and_returned(emulator, formats, rate):
    """Sound comes back as the same tone at the same pitch, with the client's old and new settings."""

    def play(session, listener):
        session.update_session(BOTH, voice="Cherry", enable_turn_detection=False, **formats)
        listener.until("session.updated")
        session.append_audio(base64.b64encode(tone(440, 0.3, rate)).decode())
        session.commit()
        session.create_response()
        return listener.until("response.done"), session.get_last_response_id()

    events, response_id = await converse(emulator, play)
    assert "440 Hz" in "".join(collect(events, "response.audio_transcript.delta"))
    sound = b"".join(map(base64.b64decode, collect(events, "response.audio.delta")))
    assert describe_sound(sound, RATE).startswith("0.30 s of sound at about 440 Hz")
    assert collect(events, "response.done", "response")[0]["id"] == response_id
    assert collect(events, "conversation.item.input_audio_transcription.completed", "transcript")


async def test_speech_is_detected_by_the_server(emulator):
    """With the client's turn detection the end of the speech starts the response."""

    def play(session, listener):
        session.update_session([MultiModality.TEXT])
        session.append_audio(base64.b64encode(tone(440, 0.2, 16_000)).decode())
        session.append_audio(base64.b64encode(bytes(2 * 16_000)).decode())
        return listener.until("response.done")

    kinds = [event["type"] for event in await converse(emulator, play)]
    assert kinds.index("input_audio_buffer.speech_stopped") < kinds.index("response.text.done")


async def test_a_tool_is_called_in_a_conversation(emulator):
    """A call's arguments come in chunks, and its result gets a response."""

    def play(session, listener):
        session.update_session([MultiModality.TEXT], enable_turn_detection=False, tools=[WEATHER])
        content = [{"type": "input_text", "text": "The weather in Hangzhou?"}]
        session.create_item({"type": "message", "role": "user", "content": content})
        session.create_response()
        (call,) = collect(listener.until("response.done"), "response.done", "response")[0]["output"]
        session.create_item(
            {"type": "function_call_output", "call_id": call["call_id"], "output": "light rain"}
        )
        session.create_response()
        return call, "".join(collect(listener.until("response.done"), "response.text.delta"))

    call, text = await converse(emulator, play)
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Hangzhou"}')
    assert text == "The tool says: light rain"
