"""Pictures: made from a text, and from pictures with a text.

request   `POST /v1/images/generations`, `/edits` and `/variations` as an `ImageInput`
size      sizes of OpenAI's clients as those that a model makes
upstream  Model Studio's service, and own servers
response  OpenAI's response, whole or as an event
"""

from qproxy.wire.images.request import (
    EDIT_SCHEMA,
    GENERATION_SCHEMA,
    VARIATION_SCHEMA,
    ImageInput,
    decode_form,
    decode_generation,
)
from qproxy.wire.images.response import MadeImages, event, response

__all__ = [
    "EDIT_SCHEMA",
    "GENERATION_SCHEMA",
    "VARIATION_SCHEMA",
    "ImageInput",
    "MadeImages",
    "decode_form",
    "decode_generation",
    "event",
    "response",
]
