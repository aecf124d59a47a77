"""Audio of omni models through chat: in, out, streamed and whole, checked by OpenAI's types."""

import base64
import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qproxy.emulator.realtime_session import OUTPUT_RATE, describe_sound, tone
from tests.emulator.test_omni_audio import wav
from tests.helpers import accounts, world

MODEL = "qwen3.5-omni-plus"
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "Cherry", "format": "wav"}}
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Well?"}], **SPOKEN}
TONE = "0.30 s of sound at about 440 Hz"


async def test_a_spoken_response_is_streamed():
    """Every audio chunk arrives as the model sent it, and OpenAI's type accepts the chunks."""
    async with world() as it:
        status, text = await it.stream(BODY)
        assert status == 200
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk)
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        pieces = [delta["audio"] for delta in deltas if delta.get("audio")]
        sound = b"".join(base64.b64decode(piece["data"]) for piece in pieces if "data" in piece)
        assert describe_sound(sound, OUTPUT_RATE) == TONE
        assert {(p["id"], p["expires_at"]) for p in pieces if "data" in p} == {("audio_emu1", 1_760_003_600)}
        content = "".join(delta.get("content") or "" for delta in deltas)
        assert content == "".join(piece.get("transcript", "") for piece in pieces)
        sent = it.emulator.requests[-1].body
        assert {name: sent[name] for name in SPOKEN} == SPOKEN


@pytest.mark.parametrize("policy", ["always", "requested"])
async def test_a_spoken_response_is_whole(policy):
    """The model streams only; the message has all of the audio, and usage has its tokens."""
    async with world(stream_upstream=policy) as it:
        status, _, answer = await it.post(BODY)
        assert status == 200, answer
        completion = ChatCompletion.model_validate(answer)
        message = completion.choices[0].message
        assert message.audio is not None
        assert message.audio.transcript == message.content
        assert (message.audio.id, message.audio.expires_at) == ("audio_emu1", 1_760_003_600)
        assert describe_sound(base64.b64decode(message.audio.data), OUTPUT_RATE) == TONE
        assert answer["usage"]["completion_tokens_details"]["audio_tokens"] == 7


async def test_audio_is_sent_and_an_earlier_response_s_is_left_out():
    """Bare base64 becomes a data URI, as the model requires; a response's `audio` is dropped and named."""
    data = wav(tone(440, 0.5, 16_000)).partition(",")[2]
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    async with world() as it:
        before = [*BODY["messages"], {"role": "assistant", "content": "Yes.", "audio": {"id": "audio_emu1"}}]
        status, headers, answer = await it.post(
            {**BODY, "messages": [*before, {"role": "user", "content": [part]}]}
        )
        assert status == 200, answer
        assert "I heard 0.50 s of sound at about 440 Hz." in answer["choices"][0]["message"]["content"]
        assert "audio" in headers["x-qproxy-ignored-params"]


@pytest.mark.parametrize("model", ["qwen3.8-omni-flash", "qwen3.7-plus"])
async def test_a_model_without_audio_output_is_a_clear_error(model):
    """Without audio output the upstream gets no request."""
    async with world(accounts=accounts("one")) as it:
        status, _, answer = await it.post({**BODY, "model": model})
        assert (status, answer["error"]["param"]) == (400, "modalities")
        assert not [seen for seen in it.emulator.requests if seen.path.endswith("/completions")]
