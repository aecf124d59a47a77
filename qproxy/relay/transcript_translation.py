"""A transcript in English, by one request to a text model."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from qproxy.relay.fan_out import merge_records
from qproxy.relay.relay import Relay
from qproxy.telemetry import RelayRecord, RequestRecord
from qproxy.wire.events import StreamFailed, TextDelta
from qproxy.wire.transcription import Transcript, TranscriptionInput
from qproxy.wire.transcription.translation import translated, translation_turn


async def translate(
    relay: Relay, model: str, request: TranscriptionInput, transcript: Transcript, record: RequestRecord
) -> Transcript:
    """Return a transcript in English. Raises QproxyError when the model fails or leaves out a sentence."""
    if not transcript.text.strip():
        return transcript
    turn = translation_turn(f"chatcmpl-{record.id}", int(time.time()), model, request, transcript)
    part = RelayRecord()
    served = record.relay.served_model
    async with AsyncExitStack() as stack:
        try:
            stream = await relay.open(turn, part, stack)
            events = await stream.read_all()
        finally:
            merge_records(record.relay, part)
            record.relay.served_model = served  # whose seconds are the larger part of the cost
    for event in events:
        if isinstance(event, StreamFailed):
            raise event.error
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    return translated(request, transcript, text)
