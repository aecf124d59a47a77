"""The translation of a transcript into English by a text model: the text, or its sentences as numbered
lines."""

from __future__ import annotations

import re
from dataclasses import replace

from qproxy.wire.errors import UpstreamError
from qproxy.wire.events import JSON, Turn
from qproxy.wire.transcription.request import TranscriptionInput
from qproxy.wire.transcription.transcript import Transcript
from qproxy.wire.transcription.upstream import join_texts

INSTRUCTION = "Translate the transcript of a recording into English. Answer with the translation alone."
LINES = "Each line is numbered: answer with the same numbers, one line for each."
_LINE = re.compile(r"(\d{1,6})[:.)]\s?(.*)")


def translation_turn(
    id: str, created: int, model: str, request: TranscriptionInput, transcript: Transcript
) -> Turn:
    """Return the turn that translates a transcript."""
    system, text = INSTRUCTION, transcript.text
    if request.has_times:
        system = f"{INSTRUCTION} {LINES}"
        lines = [" ".join(sentence.text.split()) for sentence in transcript.sentences]
        text = "\n".join(f"{number}: {line}" for number, line in enumerate(lines, 1))
    if request.prompt:
        system += f"\nA hint at its words: {request.prompt}"
    messages: list[JSON] = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return Turn(id, created, model, messages, params={"enable_thinking": False}, store=False)


def translated(request: TranscriptionInput, transcript: Transcript, text: str) -> Transcript:
    """Return the transcript in the words of a translation. Raises UpstreamError if a line is missing."""
    made = replace(transcript, text=text.strip(), language="en")
    if not request.has_times:
        return made
    lines = {int(found[1]): found[2] for line in text.splitlines() if (found := _LINE.match(line.strip()))}
    missing = [n for n in range(1, len(transcript.sentences) + 1) if n not in lines]
    if missing:
        message = f"The translating model left out {len(missing)} of {len(transcript.sentences)} sentences."
        raise UpstreamError(message, code="upstream_invalid_response")
    sentences = [replace(one, text=lines[n], words=()) for n, one in enumerate(transcript.sentences, 1)]
    return replace(made, text=join_texts(one.text for one in sentences), sentences=sentences)
