"""Transcription end to end: services of Model Studio, own servers, formats, events, tasks, disconnects."""

import json
from functools import partial
from tempfile import SpooledTemporaryFile

import pytest
import trio
import trio.testing
from openai.types.audio import (
    Transcription,
    TranscriptionDiarized,
    TranscriptionStreamEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from qproxy.emulator import speech
from qproxy.emulator.faults import CloseConnection, PauseStep, ScriptedReply, chunk, event, json_reply
from qproxy.server import form_data
from qproxy.wire.form_data import FormBody, FormPart
from qproxy.wire.models import ModelRow
from tests.helpers import accounts, frames, leftovers, world
from tests.integration.test_openai_sdk import run, sdk
from tests.openai_types import judge, refusal

PATH, TRANSLATIONS = "/v1/audio/transcriptions", "/v1/audio/translations"
TEXT = "Hello there, this is a test. It has two sentences! Does it, or has it more of them?"
WAV = speech.wav(speech.samples(TEXT))
CHAT, TIMED, FILES = "qwen3-asr-flash", "qwen-audio-3.1-asr-flash", "qwen3-asr-flash-filetrans"
HOSTS = {"result_hosts": ["http://one.test"], "upload_hosts": ["http://one.test"]}


async def form(*, file=WAV, name="a.wav", **fields):
    """Return the headers and the body of a form; a list is an array."""
    values = [
        (key, one) for key, value in fields.items() for one in ([value] if isinstance(value, str) else value)
    ]
    parts = [FormPart(key if isinstance(fields[key], str) else f"{key}[]", value) for key, value in values]
    body = FormBody([*parts, FormPart("file", file, name, "audio/wav")], "test-boundary")
    return [(b"content-type", body.content_type.encode())], b"".join([data async for data in body.chunks()])


async def listen(it, path=PATH, **fields):
    """Return (status, headers, text) of a response."""
    headers, body = await form(**fields)
    async with it.client.request("POST", path, headers=headers, body=body) as response:
        data = await response.read()
    return response.status, {key.decode(): value.decode() for key, value in response.headers}, data.decode()


def events_of(text):
    """Return the values of a stream's events."""
    return [json.loads(data) for data in frames(text) if data != "[DONE]"]


async def test_the_text_of_a_recording():
    """The chat service answers with text, language and tokens; the ledger's seconds are counted."""
    async with world() as it:
        status, headers, text = await listen(
            it, model=CHAT, language="en-US", prompt="A test.", keywords=["Qwen"]
        )
        assert status == 200, text
        body = judge(Transcription, json.loads(text))
        assert body.text == TEXT
        assert [one.code for one in body.languages] == ["en"]
        assert body.usage.type == "tokens"
        (seen,) = it.emulator.requests
        assert seen.path == "/v1/chat/completions"
        assert seen.body["asr_options"] == {"language": "en"}
        assert seen.body["messages"][0] == {"role": "system", "content": [{"text": "A test.\nQwen"}]}
        assert "x-qproxy-ignored-params" not in headers
        assert it.sound()


async def test_plain_text():
    """`text` is no JSON."""
    async with world() as it:
        status, headers, text = await listen(it, model=CHAT, response_format="text")
        assert (status, headers["content-type"], text) == (200, "text/plain; charset=utf-8", f"{TEXT}\n")


async def test_a_streamed_text():
    """Deltas come as the model writes them, and the last event has the whole text and its tokens."""
    async with world() as it:
        status, headers, text = await listen(it, model=CHAT, stream="true")
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        events = [judge(TranscriptionStreamEvent, one) for one in events_of(text)]
        assert "".join(one.delta for one in events[:-1]) == TEXT
        assert len(events) > 5
        assert (events[-1].type, events[-1].text) == ("transcript.text.done", TEXT)
        assert events[-1].usage.total_tokens > 0
        assert it.sound()


SRT = """1
00:00:00,000 --> 00:00:00,560
Hello there, this is a test.

2
00:00:00,580 --> 00:00:01,000
It has two sentences!

3
00:00:01,020 --> 00:00:01,660
Does it, or has it more of them?

"""


async def test_subtitles():
    """Sentences have the times of the recognition service, which gets languages, words and a context."""
    async with world() as it:
        fields = {"languages": ["en", "xx"], "keywords": ["Qwen"], "prompt": "p" * 500, "temperature": "0"}
        _, headers, text = await listen(it, model=TIMED, response_format="srt", **fields)
        assert (text, headers["content-type"]) == (SRT, "text/plain; charset=utf-8")
        assert headers["x-qproxy-ignored-params"] == "languages, temperature"
        (seen,) = it.emulator.requests
        assert seen.path.endswith("/multimodal-generation/generation")
        assert seen.body["parameters"] == {
            "format": "wav", "language_hints": ["en"], "vocabulary": {"Qwen": 3},
            "speaker_diarization_enabled": True,
        }  # fmt: skip
        assert seen.body["input"]["messages"][0]["content"] == [{"type": "input_text", "text": "p" * 400}]
        _, _, text = await listen(it, model=TIMED, response_format="vtt")
        assert (
            text
            == "WEBVTT\n\n"
            + "\n".join(SRT.splitlines()[1:])
            .replace(",0", ".0")
            .replace(",5", ".5")
            .replace(",6", ".6")
            .replace("\n2\n", "\n")
            .replace("\n3\n", "\n")
            + "\n"
        )


async def test_sentences_and_words():
    """verbose_json has segments, words with their punctuation, or both, and the seconds."""
    async with world() as it:
        _, _, text = await listen(it, model=TIMED, response_format="verbose_json", language="english")
        body = judge(TranscriptionVerbose, json.loads(text))
        assert (body.text, body.language, body.words) == (TEXT, "english", None)
        assert [one.text for one in body.segments] == SRT.splitlines()[2::4]
        assert body.usage.seconds == int(len(TEXT) * 0.02)
        wanted = {"timestamp_granularities": ["word"]}
        _, _, text = await listen(it, model=TIMED, response_format="verbose_json", **wanted)
        body = judge(TranscriptionVerbose, json.loads(text))
        assert (" ".join(one.word for one in body.words), body.segments) == (TEXT, None)
        assert all(one.start <= one.end for one in body.words)


async def test_speakers():
    """diarized_json names speakers by letters, whole and in events."""
    async with world() as it:
        _, _, text = await listen(it, model=TIMED, response_format="diarized_json")
        body = judge(TranscriptionDiarized, json.loads(text))
        assert [one.speaker for one in body.segments] == ["A", "B", "A"]
        _, _, text = await listen(it, model=TIMED, response_format="diarized_json", stream="true")
        events = [judge(TranscriptionStreamEvent, one) for one in events_of(text)]
        assert [one.type for one in events] == ["transcript.text.segment"] * 3 + ["transcript.text.done"]
        assert events[-1].text == TEXT


LONG = speech.wav(speech.samples("This is a sentence that fills a minute. " * 100))


async def test_events_of_a_longer_recording():
    """The recognition service streams what is longer than a minute; all its sentences are kept."""
    async with world() as it:
        _, _, text = await listen(it, file=LONG, model="qwen-audio-3.0-asr-flash", response_format="srt")
        assert text.count(" --> ") == 100
        assert it.emulator.requests[0].headers["x-dashscope-sse"] == "enable"
        assert it.sound()


async def test_a_short_recording_without_all_times(autojump_clock):
    """A response with the times of its last sentence only is asked for again as a task."""
    async with world(**HOSTS) as it:
        _, _, text = await listen(it, model="qwen-audio-3.0-asr-flash", response_format="srt")
        assert text == SRT
        assert it.emulator.requests[-1].path == "/results/transcript.json"
        assert it.sound()


async def test_times_that_no_model_gives():
    """Without a model for files a transcript with some times is an error, not shorter subtitles."""
    rows = (ModelRow("house-listener", transcription="recognition", tasks=["transcription"]),)
    async with world(model_rows=rows) as it:
        whole = {"text": "One. Two.", "sentence": {"text": "Two.", "begin_time": 0, "end_time": 1}}
        it.emulator.script(json_reply({"output": whole, "usage": {"duration": 2}}))
        status, _, text = await listen(it, model="house-listener", response_format="srt")
        assert (status, refusal(json.loads(text)).code) == (502, "upstream_incomplete_times")


async def test_a_file_as_a_task(autojump_clock):
    """The recording is uploaded, the task submitted to the same account, polled, and its result loaded."""
    async with world(**HOSTS) as it:
        wanted = {"timestamp_granularities": ["word", "segment"]}
        began = trio.current_time()
        _, _, text = await listen(
            it, model=FILES, response_format="verbose_json", enable_itn="true", **wanted
        )
        assert trio.current_time() - began == pytest.approx(8)
        body = judge(TranscriptionVerbose, json.loads(text))
        assert (body.text, body.language, len(body.segments)) == (TEXT, "english", 3)
        assert " ".join(one.word for one in body.words) == TEXT
        paths = [seen.path for seen in it.emulator.requests]
        assert paths == [
            "/api/v1/uploads", "/storage", "/api/v1/services/audio/asr/transcription",
            *["/api/v1/tasks/task-1"] * 3, "/results/transcript.json",
        ]  # fmt: skip
        submitted = it.emulator.requests[2].body
        assert submitted["parameters"] == {"channel_id": [0], "enable_itn": True, "enable_words": True}
        assert list(it.emulator.file_tasks.uploads.values()) == [WAV]
        assert "authorization" not in it.emulator.requests[1].headers
        assert it.sound()


async def test_speakers_of_a_file(autojump_clock):
    """Fun-ASR has its own form of a task."""
    async with world(**HOSTS) as it:
        _, _, text = await listen(it, model="fun-asr", response_format="diarized_json")
        body = judge(TranscriptionDiarized, json.loads(text))
        assert [one.speaker for one in body.segments] == ["A", "B", "A"]
        assert it.emulator.requests[2].body["parameters"] == {"channel_id": [0], "diarization_enabled": True}


@pytest.mark.parametrize(
    ("file", "limits", "refused"),
    [
        (WAV, {"seconds": 1}, 0),
        (WAV, {"megabytes": 0}, 0),
        (b"ID3" + WAV[45:], {"seconds": 1}, 1),
    ],
    ids=["by its head", "by its size", "by the model's refusal"],
)
async def test_a_recording_beyond_a_models_limits(autojump_clock, file, limits, refused):
    """It goes to the model for files, also if only the model knew how long it is."""
    rows = (ModelRow(CHAT, limits=limits),)
    async with world(**HOSTS, model_rows=rows) as it:
        it.emulator.script(*[REFUSAL] * refused)
        status, _, _ = await listen(it, file=file, model=CHAT)
        assert status == 200
        assert [seen.path for seen in it.emulator.requests].count("/v1/chat/completions") == refused
        assert it.emulator.requests[refused + 2].body["model"] == FILES
        assert it.sound()


async def test_a_recording_beyond_all_limits():
    """It is refused with the limit, before anything is sent."""
    rows = (ModelRow(FILES, limits={"seconds": 1}), ModelRow(CHAT, limits={"seconds": 1}))
    async with world(model_rows=rows) as it:
        status, _, text = await listen(it, model=CHAT)
        assert (status, "2 s of at most 1 s" in text) == (413, True)
        assert not it.emulator.requests


REFUSAL = json_reply(
    {
        "error": {
            "message": "<400> InternalError.Algo.InvalidParameter: Audio length must be between 1s and 300s",
            "type": "invalid_request_error",
            "code": "InvalidFile.AudioLengthError",
        }
    },
    400,
)
REFUSED = {
    "times": ({"model": CHAT, "response_format": "srt"}, 400, "response_format", TIMED),
    "speakers": ({"model": FILES, "response_format": "diarized_json"}, 400, "response_format", "fun-asr"),
    "a format": ({"model": CHAT, "response_format": "mp3"}, 400, "response_format", "verbose_json"),
    "words": (
        {"model": CHAT, "timestamp_granularities": ["word"]}, 400, "timestamp_granularities", "verbose_json",
    ),
    "a stream": ({"model": TIMED, "response_format": "vtt", "stream": "1"}, 400, "stream", "diarized_json"),
    "a flag": ({"model": TIMED, "stream": "maybe"}, 400, "stream", "maybe"),
    "no model": ({}, 400, "model", "model"),
    "an empty file": ({"model": CHAT, "file": b""}, 400, "file", "empty"),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "param", "words"), REFUSED.values(), ids=REFUSED)
async def test_refusals(fields, status, param, words):
    """What cannot be given is refused before anything is sent, with what can."""
    async with world() as it:
        found, _, text = await listen(it, **fields)
        error = refusal(json.loads(text))
        assert (found, error.param) == (status, param)
        assert words in error.message
        assert not it.emulator.requests


async def test_a_file_is_needed():
    """A form without a file is refused."""
    async with world() as it:
        body = FormBody([FormPart("model", CHAT)], "x")
        raw = b"".join([data async for data in body.chunks()])
        headers = [(b"content-type", body.content_type.encode())]
        async with it.client.request("POST", PATH, headers=headers, body=raw) as response:
            error = refusal(json.loads(await response.read()))
        assert (error.param, error.code) == ("file", "missing_required_parameter")


async def test_strict_params():
    """With strict_params a field without a meaning is refused."""
    async with world(strict_params=True) as it:
        status, _, text = await listen(it, model=CHAT, include=["logprobs"], chunking_strategy="auto")
        assert (status, refusal(json.loads(text)).param) == (400, "chunking_strategy")


async def test_own_servers_get_the_form():
    """The form is passed on with the server's name of the model; whole and streamed responses come back."""
    one = accounts("one", kind="openai_compatible")
    async with world(accounts=one, aliases={"whisper-1": "Qwen/Qwen3-ASR-1.7B"}) as it:
        fields = {
            "model": "whisper-1",
            "temperature": "0",
            "odd": ["a", "b"],
            "timestamp_granularities": ["word"],
        }
        status, headers, text = await listen(it, response_format="verbose_json", **fields)
        assert (status, headers["content-type"], json.loads(text)["text"]) == (200, "application/json", TEXT)
        (seen,) = it.emulator.requests
        assert seen.path == "/v1/audio/transcriptions"
        assert seen.body["model"] == "Qwen/Qwen3-ASR-1.7B"
        assert (seen.body["odd[]"], seen.body["file"]) == ("b", WAV)
        _, headers, text = await listen(it, model="whisper-1", stream="true")
        assert headers["content-type"] == "text/event-stream"
        assert events_of(text)[-1]["text"] == TEXT
        await listen(it, TRANSLATIONS, model="whisper-1")
        assert it.emulator.requests[-1].path == "/v1/audio/translations"
        assert it.sound()


@pytest.mark.parametrize(
    "reply",
    [
        ScriptedReply((chunk({"content": "Hel"}),)),
        ScriptedReply((chunk({"content": "Hel"}), CloseConnection())),
        ScriptedReply((chunk({"content": "Hel"}), PauseStep(1), event({"error": {"message": "x"}}))),
    ],
    ids=["its end", "a cut", "an error"],
)
async def test_a_stream_that_fails(autojump_clock, reply):
    """It ends with an error event, and without `transcript.text.done`."""
    async with world() as it:
        it.emulator.script(reply)
        status, _, text = await listen(it, model=CHAT, stream="true")
        assert status == 200
        events = events_of(text.replace("event: error\n", ""))
        assert [one.get("type") for one in events] == ["transcript.text.delta", None]
        assert events[-1]["error"]["message"]
        assert it.sound()


FAILURES = {
    "its own": {"task_status": "FAILED", "code": "InvalidFile.DownloadFailed", "message": "gone"},
    "its file's": {
        "task_status": "SUCCEEDED",
        "results": [{"subtask_status": "FAILED", "code": "X", "message": "gone"}],
    },
    "unknown": {"task_status": "UNKNOWN", "message": "gone"},
    "without a status": {"message": "gone"},
}  # fmt: skip


@pytest.mark.parametrize("output", FAILURES.values(), ids=FAILURES)
async def test_a_task_that_fails(autojump_clock, output):
    """Its error is the client's, not an empty transcript."""
    async with world(**HOSTS) as it:
        it.emulator.file_tasks.outputs["task-1"] = output
        status, _, text = await listen(it, model=FILES)
        assert status in (400, 502)
        assert refusal(json.loads(text)).message
        assert it.sound()


@pytest.mark.parametrize("name", ["upload_hosts", "result_hosts"])
async def test_hosts_that_are_not_allowed(autojump_clock, name):
    """Nothing is sent to a host that only the upstream names."""
    async with world(**{**HOSTS, name: ["files.test"]}) as it:
        status, _, text = await listen(it, model=FILES)
        assert (status, name in text) == (502, True)
        paths = {seen.path for seen in it.emulator.requests}
        assert ("/storage" in paths, "/results/transcript.json" in paths) == (name == "result_hosts", False)


async def test_a_client_that_leaves_ends_the_task(autojump_clock):
    """The polling ends, and the task is cancelled at the API."""
    async with world(**HOSTS) as it:
        await listen(it, model=FILES)
        before = await leftovers(it)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(listen, it, model=FILES))
            await trio.sleep(0.5)  # of the second before the first poll
            assert "task-2" in it.emulator.file_tasks.tasks
            nursery.cancel_scope.cancel()
        await trio.sleep(60)
        assert it.emulator.file_tasks.cancelled == ["task-2"]
        assert it.emulator.file_tasks.tasks["task-2"][1] == 0
        assert await leftovers(it) == before


async def test_a_task_beyond_the_time_of_a_request(autojump_clock):
    """client_request_timeout ends the wait and the task."""
    async with world(**HOSTS, client_request_timeout=2) as it:
        status, _, text = await listen(it, model=FILES)
        assert (status, refusal(json.loads(text)).code) == (504, "request_timeout")
        assert it.emulator.file_tasks.cancelled == ["task-1"]


async def test_polls_that_fail(autojump_clock):
    """A few failures in a row do not lose the task."""
    async with world(**HOSTS) as it:
        it.emulator.file_tasks.failing = 3
        status, _, text = await listen(it, model=FILES)
        assert (status, json.loads(text)["text"]) == (200, TEXT)


async def test_the_native_chat_service():
    """A model that only the native API has is asked there."""
    async with world() as it:
        _, _, text = await listen(it, model="qwen3-asr-flash-us", language="en")
        assert judge(Transcription, json.loads(text)).text == TEXT
        (seen,) = it.emulator.requests
        assert seen.path.endswith("/multimodal-generation/generation")
        assert seen.body["parameters"] == {"asr_options": {"language": "en"}}
        assert "audio" in seen.body["input"]["messages"][0]["content"][0]


def chat_reply(text):
    """Return a whole response of chat."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json_reply({"object": "chat.completion", "choices": choices, "usage": usage})


async def test_a_translated_text():
    """The transcript is translated by one request to a text model."""
    async with world() as it:
        it.emulator.script(chat_reply("Guten Tag."), chat_reply(" Good day. "))
        _, _, text = await listen(it, TRANSLATIONS, model=CHAT, prompt="Names: Qwen.")
        assert judge(Translation, json.loads(text)).text == "Good day."
        seen = it.emulator.requests[-1].body
        assert (seen["model"], seen["messages"][-1]["content"]) == ("qwen-flash", "Guten Tag.")
        assert "Names: Qwen." in seen["messages"][0]["content"]
        assert it.sound()


SENTENCES = [
    {"sentence_id": n, "sentence_end": True, "begin_time": n * 1000, "end_time": n * 1000 + 900, "text": text}
    for n, text in enumerate(["Guten Tag.", "Bis bald."])
]
SPOKEN = json_reply(
    {"output": {"text": "Guten Tag. Bis bald.", "sentences": SENTENCES}, "usage": {"duration": 2}}
)


async def test_translated_subtitles():
    """Sentences are translated line by line and keep their times."""
    async with world() as it:
        it.emulator.script(SPOKEN, chat_reply("1: Good day.\n2: See you."))
        _, _, text = await listen(it, TRANSLATIONS, model=TIMED, response_format="verbose_json")
        body = judge(TranslationVerbose, json.loads(text))
        assert (body.text, body.language) == ("Good day. See you.", "english")
        assert [(one.start, one.end, one.text) for one in body.segments] == [
            (0.0, 0.9, "Good day."), (1.0, 1.9, "See you."),
        ]  # fmt: skip
        assert it.emulator.requests[-1].body["messages"][-1]["content"] == "1: Guten Tag.\n2: Bis bald."


async def test_a_translation_that_leaves_out_a_sentence():
    """It is an error, not a shorter film."""
    async with world() as it:
        it.emulator.script(SPOKEN, chat_reply("1: Good day."))
        status, _, text = await listen(it, TRANSLATIONS, model=TIMED, response_format="srt")
        assert (status, refusal(json.loads(text)).code) == (502, "upstream_invalid_response")


@pytest.mark.parametrize(
    ("settings", "fields", "status"),
    [
        ({"audio_translation_model": "none"}, {}, 404),
        ({}, {"response_format": "diarized_json"}, 400),
        ({}, {"stream": "true"}, 400),
    ],
)
async def test_translations_that_are_refused(settings, fields, status):
    """A setting disables them; speakers and streams are not translated."""
    async with world(**settings) as it:
        found, _, text = await listen(it, TRANSLATIONS, model=TIMED, **fields)
        assert found == status
        assert refusal(json.loads(text)).code in ("unsupported_endpoint", "unsupported_value")
        assert not it.emulator.requests


async def test_speech_is_heard_again():
    """The emulator's speech, in any format that qproxy makes of it, is transcribed to its text."""
    text = "This is a sentence. " * 70
    async with world(ffmpeg="none") as it:
        body = {"model": "qwen3-tts-flash", "input": text, "voice": "alloy", "response_format": "wav"}
        headers = [(b"content-type", b"application/json")]
        raw = json.dumps(body).encode()
        async with it.client.request("POST", "/v1/audio/speech", headers=headers, body=raw) as response:
            sound = await response.read()
        _, _, answer = await listen(it, file=sound, model=CHAT)
        assert json.loads(answer)["text"] == text


async def test_a_large_upload_is_not_in_memory(monkeypatch):
    """A recording beyond 1 MiB is on disk, and is sent on from there in small pieces."""
    sizes = []

    class CountedFile(SpooledTemporaryFile):
        def read(self, *args):
            data = super().read(*args)
            sizes.append(len(data))
            return data

    monkeypatch.setattr(form_data, "SpooledTemporaryFile", CountedFile)
    file = b"ID3" + bytes(range(256)) * 20_000
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        status, _, _ = await listen(it, file=file, model="whisper")
        assert (status, it.emulator.requests[0].body["file"]) == (200, file)
        assert max(sizes) == form_data.PIECE


async def test_the_sdk():
    """openai-python gets every format as its own type, and its streams."""
    async with sdk() as (client, _):
        create = partial(client.audio.transcriptions.create, file=("a.wav", WAV))
        assert (await run(create, model=CHAT)).text == TEXT
        assert await run(create, model=TIMED, response_format="srt") == SRT
        verbose = await run(
            create, model=TIMED, response_format="verbose_json", timestamp_granularities=["word"]
        )
        assert " ".join(word.word for word in verbose.words) == TEXT
        diarized = await run(create, model=TIMED, response_format="diarized_json")
        assert {one.speaker for one in diarized.segments} == {"A", "B"}
        events = await run(
            lambda: list(create(model=CHAT, stream=True, languages=["en"], keywords=["a", "b"]))
        )
        assert events[-1].text == TEXT
        with pytest.deprecated_call():  # of the models that OpenAI has for it
            translation = await run(client.audio.translations.create, file=("a.wav", WAV), model=CHAT)
        assert TEXT in translation.text
