"""Model Studio's transcription of files: an upload to its storage, a task, and a result behind a link.

    `GET /api/v1/uploads?action=getPolicy&model=`  where to upload to, and the fields of the form
    `POST {upload_host}`                           the form; the file is then `oss://{key}`
    `POST .../audio/asr/transcription`             the task's id
    `GET /api/v1/tasks/{id}`                       its state, in the end the link
    `POST /api/v1/tasks/{id}/cancel`               ends a task that has not started

Source: Model Studio's pages get-temporary-file-url, qwen-asr-api-reference, fun-asr-recorded-speech.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from qproxy.wire import json_codec
from qproxy.wire.dialects import UpstreamTarget, dashscope
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON
from qproxy.wire.form_data import FormBody, FormPart, boundary_of
from qproxy.wire.http_request import HTTPRequest, Upload
from qproxy.wire.transcription.audio import TYPES
from qproxy.wire.transcription.plan import TranscriptionPlan
from qproxy.wire.transcription.transcript import Transcript
from qproxy.wire.transcription.upstream import (
    invalid,
    join_texts,
    parse_counts,
    parse_number,
    parse_sentence,
)

UPLOADS = "/api/v1/uploads"
SUBMIT = "/api/v1/services/audio/asr/transcription"
TASKS = "/api/v1/tasks"
_ASYNC = ((b"x-dashscope-async", b"enable"), (b"x-dashscope-ossresourceresolve", b"enable"))
_FIELDS = {
    "OSSAccessKeyId": "oss_access_key_id",
    "Signature": "signature",
    "policy": "policy",
    "x-oss-object-acl": "x_oss_object_acl",
    "x-oss-forbid-overwrite": "x_oss_forbid_overwrite",
}
"""Fields of the upload's form, by those of its policy."""
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """The place to upload to."""

    host: str
    """A URL."""
    directory: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TaskState:
    """The state of a task."""

    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED, CANCELED or UNKNOWN."""
    url: JSON = None
    """Of the result."""
    seconds: float | None = None
    code: str | None = None
    message: str = ""

    @property
    def is_running(self) -> bool:
        return self.status in ("PENDING", "RUNNING")


def policy_request(target: UpstreamTarget) -> HTTPRequest:
    """Return the request for an upload's policy."""
    query = urlencode({"action": "getPolicy", "model": target.model})
    url = f"{dashscope.api_root(target.base_url)}{UPLOADS}?{query}"
    return HTTPRequest("GET", url, target.with_authorization())


def parse_policy(data: dict[str, JSON]) -> UploadPolicy:
    """Return the policy in a response. Raises UpstreamError."""
    values = data.get("data")
    values = values if isinstance(values, dict) else {}
    host, directory = values.get("upload_host"), values.get("upload_dir")
    fields = {name: values.get(field) for name, field in _FIELDS.items()}
    if not all(isinstance(value, str) and value for value in (host, directory, *fields.values())):
        raise invalid("a policy of uploads without its fields")
    return UploadPolicy(str(host), str(directory), {name: str(value) for name, value in fields.items()})


def upload_request(
    policy: UploadPolicy, url: str, name: str, plan: TranscriptionPlan, file: Upload
) -> tuple[HTTPRequest, str]:
    """Return the request that uploads a file to `url`, and the file's address."""
    key = f"{policy.directory}/{name}.{plan.audio.format}"
    fields = {**policy.fields, "key": key, "success_action_status": "200"}
    parts = [FormPart(field, value) for field, value in fields.items()]
    parts.append(FormPart("file", file, f"{name}.{plan.audio.format}", TYPES[plan.audio.format]))
    form = FormBody(parts, boundary_of(key))
    headers = ((b"content-type", form.content_type.encode()),)
    return HTTPRequest("POST", url, headers, upload=form), f"oss://{key}"


def submit_request(plan: TranscriptionPlan, address: str, target: UpstreamTarget) -> HTTPRequest:
    """Return the request that starts the task."""
    file: dict[str, JSON] = {"file_url": address}
    if plan.service == "files":
        file = {"file_urls": [address]}
    body = {"model": target.model, "input": file, "parameters": plan.parameters}
    url = dashscope.api_root(target.base_url) + SUBMIT
    return HTTPRequest("POST", url, target.with_authorization(*_ASYNC), json_codec.dumps(body))


def parse_task_id(data: dict[str, JSON]) -> str:
    """Return the id of a new task. Raises UpstreamError."""
    output = data.get("output")
    id = output.get("task_id") if isinstance(output, dict) else None
    if not isinstance(id, str) or not _TASK_ID.fullmatch(id):
        raise invalid("a task without an id")
    return id


def poll_request(task: str, target: UpstreamTarget) -> HTTPRequest:
    """Return the request for a task's state."""
    url = f"{dashscope.api_root(target.base_url)}{TASKS}/{quote(task)}"
    return HTTPRequest("GET", url, target.with_authorization())


def cancel_request(task: str, target: UpstreamTarget) -> HTTPRequest:
    """Return the request that cancels a task, which is refused once it runs."""
    url = f"{dashscope.api_root(target.base_url)}{TASKS}/{quote(task)}/cancel"
    return HTTPRequest("POST", url, target.with_authorization())


def parse_state(data: dict[str, JSON]) -> TaskState:
    """Return the state in a response. Raises UpstreamError."""
    output = data.get("output")
    if not isinstance(output, dict) or not isinstance(output.get("task_status"), str):
        raise invalid("a task without a status")
    status, results = output["task_status"], output.get("results")
    result = output.get("result")
    if isinstance(results, list) and results:  # one for each file
        result = results[0]
    result = result if isinstance(result, dict) else {}
    if result.get("subtask_status") == "FAILED":
        status = "FAILED"
    _, seconds = parse_counts(data.get("usage"))
    failed = result if result.get("code") else output
    return TaskState(
        status,
        result.get("transcription_url"),
        seconds,
        str(failed["code"]) if failed.get("code") else None,
        str(failed.get("message") or ""),
    )


def parse_result(body: bytes, seconds: float | None) -> Transcript:
    """Return the transcript in the file that a task's result links to. Raises UpstreamError."""
    try:
        data = json_codec.loads(body)
    except ValueError:
        raise invalid("a transcript that is not JSON") from None
    transcripts = data.get("transcripts") if isinstance(data, dict) else None
    if not isinstance(transcripts, list) or not all(isinstance(one, dict) for one in transcripts):
        raise invalid("a file without transcripts")
    lists = [found for one in transcripts if isinstance(found := one.get("sentences"), list)]
    items = [item for found in lists for item in found if isinstance(item, dict)]
    sentences = sorted(map(parse_sentence, items), key=lambda sentence: sentence.start)
    language = next((item["language"] for item in items if isinstance(item.get("language"), str)), None)
    text = join_texts(str(one.get("text") or "") for one in transcripts)
    return Transcript(text, language, sentences, seconds or _length(data))


def _length(data: dict[str, JSON]) -> float | None:
    """Return the seconds of the recording, by the properties of the file."""
    properties = data.get("properties")
    milliseconds = properties.get("original_duration_in_milliseconds") if isinstance(properties, dict) else 0
    length = parse_number(milliseconds)
    return length / 1000 if length else None


def task_failure(state: TaskState) -> UpstreamError:
    """Return the error of a task that ended without a result or a reason."""
    message = (
        f"The upstream's task ended as {state.status or 'unknown'}: {state.message or 'no reason given'}."
    )
    return UpstreamError(message[:2000], code="upstream_error")
