"""Transcription: the speech of a recording as text, subtitles, or sentences with times and speakers.

request     fields of the client's form
audio       facts in a recording's first bytes: its format, and the seconds of a WAV file
plan        the service of a model that gives what the client wants, and its parameters
upstream    Model Studio's three services that answer at once, and own servers
file_task   its service for long recordings: upload, task, result
transcript  the text, and its sentences with times
response    the client's formats and events
translation English, by a text model
"""

from qproxy.wire.transcription.audio import AudioFile
from qproxy.wire.transcription.plan import TranscriptionPlan, make_plan
from qproxy.wire.transcription.request import SCHEMA, TRANSLATION_SCHEMA, TranscriptionInput, decode
from qproxy.wire.transcription.transcript import Sentence, Transcript, Word

__all__ = [
    "SCHEMA",
    "TRANSLATION_SCHEMA",
    "AudioFile",
    "Sentence",
    "Transcript",
    "TranscriptionInput",
    "TranscriptionPlan",
    "Word",
    "decode",
    "make_plan",
]
