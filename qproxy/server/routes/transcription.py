"""The routes for the text of recordings: transcriptions, and translations into English.

An own server's response is passed on; Model Studio's transcript gets the form that the client wants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import aclosing
from functools import partial

import trio

from qproxy.relay.exchange import is_only_on_own_servers, reject_ignored
from qproxy.relay.transcript_translation import translate
from qproxy.relay.transcription import OwnTranscription, Recording, TranscriptStream, transcribe
from qproxy.server import request_context
from qproxy.server.form_data import FormData, UploadedFile, read_form
from qproxy.server.http_response import HTTPResponse
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.sound_body import ByteStream, SoundBody
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.usage_limits import authorize_model, reserve_usage
from qproxy.telemetry import ResponseTokens
from qproxy.wire import transcription
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.form_data import boundary_of
from qproxy.wire.token_ratios import PromptSize, TokenEstimate
from qproxy.wire.transcription import AudioFile, Transcript, TranscriptionInput, response
from qproxy.wire.transcription.audio import describe
from qproxy.wire.transcription.request import DIARIZED
from qproxy.wire.transcription.upstream import needs_file_model

STREAM_TYPE = "text/event-stream; charset=utf-8"
TOKENS_PER_SECOND = 25
"""Of Qwen3-ASR."""
BYTES_PER_TOKEN = 4
TRANSLATIONS = "translations"


class TranscriptionRoutes:
    """Write down the speech of a recording."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        schemas = {"transcriptions": transcription.SCHEMA, TRANSLATIONS: transcription.TRANSLATION_SCHEMA}
        for name, schema in schemas.items():
            yield Route(
                f"/audio/{name}",
                ("POST",),
                partial(self._view, name),
                api=OPENAI,
                operation="transcription",
                schema=schema,
                form=True,
                fast_path=True,
            )

    async def _view(self, route: str) -> HTTPResponse:
        state, stack = self._server.state, request_context.stack()
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            form = await read_form(state.request_limits)
            request, file = transcription.decode(form), form.file("file")
            job = _Job(state, request, form, file, await _describe(file), route, in_flight)
            job.tokens.estimate = await reserve_usage(state, request.model, _size_of(job.audio))
            stack.callback(await state.concurrency.acquire())
            return await job.run()


async def _describe(file: UploadedFile) -> AudioFile:
    """Return the facts in the head of a file. Raises RequestError for an empty one."""
    if not file.length:
        raise RequestError("Invalid value for 'file': it is empty.", param="file", code="invalid_value")
    async with aclosing(file.chunks()) as chunks:
        head = await anext(chunks)
    return describe(head, file.length, file.filename)


def _size_of(audio: AudioFile) -> PromptSize:
    return PromptSize(int(audio.likely_seconds * TOKENS_PER_SECOND * BYTES_PER_TOKEN))


class _Job:
    """One recording on its way to a response."""

    def __init__(
        self,
        state: ServerState,
        request: TranscriptionInput,
        form: FormData,
        file: UploadedFile,
        audio: AudioFile,
        route: str,
        in_flight: InFlightRequest,
    ) -> None:
        self.audio = audio
        self.tokens = ResponseTokens(TokenEstimate())
        self._state = state
        self._request = request
        self._in_flight = in_flight
        self._translates = route == TRANSLATIONS
        self._record = request_context.record()
        self._recording = Recording(file, form.parts(), boundary_of(self._record.id), route)

    async def run(self) -> HTTPResponse:
        """Return the response. Raises QproxyError."""
        request, relay = self._request, self._state.relay
        served = relay.names.route(request.model).served
        if is_only_on_own_servers(relay, request.model, "transcription"):
            return await self._transcribe(None)
        if self._translates:
            _check_translation(request, relay.policy.audio_translation_model)
        catalog = relay.policy.catalog
        plan = transcription.make_plan(request, served, catalog, self.audio)
        try:
            return await self._transcribe(plan)
        except UpstreamError as error:  # the head of most formats does not say how long they are
            has_other = not plan.is_task and catalog.get(served).file_model is not None
            if not has_other or not needs_file_model(error, self.audio):
                raise
        plan = transcription.make_plan(request, served, catalog, self.audio, needs_file_model=True)
        return await self._transcribe(plan)

    async def _transcribe(self, plan: transcription.TranscriptionPlan | None) -> HTTPResponse:
        relay, record, stack = self._state.relay, self._record.relay, request_context.stack()
        if plan is not None:
            await authorize_model(self._state, request_context.api_key(), plan.model)
            reject_ignored(relay, record, plan.ignored)
        found = await transcribe(relay, self._request.model, plan, self._recording, record, stack)
        record.responses.append(self.tokens)
        if isinstance(found, OwnTranscription):
            self._count(Transcript(""))
            is_stream = found.content_type.startswith("text/event-stream")
            return self._stream(found, found.content_type, sse=is_stream)
        if self._request.stream:
            events = _Events(found, self._count, diarizes=self._request.format == DIARIZED)
            return self._stream(events, STREAM_TYPE, sse=True)
        transcript = await self._whole(found)
        body, content_type = response.body(self._request, transcript, self._task)
        self._record.first_byte = self._record.response_started = self._record.seconds
        return HTTPResponse(body, content_type=content_type)

    @property
    def _task(self) -> str:
        return "translate" if self._translates else "transcribe"

    async def _whole(self, found: Transcript | TranscriptStream) -> Transcript:
        """Return the whole transcript, translated if that is wanted."""
        if isinstance(found, TranscriptStream):
            while await found.receive():
                pass
            found = found.transcript()
        self._count(found)
        if not self._translates:
            return found
        model = self._state.relay.policy.audio_translation_model
        assert model is not None
        await authorize_model(self._state, request_context.api_key(), model)
        return await translate(self._state.relay, model, self._request, found, self._record)

    def _count(self, transcript: Transcript) -> None:
        """Record what a transcript has used, as far as that is known."""
        record = self._record.relay
        record.usage = self.tokens.usage = transcript.usage
        seconds = transcript.seconds or self.audio.seconds
        if seconds:
            record.units["seconds"] = seconds

    def _stream(self, stream: ByteStream, content_type: str, *, sse: bool) -> HTTPResponse:
        self._record.stream = True
        self._record.first_byte = self._record.seconds
        body = SoundBody(stream, self._record, self._in_flight, request_context.nursery(), b"", sse=sse)
        return HTTPResponse(body, content_type=content_type, headers={"cache-control": "no-cache"})


def _check_translation(request: TranscriptionInput, model: str | None) -> None:
    """Raise RequestError for a translation that cannot be made."""
    if model is None:
        message = "Translations are disabled (audio_translation_model): use /v1/audio/transcriptions."
        raise RequestError(message, status=404, code="unsupported_endpoint")
    if request.stream or request.format == DIARIZED:
        name = "stream" if request.stream else "response_format"
        message = f"Unsupported value for '{name}': translations are json, text, srt, vtt or verbose_json."
        raise RequestError(message, param=name, code="unsupported_value")


class _Events:
    """A transcript in events: pieces of text, sentences with their speakers, and the whole."""

    def __init__(
        self,
        found: Transcript | TranscriptStream,
        count: Callable[[Transcript], None],
        *,
        diarizes: bool,
    ) -> None:
        self._found = found
        self._count = count
        self._diarizes = diarizes
        self._done = False

    async def receive(self) -> bytes:
        """Return the next events, b"" after the last one."""
        if self._done:
            await trio.lowlevel.checkpoint()
            return b""
        found = self._found
        if isinstance(found, TranscriptStream):
            if text := await found.receive():
                return response.delta(text)
            found = found.transcript()
            begun = b""
        else:
            await trio.lowlevel.checkpoint()
            begun = response.delta(found.text) if found.text else b""
        self._done = True
        self._count(found)
        if self._diarizes:
            begun = response.segments(found)
        return begun + response.done(found)
