"""Ids of tool calls as Anthropic's clients take them: 1 to 64 letters, digits, `_` and `-`.

An upstream's id that fits is kept. Another one (`functions.get_weather:0`, which Kimi models expect back) is
encoded in base64url, so that the history restores it; one that is too long for that becomes a digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

MAX_LENGTH = 64
_VALID = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_ENCODED = "toolu_b64_"


def client_id(id: str) -> str:
    """Return the client's id for an upstream's."""
    if _VALID.match(id) and not id.startswith(_ENCODED):
        return id
    data = id.encode("utf-8", "surrogatepass")
    encoded = _ENCODED + base64.urlsafe_b64encode(data).decode().rstrip("=")
    return encoded if len(encoded) <= MAX_LENGTH else f"toolu_{hashlib.sha256(data).hexdigest()[:24]}"


def upstream_id(id: str) -> str:
    """Return the upstream's id for a client's."""
    if not id.startswith(_ENCODED):
        return id
    text = id.removeprefix(_ENCODED)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return id
