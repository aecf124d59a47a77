"""Sealed texts open with the same keys, and only unchanged."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire.sealing import NONCE_BYTES, TextSealer

OLD, NEW = b"o" * 32, b"n" * 32
NONCE = bytes(range(NONCE_BYTES))
SEALER = TextSealer([NEW], "p1.")


@given(
    st.text(st.characters(codec=None), max_size=200), st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
)
def test_a_sealed_text_opens(text, nonce):
    """Every text comes back, lone surrogates included, and its words are not in the sealed one."""
    sealed = SEALER.seal(text, nonce)
    assert sealed.isascii()
    assert SEALER.unseal(sealed) == text
    assert len(text) < 8 or text not in sealed


@given(st.integers(0), st.integers(1, 63))
def test_an_altered_text_does_not_open(position, change):
    """One changed character, wherever it is, makes the text a stranger's."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    sealed = SEALER.seal("secret", NONCE)  # without padding, whose bits may vary
    place = len("p1.") + position % (len(sealed) - len("p1."))
    other = alphabet[(alphabet.find(sealed[place]) + change) % 64]
    altered = sealed[:place] + other + sealed[place + 1 :]
    assert SEALER.unseal(altered) is None


@pytest.mark.parametrize(
    "value", ["", "p1.", "p1.é", "p1.AAAA", "gAAAAABn", "p1." + "A" * 64, SEALER.seal("x", NONCE)[3:]]
)
def test_a_foreign_text_does_not_open(value):
    """Texts of others, and those that are too short to be any, are no error."""
    assert SEALER.unseal(value) is None


def test_keys_rotate():
    """The first key seals, every key opens, and a key that was taken away opens nothing."""
    sealed = TextSealer([OLD], "p1.").seal("text", NONCE)
    rotated = TextSealer([NEW, OLD], "p1.")
    assert rotated.unseal(sealed) == "text"
    assert TextSealer([NEW], "p1.").unseal(rotated.seal("text", NONCE)) == "text"
    assert TextSealer([NEW], "p1.").unseal(sealed) is None


def test_a_text_for_another_purpose_does_not_open():
    """The same keys with another prefix are other keys."""
    other = TextSealer([NEW], "p2.")
    assert other.unseal("p2." + SEALER.seal("text", NONCE).removeprefix("p1.")) is None


@pytest.mark.parametrize("secrets", [[], [b"short"], [NEW, b""]])
def test_short_secrets_are_rejected(secrets):
    """A secret has at least 32 bytes."""
    with pytest.raises(ValueError, match="32 bytes"):
        TextSealer(secrets, "p1.")
