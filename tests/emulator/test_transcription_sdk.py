"""The vendor's own client, dashscope, uploads a recording to the emulator and reads its transcripts."""

import base64
from functools import partial

import requests
import trio
from dashscope import MultiModalConversation
from dashscope.audio.qwen_asr import QwenTranscription
from dashscope.utils.oss_utils import OssUtils

from qproxy.emulator import speech
from tests.emulator.test_dashscope_sdk import emulator, run

__all__ = ["emulator"]
TEXT = "Hello there, this is a test. It has two sentences!"
WAV = speech.wav(speech.samples(TEXT))
FILE_MODEL = "qwen3-asr-flash-filetrans"


async def test_a_recording_as_a_task(emulator, tmp_path):
    """The client's own upload, task, wait and result; a task that has not started is cancelled."""
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    url, _ = await run(emulator, OssUtils.upload, FILE_MODEL, str(path))
    headers = {"X-DashScope-OssResourceResolve": "enable"}
    call = partial(QwenTranscription.async_call, FILE_MODEL, url, headers=headers, enable_words=True)
    task = await run(emulator, call)
    assert task.output.task_status == "PENDING"
    states = [await run(emulator, QwenTranscription.fetch, task.output.task_id) for _ in range(3)]
    assert [state.output.task_status for state in states] == ["PENDING", "RUNNING", "SUCCEEDED"]
    result = await trio.to_thread.run_sync(requests.get, states[-1].output.result["transcription_url"])
    (transcript,) = result.json()["transcripts"]
    assert transcript["text"] == TEXT
    assert [one["text"] for one in transcript["sentences"]] == [TEXT[:28], TEXT[29:]]
    assert transcript["sentences"][1]["words"][-1]["punctuation"] == "!"
    other = await run(emulator, call)
    await run(emulator, QwenTranscription.cancel, other.output.task_id)
    assert emulator.file_tasks.cancelled == [other.output.task_id]


async def test_a_recording_at_once(emulator):
    """Native generation answers with the text, its language and the seconds."""
    audio = f"data:audio/wav;base64,{base64.b64encode(WAV).decode()}"
    messages = [{"role": "user", "content": [{"audio": audio}]}]
    answer = await run(emulator, MultiModalConversation.call, "qwen3-asr-flash", messages=messages)
    message = answer.output.choices[0].message
    assert (message.content, answer.usage["seconds"]) == ([{"text": TEXT}], 1)
    assert message.annotations[0]["language"] == "en"
