"""Transcripts of the emulated Qwen: the text in its own speech (`spoken_text`), else the length of the sound.

Each sentence takes the time of its characters, and every second one has another speaker. In the forms of
Model Studio's four services and of own servers, with their refusals: the length and the size of a recording,
a missing format, a task that is submitted as none. A task is done when it is asked for the third time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

from qproxy.bootstrap.models import package_catalog
from qproxy.emulator import native, spoken_text
from qproxy.emulator.errors import ApiError
from qproxy.emulator.faults import DONE, SSE, ScriptedReply, event, json_reply
from qproxy.emulator.speech import RATE, SECONDS_PER_CHARACTER
from qproxy.wire.transcription import file_task
from qproxy.wire.transcription.audio import describe

STORAGE_PATH = "/storage"
RESULT_PATH = "/results/transcript.json"
MAX_BASE64 = 10 * 1024 * 1024
SECONDS = (1, 300)
TOKENS_PER_SECOND = 25
SECONDS_STREAMED = 60
"""Shorter recordings are not streamed by the recognition service."""
_SENTENCE = re.compile(r"[^.!?]++[.!?]*+\s*+|[.!?]++\s*+")
_WORD = re.compile(r"\S++")
_PUNCTUATION = ".,!?"


class Speech:
    """The text of a recording."""

    def __init__(self, data: bytes) -> None:
        found = list(spoken_text.find(data))
        audio = describe(data[:4096], len(data), "")
        self.seconds = len(data) / (2 * RATE) if audio.seconds is None else audio.seconds
        self.text = "".join(part.text for part in found) or f"A sound of {self.seconds:.1f} seconds."
        self._parts = found or [spoken_text.SpokenText(self.text, 0)]

    def sentences(self) -> list[dict[str, Any]]:
        """The sentences, with the times of their words in milliseconds."""
        found: list[dict[str, Any]] = []
        for part in self._parts:
            for match in _SENTENCE.finditer(part.text):
                start = part.start * 1000 // RATE + _milliseconds(match.start())
                found.append(_sentence(len(found), match[0].strip(), start))
        return found


def _milliseconds(characters: int) -> int:
    return round(characters * SECONDS_PER_CHARACTER * 1000)


def _sentence(number: int, text: str, start: int) -> dict[str, Any]:
    words = [
        {
            "text": (word := match[0].rstrip(_PUNCTUATION)),
            "punctuation": match[0][len(word) :],
            "begin_time": start + _milliseconds(match.start()),
            "end_time": start + _milliseconds(match.end()),
            "fixed": True,
        }
        for match in _WORD.finditer(text)
    ]
    return {
        "sentence_id": number + 1,
        "sentence_end": True,
        "begin_time": start,
        "end_time": start + _milliseconds(len(text)),
        "text": text,
        "channel_id": 0,
        "speaker_id": None,
        "words": words,
    }


def _refuse(message: str, code: str = "InvalidParameter", status: int = 400) -> ApiError:
    return ApiError(status, message, code)


def _hear(uri: str) -> Speech:
    """Return the speech in a data URI. Raises ApiError."""
    head, _, data = uri.partition(";base64,")
    if not head.startswith("data:"):
        raise _refuse("The file cannot be downloaded.", "InvalidFile.DownloadFailed")
    if len(data) > MAX_BASE64:
        raise _refuse("The file is too large.", "InvalidFile.Size")
    speech = Speech(base64.b64decode(data))
    if not SECONDS[0] <= speech.seconds <= SECONDS[1]:
        raise _refuse("Audio length must be between 1s and 300s", "InvalidFile.AudioLengthError")
    return speech


def _usage(speech: Speech) -> dict[str, Any]:
    heard, written = int(speech.seconds * TOKENS_PER_SECOND), len(speech.text.split())
    return {
        "prompt_tokens": heard,
        "completion_tokens": written,
        "total_tokens": heard + written,
        "prompt_tokens_details": {"audio_tokens": heard, "text_tokens": 0},
        "completion_tokens_details": {"text_tokens": written},
        "seconds": int(speech.seconds),
    }


def chat(seen: Any) -> ScriptedReply:
    """The answer of the compatible mode, whole or streamed."""
    body = seen.body
    (part,) = body["messages"][-1]["content"]
    speech = _hear(part["input_audio"]["data"])
    language = (body.get("asr_options") or {}).get("language", "en")
    notes = [{"type": "audio_info", "language": language, "emotion": "neutral"}]
    about = {"id": "chatcmpl-emu-1", "created": 1, "model": body["model"]}
    if not body.get("stream"):
        message = {"role": "assistant", "content": speech.text, "annotations": notes}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return json_reply({**about, "object": "chat.completion", "choices": choices, "usage": _usage(speech)})
    chunk = {**about, "object": "chat.completion.chunk"}
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"role": None, "content": word, "annotations": notes} for word in _pieces(speech.text)]
    steps = [event({**chunk, "choices": [_choice(delta, None)]}) for delta in deltas]
    steps.append(event({**chunk, "choices": [_choice({"role": None}, "stop")]}))
    if (body.get("stream_options") or {}).get("include_usage"):
        steps.append(event({**chunk, "choices": [], "usage": _usage(speech)}))
    return ScriptedReply((*steps, DONE), content_type=SSE)


def _pieces(text: str) -> list[str]:
    return re.findall(r"\S++\s*+|\s++", text)


def _choice(delta: Any, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


def generation(seen: Any) -> ScriptedReply:
    """The answer of native generation, in the form of the model's service."""
    body = seen.body
    spec = package_catalog().get(body["model"])
    (part,) = body["input"]["messages"][-1]["content"]
    if spec.transcription != "recognition":
        speech = _hear(part["audio"])
        message = {"role": "assistant", "content": [{"text": speech.text}]}
        notes = [{"type": "audio_info", "language": "en", "emotion": "neutral"}]
        choices = [{"finish_reason": "stop", "message": {**message, "annotations": notes}}]
        return json_reply(
            {"output": {"choices": choices}, "usage": {"seconds": int(speech.seconds)}, "request_id": "emu-1"}
        )
    parameters = body["parameters"]
    if not parameters.get("format"):
        raise _refuse("Required parameter(s) missing or invalid: format")
    speech = _hear(part["input_audio"]["data"])
    return _recognition(seen, speech, diarized=bool(parameters.get("speaker_diarization_enabled")))


def _recognition(seen: Any, speech: Speech, *, diarized: bool) -> ScriptedReply:
    """The sentences, one an event in a stream; whole, the last one or all with their speakers."""
    sentences = speech.sentences()
    if diarized:
        sentences = [{**one, "speaker_id": number % 2} for number, one in enumerate(sentences)]
    usage = {"duration": int(speech.seconds)}
    if seen.headers.get("x-dashscope-sse") != "enable" or speech.seconds < SECONDS_STREAMED:
        output: dict[str, Any] = {"text": speech.text, "sentence": sentences[-1]}
        if diarized:
            output["sentences"] = sentences
        return json_reply({"output": output, "usage": usage, "request_id": "emu-1"})
    events, text = [], ""
    for number, sentence in enumerate(sentences, 1):
        begun = {**sentence, "sentence_end": False, "text": sentence["text"][:4]}
        events.append({"output": {"text": text + begun["text"], "sentence": begun}, "request_id": "emu-1"})
        text += (" " if text else "") + sentence["text"]
        whole = {"text": text, "sentence": sentence}
        if diarized:
            whole["sentences"] = sentences[:number]
        events.append({"output": whole, "usage": usage, "request_id": "emu-1"})
    return ScriptedReply(tuple(native.event(one, n) for n, one in enumerate(events, 1)), content_type=SSE)


def own_server(seen: Any) -> ScriptedReply:
    """The answer of an own server such as vLLM: json, text or verbose_json, or events."""
    form = seen.body
    speech = Speech(form["file"])
    if form.get("stream") == "true":
        deltas = [event({"type": "transcript.text.delta", "delta": piece}) for piece in _pieces(speech.text)]
        last = event({"type": "transcript.text.done", "text": speech.text})
        return ScriptedReply((*deltas, last, DONE), content_type=SSE)
    format = form.get("response_format", "json")
    if format == "text":
        return ScriptedReply((speech.text.encode(),), content_type="text/plain; charset=utf-8")
    if format == "json":
        return json_reply(
            {"text": speech.text, "usage": {"type": "duration", "seconds": int(speech.seconds)}}
        )
    if format == "verbose_json":
        about = {"language": "en", "duration": speech.seconds, "text": speech.text, "segments": []}
        return json_reply({"task": "transcribe", **about})
    raise _refuse(f"Currently do not support response_format: {format}", "BadRequestError")


class FileTasks:
    """Uploaded recordings, and tasks that transcribe them."""

    def __init__(self) -> None:
        self.uploads: dict[str, bytes] = {}
        """By key."""
        self.tasks: dict[str, tuple[dict[str, Any], int]] = {}
        """Requests by the task's id, and how often each was asked for."""
        self.cancelled: list[str] = []
        self.outputs: dict[str, Any] = {}
        """The states of tasks, in place of their results."""
        self.failing = 0
        """Number of the next polls that fail."""

    def post(self) -> dict[str, Callable[[Any], ScriptedReply]]:
        """The services at the paths of models."""
        return {file_task.SUBMIT: self._submit}

    def public_reply(self, seen: Any) -> ScriptedReply | None:
        """The answer of the storage, which takes no token, None for another path. Raises ApiError."""
        if seen.method == "POST" and seen.path == STORAGE_PATH:
            return self._upload(seen)
        return self._result(seen) if seen.method == "GET" and seen.path == RESULT_PATH else None

    def reply(self, seen: Any) -> ScriptedReply | None:
        """The answer for a policy or a task, None for another path. Raises ApiError."""
        if seen.method == "GET" and seen.path == file_task.UPLOADS:
            return self._policy(seen)
        prefix = f"{file_task.TASKS}/"
        if not seen.path.startswith(prefix):
            return None
        id, _, verb = seen.path.removeprefix(prefix).partition("/")
        if id not in self.tasks:
            raise _refuse(f"The task {id} does not exist.", "TaskNotFound", 404)
        return self._cancel(id) if verb == "cancel" else self._poll(seen, id)

    def _policy(self, seen: Any) -> ScriptedReply:
        if seen.query.get("action") != "getPolicy" or not seen.query.get("model"):
            raise _refuse("action and model are required")
        data = {
            "upload_host": f"http://{seen.headers.get('host')}{STORAGE_PATH}",
            "upload_dir": f"dashscope-instant/emu/{len(self.uploads)}",
            "oss_access_key_id": "emu-key",
            "signature": "emu-signature",
            "policy": "emu-policy",
            "x_oss_object_acl": "private",
            "x_oss_forbid_overwrite": "true",
            "expire_in_seconds": 300,
            "max_file_size_mb": 2048,
        }
        return json_reply({"data": data, "request_id": "emu-1"})

    def _upload(self, seen: Any) -> ScriptedReply:
        form = seen.body
        if (form["policy"], form["Signature"]) != ("emu-policy", "emu-signature"):
            raise _refuse("The policy is not that of this storage.", "AccessDenied", 403)
        self.uploads[form["key"]] = form["file"]
        return ScriptedReply(content_type="application/xml")

    def _submit(self, seen: Any) -> ScriptedReply:
        body = seen.body
        if seen.headers.get("x-dashscope-async") != "enable":
            raise _refuse("current user api does not support synchronous calls.", "AccessDenied", 403)
        inputs = body["input"]
        url = inputs["file_url"] if _is_single(body) else inputs["file_urls"][0]
        known = url.removeprefix("oss://") in self.uploads
        if not known or seen.headers.get("x-dashscope-ossresourceresolve") != "enable":
            raise _refuse("The file cannot be downloaded.", "InvalidFile.DownloadFailed")
        id = f"task-{len(self.tasks) + 1}"
        self.tasks[id] = (body, 0)
        return json_reply({"output": {"task_id": id, "task_status": "PENDING"}, "request_id": "emu-1"})

    def _poll(self, seen: Any, id: str) -> ScriptedReply:
        if self.failing:
            self.failing -= 1
            raise _refuse("The service is busy.", "InternalError", 500)
        body, polls = self.tasks[id]
        self.tasks[id] = (body, polls + 1)
        output: dict[str, Any] = {
            "task_id": id,
            "task_status": ("PENDING", "RUNNING", "SUCCEEDED")[min(polls, 2)],
        }
        if id in self.cancelled:
            output["task_status"] = "CANCELED"
        if id in self.outputs:
            return json_reply({"output": self.outputs[id], "request_id": "emu-1"})
        answer: dict[str, Any] = {"output": output, "request_id": "emu-1"}
        if output["task_status"] == "SUCCEEDED":
            url = f"http://{seen.headers.get('host')}{RESULT_PATH}?task={id}"
            result = {"transcription_url": url, "subtask_status": "SUCCEEDED"}
            output |= {"result": {"transcription_url": url}} if _is_single(body) else {"results": [result]}
            answer["usage"] = {"seconds": int(Speech(self._file(body)).seconds)}
        return json_reply(answer)

    def _cancel(self, id: str) -> ScriptedReply:
        self.cancelled.append(id)
        return json_reply({"request_id": "emu-1"})

    def _file(self, body: Any) -> bytes:
        inputs = body["input"]
        url = inputs.get("file_url") or inputs["file_urls"][0]
        return self.uploads[url.removeprefix("oss://")]

    def _result(self, seen: Any) -> ScriptedReply:
        body, _ = self.tasks[seen.query["task"]]
        speech, parameters = Speech(self._file(body)), body["parameters"]
        sentences = list(_task_sentences(speech, parameters))
        transcripts = [{"channel_id": 0, "text": speech.text, "sentences": sentences}]
        return json_reply({"file_url": "", "audio_info": {}, "transcripts": transcripts})


def _is_single(body: Any) -> bool:
    """Return whether the model takes one file a task."""
    return package_catalog().get(body["model"]).transcription == "file"


def _task_sentences(speech: Speech, parameters: Any) -> Iterator[dict[str, Any]]:
    for number, sentence in enumerate(speech.sentences()):
        found = {name: sentence[name] for name in ("sentence_id", "begin_time", "end_time", "text")}
        if parameters.get("diarization_enabled"):
            yield {**found, "speaker_id": number % 2, "words": sentence["words"]}
        else:
            words = sentence["words"] if parameters.get("enable_words") else []
            yield {**found, "language": "en", "emotion": "neutral", "words": words}
