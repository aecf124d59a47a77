"""The credential file has qwen-code's format, and keeps unknown fields."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qproxy.wire import credential_format
from qproxy.wire.credential_format import TokenSet
from qproxy.wire.oauth import TokenResponse

WHOLE = {
    "access_token": "at",
    "refresh_token": "rt",
    "token_type": "Bearer",
    "resource_url": "portal.qwen.ai",
    "expiry_date": 1_760_000_000_000,
}


def test_a_file_of_qwen_code_survives_a_round_trip():
    """Two spaces of indentation, qwen-code's five fields in its order, and others after them."""
    text = json.dumps({**WHOLE, "id": [1]}, indent=2)
    found = credential_format.load(text.encode())
    assert found is not None
    assert found.seconds_left(1_760_000_000 - 60) == 60
    assert credential_format.dump(found).decode() == text
    assert "at'" not in repr(found)


UNREADABLE = {
    "empty": b"",
    "cut": b'{"access_token": "a',
    "not UTF-8": b"\xff",
    "a list": b"[]",
    "no access token": b'{"refresh_token": "rt"}',
    "an empty access token": b'{"access_token": ""}',
    "a number for a token": b'{"access_token": 5}',
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_an_invalid_file_has_no_credentials(data):
    """A file that fails the checks holds no credentials; it is not an error."""
    assert credential_format.load(data) is None


@pytest.mark.parametrize("end", [None, "soon", 0, 1e300, [1]], ids=str)
def test_a_file_without_an_expiry_is_expired(end):
    """Its token is refreshed, which repairs files of old releases."""
    found = credential_format.load(json.dumps({**WHOLE, "expiry_date": end}).encode())
    assert found is not None
    assert found.seconds_left(1.0) < 0


def test_a_refresh_keeps_fields_missing_in_its_response():
    """The refresh token, the resource and the unknown fields are kept."""
    before = TokenSet("a1", "r1", "Bearer", 1, "portal.qwen.ai", {"x": 1})
    after = before.with_refresh(TokenResponse("a2", None, "Bearer", 60.0, None), 1000.0)
    assert after == TokenSet("a2", "r1", "Bearer", 1_060_000, "portal.qwen.ai", {"x": 1}, 60.0)
    moved = before.with_refresh(TokenResponse("a2", "r2", "Bearer", None, "other.qwen.ai"), 1000.0)
    assert moved == TokenSet("a2", "r2", "Bearer", 4_600_000, "other.qwen.ai", {"x": 1}, 3600.0)


@pytest.mark.parametrize("lifetime", [None, "long", 0, -1, True, 1e300, [1]], ids=str)
def test_an_invalid_lifetime_is_unknown(lifetime):
    """Only a positive number of seconds is a lifetime."""
    found = credential_format.load(json.dumps({**WHOLE, "expires_in": lifetime}).encode())
    assert found is not None
    assert found.lifetime is None


def test_a_lifetime_survives_the_file():
    """A later reader of the file knows the token's total lifetime."""
    before = credential_format.from_response(TokenResponse("a1", "r1", "Bearer", 120.0, None), 1000.0)
    assert credential_format.load(credential_format.dump(before)) == before


@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())))
def test_any_unknown_fields_survive(others):
    """Reading and writing keeps all unknown fields."""
    text = json.dumps({**others, **WHOLE})
    found = credential_format.load(text.encode())
    assert found is not None
    assert json.loads(credential_format.dump(found)) == json.loads(text)
