"""The route for speech: sound as it is, or in events, from its first piece on.

An own server's response is passed on; the sound of Model Studio gets the form that the client wants.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import trio

from qproxy.relay.exchange import PassedResponse, is_only_on_own_servers, reject_ignored
from qproxy.relay.speech import SoundStream, StudioSpeech, open_own_speech
from qproxy.relay.transcoder import Transcoder
from qproxy.server import request_context
from qproxy.server.http_response import HTTPResponse
from qproxy.server.in_flight import InFlightRequest
from qproxy.server.request_body import read_json
from qproxy.server.sound_body import SoundBody
from qproxy.server.state import Route, ServerState, StateHolder
from qproxy.server.usage_limits import reserve_usage
from qproxy.wire import json_codec, speech
from qproxy.wire.endpoints import OPENAI
from qproxy.wire.speech.sound import TYPES, wav_head
from qproxy.wire.token_estimate import text_bytes
from qproxy.wire.token_ratios import PromptSize

STREAM_TYPE = "text/event-stream; charset=utf-8"


class SpeechRoutes:
    """Make speech of a text."""

    def __init__(self, server: StateHolder) -> None:
        self._server = server

    def routes(self) -> Iterator[Route]:
        yield Route(
            "/audio/speech",
            ("POST",),
            self._view,
            api=OPENAI,
            operation="speech",
            schema=speech.SCHEMA,
            fast_path=True,
        )

    async def _view(self) -> HTTPResponse:
        state, record, stack = self._server.state, request_context.record(), request_context.stack()
        in_flight = state.in_flight.add(
            stack, state.request_limits.client_request_timeout, "client_request_timeout"
        )
        with in_flight.deadline_scope():
            request = speech.decode(await read_json(state.request_limits, state.body_logger))
            served = state.relay.names.route(request.model).served
            await reserve_usage(state, request.model, PromptSize(text_bytes(request.text)))
            stack.callback(await state.concurrency.acquire())
            if is_only_on_own_servers(state.relay, request.model, "speech"):
                own = await open_own_speech(state.relay, request, record.relay, stack)
                return _response(own, own.content_type, in_flight, b"")
            return await _studio_speech(state, request, served, in_flight)


async def _studio_speech(
    state: ServerState, request: speech.SpeechInput, served: str, in_flight: InFlightRequest
) -> HTTPResponse:
    """Return the sound of a model of Model Studio."""
    record, stack, policy = request_context.record(), request_context.stack(), state.relay.policy
    spec = policy.catalog.get(served)
    plan = speech.make_plan(request, served, spec, policy.speech_voices, can_encode=policy.ffmpeg is not None)
    reject_ignored(state.relay, record.relay, plan.ignored)
    sound = StudioSpeech(state.relay, request.model, plan, record.relay)
    await sound.start(stack)
    stream: SoundStream = sound
    if plan.encodes:
        assert policy.ffmpeg is not None
        stream = coder = Transcoder(policy.ffmpeg, sound, sound.rate, plan.format, plan.tempo)
        await coder.start(request_context.nursery(), stack)
    head = wav_head(sound.rate) if plan.format == "wav" else b""
    if request.sse:
        return _response(_Events(stream, head), STREAM_TYPE, in_flight, b"", sse=True)
    return _response(stream, TYPES[plan.format], in_flight, head)


def _response(
    stream: SoundStream | PassedResponse,
    content_type: str,
    in_flight: InFlightRequest,
    head: bytes,
    *,
    sse: bool = False,
) -> HTTPResponse:
    record = request_context.record()
    record.stream = True
    record.first_byte = record.seconds
    body = SoundBody(stream, record, in_flight, request_context.nursery(), head, sse=sse)
    return HTTPResponse(body, content_type=content_type, headers={"cache-control": "no-cache"})


class _Events:
    """Sound in events: `speech.audio.delta` for each piece, and `speech.audio.done` with the usage."""

    def __init__(self, stream: SoundStream, head: bytes) -> None:
        self._stream = stream
        self._head = head
        self._record = request_context.record().relay
        self._done = False

    async def receive(self) -> bytes:
        """Return the next event, b"" after the last one."""
        if self._done:
            await trio.lowlevel.checkpoint()
            return b""
        sound, self._head = self._head + await self._stream.receive(), b""
        if sound:
            return _event({"type": "speech.audio.delta", "audio": b64encode(sound).decode()})
        self._done = True
        return _event({"type": "speech.audio.done", "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        """Return tokens, or the characters in their place where a model counts those."""
        used = self._record.usage
        if used is None:
            count = int(self._record.units.get("characters", 0))
            return {"input_tokens": count, "output_tokens": 0, "total_tokens": count}
        return {
            "input_tokens": used.prompt_tokens,
            "output_tokens": used.completion_tokens,
            "total_tokens": used.total_tokens,
        }


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json_codec.dumps(value) + b"\n\n"
