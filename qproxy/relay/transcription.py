"""The transcript of one recording: of a service that answers at once, of a task, or an own server's response.

Which of them it is depends on the plan and on the account that is chosen; the first text of a stream is
awaited, so that an error before it has its true status and another account may be tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import TypeAlias

import trio

from qproxy.accounts import Account
from qproxy.auth import Credential
from qproxy.relay.chat_attempt import check_status
from qproxy.relay.event_stream import MAX_WHOLE_BODY
from qproxy.relay.exchange import read_json
from qproxy.relay.relay import Relay
from qproxy.relay.retry import Attempt, RetryLoop
from qproxy.relay.transcription_task import SubmittedTask, finish_task, submit_task
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse
from qproxy.wire import json_codec, sse
from qproxy.wire.dialects.error_mapping import error_from_event
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.form_data import FormBody, FormPart
from qproxy.wire.http_request import Upload
from qproxy.wire.transcription import Transcript, TranscriptionPlan
from qproxy.wire.transcription.upstream import (
    RecognitionReader,
    invalid,
    language_of,
    own_request,
    parse_chat,
    parse_counts,
    sync_request,
    text_of,
)

EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Recording:
    """The recording of a client, and its form."""

    file: Upload
    parts: Sequence[FormPart]
    """The whole form, for own servers."""
    boundary: str
    route: str
    """`transcriptions` or `translations`."""

    def form(self, model: str) -> FormBody:
        """Return the client's form with the model's name on a server."""
        parts = [FormPart("model", model) if part.name == "model" else part for part in self.parts]
        return FormBody(parts, self.boundary)


class OwnTranscription:
    """The response of an own server, passed on as it is."""

    def __init__(self, response: UpstreamResponse) -> None:
        self.content_type = response.header(b"content-type") or "application/octet-stream"
        self._response = response

    async def receive(self) -> bytes:
        """Return some of the body, b"" at its end."""
        return await self._response.receive()


class TranscriptStream:
    """A transcript of the chat service that arrives in pieces."""

    def __init__(self, response: UpstreamResponse, account: Account) -> None:
        self._response = response
        self._account = account
        self._decoder = sse.Decoder()
        self._text = ""
        self._language: str | None = None
        self._usage: Usage | None = None
        self._seconds: float | None = None
        self._first = ""
        self._finished = False
        """Whether the upstream has reported that the text is complete."""
        self._ended = False

    async def start(self) -> None:
        """Wait for the first text. Raises UpstreamError."""
        self._first = await self.receive()

    async def receive(self) -> str:
        """Return some of the text, "" at its end. Raises UpstreamError."""
        if self._first:
            first, self._first = self._first, ""
            return first
        while not self._ended:
            data = await self._response.receive()
            self._ended = not data
            events = self._decoder.feed(data) if data else self._decoder.close()
            text = "".join([self._read(event.data) for event in events])
            if text:
                self._text += text
                return text
        if not self._finished:
            message = "The upstream ended its response before the transcript was complete."
            raise UpstreamError(message, code="upstream_error")
        return ""

    def transcript(self) -> Transcript:
        """Return the transcript, at the end."""
        return Transcript(self._text, self._language, seconds=self._seconds, usage=self._usage)

    def _read(self, data: str) -> str:
        """Return the text of an event."""
        if data == "[DONE]":
            self._finished = True
            return ""
        value = _parse_event(data, self._account)
        usage, seconds = parse_counts(value.get("usage"))
        self._usage, self._seconds = usage or self._usage, seconds or self._seconds
        choices = value.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return ""
        if isinstance(choice.get("finish_reason"), str):
            self._finished = True
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return ""
        self._language = language_of(delta) or self._language
        return text_of(delta)


Transcription: TypeAlias = Transcript | TranscriptStream | OwnTranscription


def _parse_event(data: str, account: Account) -> dict[str, JSON]:
    """Return the object of an event. Raises the UpstreamError that it reports, or that it is none."""
    try:
        value = json_codec.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise invalid("an event that is no object")
    error = error_from_event(value, None, plan=account.plan)
    if error is not None:
        raise error
    return value


async def transcribe(
    relay: Relay,
    model: str,
    plan: TranscriptionPlan | None,
    recording: Recording,
    record: RelayRecord,
    stack: AsyncExitStack,
) -> Transcription:
    """Return the transcript of a recording; without a plan it is that of an own server.

    A response that is still open is closed by `stack`. A client that leaves ends a task. Raises QproxyError
    when no account succeeds.
    """
    record.model = model
    route = relay.names.route(model)
    served = route.served if plan is None else plan.model
    record.served_model, record.model_notes = served, route.notes
    started_at = trio.current_time()
    loop = RetryLoop(relay.accounts, served, record, task="transcription")
    attempt = _TranscriptionAttempt(relay, served, plan, recording, record)
    try:
        started = await loop.run(attempt, stack)
        if isinstance(started, SubmittedTask):
            started = await finish_task(relay, started)
    finally:
        record.upstream_seconds += trio.current_time() - started_at
    if isinstance(started, Transcript) and plan is not None and plan.request.has_times:
        _check_times(started, served)
    return started


def _check_times(transcript: Transcript, model: str) -> None:
    """Raise UpstreamError for a text of which some sentences have no times."""
    if not transcript.has_all_times:
        message = (
            f"{model} gave times of {len(transcript.sentences)} sentences, which are not the whole text."
        )
        raise UpstreamError(message, code="upstream_incomplete_times")


class _TranscriptionAttempt(Attempt["Transcription | SubmittedTask"]):
    """The attempts of one transcription."""

    def __init__(
        self,
        relay: Relay,
        model: str,
        plan: TranscriptionPlan | None,
        recording: Recording,
        record: RelayRecord,
    ) -> None:
        self._relay = relay
        self._model = model
        self._plan = plan
        self._recording = recording
        self._record = record

    async def start(
        self, account: Account, credential: Credential, stack: AsyncExitStack
    ) -> Transcription | SubmittedTask:
        """Send the recording, and return what the response means."""
        target = account.target(credential, self._model, self._record.trace_headers)
        self._record.account = account.name
        plan, recording = self._plan, self._recording
        if target.family != "dashscope" or plan is None:
            request = own_request(recording.form(target.model), recording.route, target)
        elif plan.is_task:
            return await submit_task(self._relay, plan, recording.file, account, target, self._record)
        else:
            request = sync_request(plan, await _read(recording.file), target)
        response = await self._relay.transport.send(request)
        await stack.enter_async_context(response)
        await check_status(response, account, self._record)
        if request.upload is not None or plan is None:
            return OwnTranscription(response)
        is_stream = (response.header(b"content-type") or "").startswith(EVENTS)
        if plan.service == "recognition":
            return await _recognize(response, account, is_stream=is_stream)
        if not is_stream:
            return parse_chat(await read_json(response, account))
        stream = TranscriptStream(response, account)
        await stream.start()
        return stream


async def _read(file: Upload) -> bytes:
    """Return a file as a whole: its size is within the limits of a model."""
    async with aclosing(file.chunks()) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def _recognize(response: UpstreamResponse, account: Account, *, is_stream: bool) -> Transcript:
    """Return the transcript in a response of the recognition service."""
    reader = RecognitionReader()
    if not is_stream:
        reader.feed(await read_json(response, account))
        return reader.transcript()
    decoder, size = sse.Decoder(), 0
    while data := await response.receive():
        size += len(data)
        if size > MAX_WHOLE_BODY:
            raise invalid(f"events of more than {MAX_WHOLE_BODY} bytes")
        for event in decoder.feed(data):
            reader.feed(_parse_event(event.data, account))
    for event in decoder.close():
        reader.feed(_parse_event(event.data, account))
    return reader.transcript()
