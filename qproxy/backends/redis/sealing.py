"""Encryption of what an engine keeps and must not read: tokens, responses, tool rounds (extra `redis`).

`seal` and `open` are those of an AEAD: the name and the generation of the record are authenticated with the
data, so that a ciphertext that was moved to another key of the engine, or back to an earlier generation, does
not open. Fernet (AES-128-CBC with HMAC-SHA256) has no associated data; they stand inside, before the data.

Keys are rotated with a second line in the key file: the first key seals, all of them open.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

SETTING = "shared_state_key_file"


class SealError(Exception):
    """A record does not open, or a key is none; the message has the reason and no secret."""


class Sealer:
    """The keys of one installation."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Raises SealError unless there are keys, and each is one of Fernet's."""
        try:
            fernets = [Fernet(key) for key in keys]
            self._first, self._fernet = fernets[0], MultiFernet(fernets)
        except (ValueError, IndexError):
            raise SealError(
                "not a list of keys; each line is the URL-safe base64 of 32 random bytes"
            ) from None

    def __repr__(self) -> str:
        return "<Sealer>"

    def seal(self, data: bytes, name: str, generation: int = 0) -> bytes:
        """Encrypt the data of the record with this name on the engine."""
        return self._fernet.encrypt(_binding(name, generation) + data)

    def open(self, sealed: bytes, name: str, generation: int = 0) -> bytes:
        """Decrypt what was sealed for the same name and generation. Raises SealError."""
        try:
            opened = self._fernet.decrypt(sealed)
        except InvalidToken:
            raise SealError(
                f"{name}: no key of {SETTING} opens it. Every machine needs the same file, with the keys of "
                "earlier records on later lines."
            ) from None
        binding = _binding(name, generation)
        if not opened.startswith(binding):
            raise SealError(f"{name}: its content was sealed for another record or generation.")
        return opened[len(binding) :]

    def renew(self, sealed: bytes) -> bytes | None:
        """Return a record of any name, sealed with the first key; None if it is. Raises SealError."""
        try:
            self._first.decrypt(sealed)
        except InvalidToken:
            pass
        else:
            return None
        try:
            return self._fernet.rotate(sealed)
        except InvalidToken:
            raise SealError(f"no key of {SETTING} opens it") from None

    def reseal(self, sealed: bytes, name: str, generation: int = 0) -> bytes:
        """Return the same record, sealed with the first key. Raises SealError."""
        return self.seal(self.open(sealed, name, generation), name, generation)


def parse_keys(text: str) -> Sealer:
    """Return the keys of a file, one a line. Raises SealError."""
    return Sealer([line.strip() for line in text.splitlines() if line.strip()])


def _binding(name: str, generation: int) -> bytes:
    """Return the beginning of what is encrypted; the name's length makes it unambiguous."""
    encoded = name.encode()
    return b"%d:%d:%s" % (len(encoded), generation, encoded)
