"""Sealed texts that clients store for this server and send back: encrypted and authenticated.

A sealed text is a prefix and, in base64url, a nonce, the ciphertext and a tag. The keystream is SHAKE-256 of
an encryption key and the nonce; the tag is HMAC-SHA-256 of nonce and ciphertext with a key of its own
(encrypt-then-MAC). Both keys are derived from one secret. The first secret seals, every one opens, so that
secrets can be rotated.

FIPS 202 (SHAKE-256), RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from typing import Protocol

NONCE_BYTES = 16
TAG_BYTES = 32
MIN_SECRET_BYTES = 32


class Sealer(Protocol):
    """Seals texts for one purpose."""

    def seal(self, text: str, nonce: bytes) -> str:
        """Return a sealed text; the nonce is `NONCE_BYTES` random bytes, never used twice."""
        ...

    def unseal(self, value: str) -> str | None:
        """Return the text of a sealed one; None for one that was altered, or that no key of this server
        sealed."""
        ...


class TextSealer(Sealer):
    """Seals texts for one purpose, which its prefix names; a text sealed for another one does not open."""

    def __init__(self, secrets: Sequence[bytes], prefix: str) -> None:
        """Raises ValueError without a secret, or for a short one."""
        if not secrets or any(len(secret) < MIN_SECRET_BYTES for secret in secrets):
            raise ValueError(f"sealing needs secrets of at least {MIN_SECRET_BYTES} bytes")
        self._prefix = prefix
        self._keys = [_derive_keys(secret, prefix) for secret in secrets]

    def __repr__(self) -> str:
        return f"<TextSealer {self._prefix} with {len(self._keys)} keys>"

    def seal(self, text: str, nonce: bytes) -> str:
        """Return a sealed text; the nonce is `NONCE_BYTES` random bytes, never used twice."""
        encryption_key, tag_key = self._keys[0]
        data = nonce + _xor(text.encode("utf-8", "surrogatepass"), encryption_key, nonce)
        return self._prefix + urlsafe_b64encode(data + _tag(data, tag_key)).decode("ascii")

    def unseal(self, value: str) -> str | None:
        """Return the text of a sealed one; None for one that was altered, or that no key of this server
        sealed."""
        if not value.startswith(self._prefix):
            return None
        try:
            raw = b64decode(value.removeprefix(self._prefix), altchars=b"-_", validate=True)
        except ValueError:
            return None
        data, tag = raw[:-TAG_BYTES], raw[-TAG_BYTES:]
        for encryption_key, tag_key in self._keys:
            if hmac.compare_digest(_tag(data, tag_key), tag):
                nonce = data[:NONCE_BYTES]
                return _xor(data[NONCE_BYTES:], encryption_key, nonce).decode("utf-8", "surrogatepass")
        return None


def _derive_keys(secret: bytes, prefix: str) -> tuple[bytes, bytes]:
    """Return the keys for the keystream and for tags."""
    purpose = prefix.encode("ascii")
    return hmac.digest(secret, b"encrypt " + purpose, "sha256"), hmac.digest(
        secret, b"authenticate " + purpose, "sha256"
    )


def _tag(data: bytes, key: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _xor(data: bytes, key: bytes, nonce: bytes) -> bytes:
    """Encrypt or decrypt."""
    stream = hashlib.shake_256(key + nonce).digest(len(data))
    return (int.from_bytes(data, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(data), "big")
