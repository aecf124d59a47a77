"""The sound of one request: parts of its text one after another, each a stream of an account.

The first piece of sound is awaited before a response begins, so that an error before it has its true status
and another account may be tried. A part is requested when the one before it has been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Protocol

from qproxy.accounts import Account
from qproxy.relay.event_stream import MAX_WHOLE_BODY
from qproxy.relay.exchange import PassedResponse, exchange
from qproxy.relay.relay import Relay
from qproxy.relay.result_files import download_result
from qproxy.telemetry import RelayRecord
from qproxy.transport import UpstreamResponse
from qproxy.wire import json_codec, sse
from qproxy.wire.dialects import UpstreamTarget
from qproxy.wire.dialects.deltas import parse_usage
from qproxy.wire.dialects.error_mapping import error_from_event
from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Usage
from qproxy.wire.http_request import HTTPRequest
from qproxy.wire.speech import SpeechInput, SpeechPlan
from qproxy.wire.speech.sound import RATE, WavReader
from qproxy.wire.speech.upstream import SpeechEvent, open_request, parse_event, studio_request


class SoundStream(Protocol):
    """Sound in pieces."""

    async def receive(self) -> bytes:
        """Return some of the sound, b"" at its end. Raises QproxyError."""
        ...


async def open_own_speech(
    relay: Relay, request: SpeechInput, record: RelayRecord, stack: AsyncExitStack
) -> PassedResponse:
    """Return the speech of an own server. Raises QproxyError."""

    def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
        return open_request(request, target)

    async def read(response: UpstreamResponse, account: Account) -> PassedResponse:
        return PassedResponse(response)

    record.units["characters"] = len(request.text)
    return await exchange(relay, record, stack, model=request.model, task="speech", build=build, read=read)


class StudioSpeech:
    """The sound of all parts of a text, at Model Studio."""

    def __init__(self, relay: Relay, model: str, plan: SpeechPlan, record: RelayRecord) -> None:
        self.rate = RATE
        self._relay = relay
        self._model = model
        self._plan = plan
        self._record = record
        self._parts = iter(plan.parts)
        self._part: _PartStream | None = None
        self._sent = 0
        """Characters of the current part."""
        self._stack = AsyncExitStack()
        self._first = b""

    async def start(self, stack: AsyncExitStack) -> None:
        """Wait for the first sound. What is open is closed by `stack`. Raises QproxyError."""
        stack.push_async_exit(self._stack)
        self._first = await self.receive()

    async def receive(self) -> bytes:
        """Return some of the sound, b"" at the end of the last part. Raises QproxyError."""
        if self._first:
            first, self._first = self._first, b""
            return first
        while self._part is not None or await self._open_next():
            assert self._part is not None
            if sound := await self._part.receive():
                return sound
            self._count(self._part.usage)
            self._part = None
            await self._stack.aclose()
        return b""

    async def _open_next(self) -> bool:
        """Request the sound of the next part; return whether there is one."""
        part = next(self._parts, None)
        if part is None:
            return False

        def build(account: Account, target: UpstreamTarget) -> HTTPRequest:
            return studio_request(self._plan, part, target)

        async def read(response: UpstreamResponse, account: Account) -> _PartStream:
            stream = _PartStream(self._relay, response, account, raw=self._plan.source != "pcm")
            await stream.start()
            return stream

        self._part = await exchange(
            self._relay,
            self._record,
            self._stack,
            model=self._model,
            task="speech",
            build=build,
            read=read,
            affinity=self._plan.voice,
        )
        self.rate = self._part.rate
        self._sent = len(part)
        self._record.units["characters"] = self._record.units.get("characters", 0) + self._sent
        return True

    def _count(self, usage: Mapping[str, JSON]) -> None:
        """Add what a part has used."""
        found = parse_usage(dict(usage))
        counted = usage.get("characters")
        if type(counted) is int:
            self._record.units["characters"] += counted - self._sent
        if found.total_tokens:
            known = self._record.usage or Usage()
            self._record.usage = Usage(
                known.prompt_tokens + found.prompt_tokens,
                known.completion_tokens + found.completion_tokens,
                known.total_tokens + found.total_tokens,
            )


class _PartStream:
    """The sound of one part."""

    def __init__(self, relay: Relay, response: UpstreamResponse, account: Account, *, raw: bool) -> None:
        self.usage: dict[str, JSON] = {}
        self._relay = relay
        self._response = response
        self._account = account
        self._decoder = sse.Decoder()
        self._wav = None if raw else WavReader()
        self._url: JSON = None
        self._any = False
        """Whether there was sound."""
        self._finished = False
        """Whether an event was the last."""
        self._ended = False
        self._first = b""

    @property
    def rate(self) -> int:
        """Return the samples a second."""
        return RATE if self._wav is None else self._wav.rate

    async def start(self) -> None:
        """Wait for the first sound. Raises UpstreamError."""
        self._first = await self.receive()
        if not self._first:
            raise UpstreamError("The upstream returned no sound.", code="upstream_invalid_response")

    async def receive(self) -> bytes:
        """Return some of the sound, b"" at its end."""
        if self._first:
            first, self._first = self._first, b""
            return first
        while not self._ended:
            data = await self._response.receive()
            events = self._decoder.feed(data) if data else self._decoder.close()
            sound = b"".join(self._samples(self._event(event.data)) for event in events)
            self._any = self._any or bool(sound)
            if not data:
                sound += await self._end()
            if sound:
                return sound
        return b""

    def _event(self, data: str) -> SpeechEvent:
        try:
            value = json_codec.loads(data)
        except ValueError:
            value = None
        error = error_from_event(value, None, plan=self._account.plan)
        if error is not None:
            raise error
        event = parse_event(value)
        self.usage = event.usage or self.usage
        self._url = event.url or self._url
        self._finished = self._finished or event.finished
        return event

    def _samples(self, event: SpeechEvent) -> bytes:
        return event.sound if self._wav is None else self._wav.feed(event.sound)

    async def _end(self) -> bytes:
        """Return the rest of the sound: the file that the last event links to, if the events had none."""
        self._ended = True
        if not self._finished:
            message = "The upstream ended its response before the sound was complete."
            raise UpstreamError(message, code="upstream_error")
        if self._any:
            return b"" if self._wav is None else self._wav.close()
        hosts = self._relay.policy.result_hosts
        file = await download_result(self._relay.transport, self._url, hosts, MAX_WHOLE_BODY)
        return file if self._wav is None else self._wav.feed(file)
