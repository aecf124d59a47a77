"""Signatures of thinking blocks: never empty, opaque to clients, and the same for the same text.

Clients drop a thinking block without a signature, and send any signature back. So a signature carries what
the history needs and the block does not show, each behind a prefix that tells it from Anthropic's own:

    qwen-sealed.      the ciphertext of a model that withholds its reasoning (Qwen4's `encrypted_content`),
                      unchanged
    qproxy-thinking.  the reasoning itself in base64, for a client that wants thinking blocks without text
                      (Claude Code with `display: omitted`): without it the next turn of a tool loop would
                      have lost it

Otherwise it is a digest. No signature is verified: reasoning from another server is valid history too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

_DIGEST_PREFIX = b"qproxy1"
_CIPHERTEXT_PREFIX = "qwen-sealed."
_REASONING_PREFIX = "qproxy-thinking."


class ReasoningSignature:
    """The signature of reasoning that arrives in deltas."""

    def __init__(self, *, omits_text: bool = False) -> None:
        self._hash = hashlib.sha256()
        self._deltas: list[bytes] | None = [] if omits_text else None

    def update(self, text: str) -> None:
        """Add a delta."""
        data = text.encode("utf-8", "surrogatepass")
        if self._deltas is None:
            self._hash.update(data)
        else:
            self._deltas.append(data)

    def signature(self) -> str:
        """Return the signature of all deltas so far."""
        if self._deltas is not None:
            return _REASONING_PREFIX + base64.b64encode(b"".join(self._deltas)).decode()
        return base64.b64encode(_DIGEST_PREFIX + self._hash.digest()[:12]).decode()


def sign(text: str, *, omits_text: bool = False) -> str:
    """Return the signature of a whole text."""
    signature = ReasoningSignature(omits_text=omits_text)
    signature.update(text)
    return signature.signature()


def seal(ciphertext: str) -> str:
    """Return a signature that carries the model's own ciphertext."""
    return _CIPHERTEXT_PREFIX + ciphertext


def ciphertext(signature: str) -> str | None:
    """Return the ciphertext in a signature, if `seal` made it."""
    text = signature.removeprefix(_CIPHERTEXT_PREFIX)
    return text if text != signature and text else None


def reasoning(signature: str) -> str | None:
    """Return the reasoning in a signature, if it carries any."""
    text = signature.removeprefix(_REASONING_PREFIX)
    if text == signature:
        return None
    try:
        return base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        return None
