"""Moderation: inputs judged by OpenAI's categories, of which a model can tell some.

request    what clients send: a text, several, or parts with images
guard      Qwen3Guard, a chat model that writes its judgement in lines
questions  the categories as questions to a decision model or a chat model
response   OpenAI's response
"""

from qproxy.wire.moderation.request import SCHEMA, ModerationInput, decode
from qproxy.wire.moderation.response import Judgement, response

__all__ = ["SCHEMA", "Judgement", "ModerationInput", "decode", "response"]
