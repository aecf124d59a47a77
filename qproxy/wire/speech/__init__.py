"""Speech: text as sound.

request    `POST /v1/audio/speech` as a `SpeechInput`
plan       what a model is asked for, and what is made of its sound
sentences  a text in parts that a model accepts
upstream   Model Studio's two services, their streams, and own servers
sound      WAV heads, and the types of sound
"""

from qproxy.wire.speech.plan import SpeechPlan, make_plan
from qproxy.wire.speech.request import SCHEMA, SpeechInput, decode

__all__ = ["SCHEMA", "SpeechInput", "SpeechPlan", "decode", "make_plan"]
