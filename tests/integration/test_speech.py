"""Speech end to end: both families of models, formats, events, failures, disconnects, own servers."""

import base64
import io
import json
import stat
import sys
import wave

import pytest
import trio
import trio.testing

from qproxy.emulator import speech as emulated
from qproxy.emulator.faults import HANG, SSE, CloseConnection, ScriptedReply, event
from tests.helpers import accounts, h1, world
from tests.integration.test_openai_sdk import run, sdk
from tests.openai_types import refusal

PATH = "/v1/audio/speech"
MODEL = "qwen3-tts-flash"
TEXT = "Hello there, this is a test."
BODY = {"model": MODEL, "input": TEXT, "voice": "alloy"}


async def speak(it, **fields):
    """Return (status, headers, bytes) of a response."""
    raw = json.dumps({**BODY, **fields}).encode()
    headers = [(b"content-type", b"application/json")]
    async with it.client.request("POST", PATH, headers=headers, body=raw) as response:
        data = await response.read()
    return response.status, {name.decode(): value.decode() for name, value in response.headers}, data


async def test_a_streamed_wav_file():
    """The sound is the model's, behind a head of a stream, with its type; no file is downloaded."""
    async with world(ffmpeg="none") as it:
        status, headers, data = await speak(it, response_format="wav")
        assert (status, headers["content-type"]) == (200, "audio/wav")
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert data[44:] == emulated.samples(TEXT)
        (seen,) = it.emulator.requests
        assert seen.body["input"] == {"text": TEXT, "voice": "Cherry"}
        assert it.sound()


async def test_samples_alone():
    """`pcm` has no head."""
    async with world(ffmpeg="none") as it:
        _, headers, data = await speak(it, response_format="pcm")
        assert (headers["content-type"], data) == ("audio/pcm", emulated.samples(TEXT))


async def test_a_long_text_is_one_sound():
    """Parts are requested one after another, and joined behind one head."""
    text = "This is a sentence. " * 70
    async with world(ffmpeg="none") as it:
        _, _, data = await speak(it, input=text, response_format="wav")
        parts = [seen.body["input"]["text"] for seen in it.emulator.requests]
        assert "".join(parts) == text
        assert all(len(part) <= 600 for part in parts)
        assert data[44:] == b"".join(map(emulated.samples, parts))
        assert it.sound()


async def test_the_synthesizers_own_formats():
    """mp3 is asked of the model; a rate and an instruction go with it."""
    voices = {"alloy": "longanhuan_v3.6"}
    async with world(ffmpeg="none", speech_voices=voices) as it:
        _, headers, data = await speak(
            it, model="qwen-audio-3.0-tts-flash", response_format="mp3", speed=1.5, instructions="Softly."
        )
        assert (headers["content-type"], data) == ("audio/mpeg", emulated.samples(TEXT))
        (seen,) = it.emulator.requests
        assert seen.path == "/api/v1/services/audio/tts/SpeechSynthesizer"
        assert seen.body["input"] == {
            "text": TEXT, "voice": "longanhuan_v3.6", "rate": 1.5, "instruction": "Softly.", "format": "mp3",
            "sample_rate": 24_000,
        }  # fmt: skip


async def test_sound_in_events():
    """`stream_format: sse` has a delta for each piece, and the characters at the end."""
    async with world(ffmpeg="none") as it:
        _, headers, data = await speak(it, response_format="pcm", stream_format="sse")
        assert headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n\n") if line]
        sound = b"".join(base64.b64decode(item["audio"]) for item in events[:-1])
        assert sound == emulated.samples(TEXT)
        assert {item["type"] for item in events[:-1]} == {"speech.audio.delta"}
        count = len(TEXT)
        usage = {"input_tokens": count, "output_tokens": 0, "total_tokens": count}
        assert events[-1] == {"type": "speech.audio.done", "usage": usage}


async def test_the_first_piece_is_sent_at_once(nursery):
    """The head and the first sound reach the client while the model still speaks."""
    async with world(ffmpeg="none") as it:
        piece = emulated._event(b"ab" * 100, "", {}, "null")
        it.emulator.script(ScriptedReply((event(piece), HANG), content_type=SSE))
        raw = json.dumps({**BODY, "response_format": "pcm"}).encode()
        headers = [(b"content-type", b"application/json")]
        async with it.client.request("POST", PATH, headers=headers, body=raw) as response:
            assert await response.receive() == b"ab" * 100
        with trio.fail_after(5):
            await it.emulator.requests[0].disconnected.wait()


async def received(client, body):
    """Return the bytes that a connection receives until it is closed."""
    await client.send("POST", PATH, body, [(b"content-type", b"application/json")])
    data = b""
    while piece := await client.stream.receive_some(65536):
        data += piece
    return data


CODER = f"""#!{sys.executable}
import sys
data = sys.stdin.buffer.read()
sys.stdout.buffer.write(b"[" + " ".join(sys.argv[1:]).encode() + b"]" + str(len(data)).encode())
"""


@pytest.fixture
def ffmpeg(tmp_path):
    """Return a program that writes its options and the number of bytes of its input."""
    path = tmp_path / "ffmpeg"
    path.write_text(CODER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_ffmpeg_makes_the_other_formats(ffmpeg):
    """An open format is mp3; the program gets the samples, their rate and the speed."""
    async with world(ffmpeg=ffmpeg) as it:
        _, headers, data = await speak(it, speed=4.0)
        assert headers["content-type"] == "audio/mpeg"
        options, _, size = data.decode().partition("]")
        assert "-f s16le -ar 24000 -ac 1 -i pipe:0 -af atempo=2,atempo=2 -f mp3 pipe:1" in options
        assert int(size) == len(emulated.samples(TEXT))
        assert it.sound()


@pytest.mark.parametrize("text", ["import sys\nsys.exit(3)", "import os\nos.kill(os.getpid(), 9)"])
async def test_a_failure_of_ffmpeg_ends_the_connection(tmp_path, text):
    """A client never takes half of the sound for all."""
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\n{text}\n")
    program.chmod(0o700)
    async with world(ffmpeg=str(program)) as it, h1(it.app) as client:
        body = json.dumps(BODY).encode()
        data = await received(client, body)
        assert data.startswith(b"HTTP/1.1 200")
        assert not data.endswith(b"0\r\n\r\n")
        assert it.sound()


async def test_a_file_behind_a_link():
    """A model that gives only a link has its file downloaded, from an allowed host alone."""
    url = "http://one.test/results/speech.wav?text=abc"
    linked = emulated._event(b"", url, {"characters": 3}, "stop")
    async with world(ffmpeg="none", result_hosts=["http://one.test"]) as it:
        it.emulator.script(ScriptedReply((event(linked),), content_type=SSE))
        _, _, data = await speak(it, response_format="pcm")
        assert data == emulated.samples("abc")
    async with world(ffmpeg="none") as it:
        it.emulator.script(*[ScriptedReply((event(linked),), content_type=SSE)] * 3)
        status, _, data = await speak(it, response_format="pcm")
        assert status == 502
        assert "result_hosts" in refusal(json.loads(data)).message


FAULTS = {
    "an unknown voice": ({"voice": "Nobody"}, 400),
    "an unknown model": ({"model": "qwen3-tts-none"}, 404),
}


@pytest.mark.parametrize(("fields", "status"), FAULTS.values(), ids=FAULTS)
async def test_errors_before_the_first_sound_have_their_status(fields, status):
    """They are OpenAI's errors."""
    async with world(ffmpeg="none") as it:
        found, _, data = await speak(it, **fields)
        assert found == status
        refusal(json.loads(data))
        assert it.sound()


async def test_another_account_speaks_after_a_failure():
    """Before the first sound a failure is retried elsewhere."""
    broken = ScriptedReply((b"{}",), status=500)
    async with world(ffmpeg="none", accounts=accounts("one", "two")) as it:
        it.emulator.script(broken)
        status, _, data = await speak(it, response_format="pcm")
        assert (status, data) == (200, emulated.samples(TEXT))


CUT = {"a closed connection": CloseConnection(), "an end without a stop": b""}


@pytest.mark.parametrize("step", CUT.values(), ids=CUT)
async def test_a_truncated_stream_is_never_whole(step):
    """The connection ends without the end of the body; in events there is an error event."""
    piece = event(emulated._event(b"ab" * 100, "", {}, "null"))
    async with world(ffmpeg="none") as it, h1(it.app) as client:
        it.emulator.script(ScriptedReply((piece, step), content_type=SSE))
        body = json.dumps({**BODY, "response_format": "pcm"}).encode()
        data = await received(client, body)
        assert b"ab" * 100 in data
        assert not data.endswith(b"0\r\n\r\n")
        it.emulator.script(ScriptedReply((piece, step), content_type=SSE))
        _, _, text = await speak(it, response_format="pcm", stream_format="sse")
        assert b"event: error\ndata: " in text
        assert it.sound()


INVALID = {
    "no input": ({"input": None}, "input"),
    "an empty text": ({"input": " \n"}, "input"),
    "too long": ({"input": "a" * 100_001}, "input"),
    "no voice": ({"voice": None}, "voice"),
    "an object without an id": ({"voice": {}}, "voice.id"),
    "a format": ({"response_format": "midi"}, "response_format"),
    "a speed": ({"speed": 5}, "speed"),
    "a stream format": ({"stream_format": "x"}, "stream_format"),
}


@pytest.mark.parametrize(("fields", "param"), INVALID.values(), ids=INVALID)
async def test_invalid_fields_are_named(fields, param):
    """An invalid field is a 400 that names it, before any upstream."""
    async with world(ffmpeg="none") as it:
        status, _, data = await speak(it, **fields)
        assert (status, refusal(json.loads(data)).param) == (400, param)
        assert it.emulator.requests == []


async def test_an_own_server_gets_the_clients_fields():
    """Unknown fields too; its bytes and type come back."""
    async with world(accounts=accounts("one", kind="openai_compatible")) as it:
        _, headers, data = await speak(it, model="kokoro", voice="af_heart", task_type="x", speed=None)
        assert (headers["content-type"], data) == ("audio/wav", emulated.wav(emulated.samples(TEXT)))
        assert it.emulator.requests[0].body == {
            "model": "kokoro", "input": TEXT, "voice": "af_heart", "task_type": "x",
        }  # fmt: skip


async def test_the_ledger_counts_characters(tmp_path):
    """They are a unit of their own, with their price."""
    async with world(ffmpeg="none", ledger=str(tmp_path / "ledger.sqlite3")) as it:
        await speak(it, response_format="pcm")
        assert it.server.state.ledger is not None
        (row,) = await it.server.state.ledger.recent_requests(5)
        assert (row["endpoint"], row["characters"], row["outcome"]) == ("/audio/speech", len(TEXT), "ok")


async def test_openai_python():
    """The SDK reads the sound whole and in pieces."""

    def stream(client):
        speech = client.audio.speech.with_streaming_response
        with speech.create(model=MODEL, input=TEXT, voice="alloy", response_format="pcm") as response:
            return b"".join(response.iter_bytes(1024))

    async with sdk() as (client, _):
        assert await run(stream, client) == emulated.samples(TEXT)
        whole = await run(
            client.audio.speech.create, model=MODEL, input=TEXT, voice="alloy", response_format="wav"
        )
        assert whole.content[44:] == emulated.samples(TEXT)
