"""What is sealed opens under its own name and generation with one of the keys, and nowhere else."""

import pytest
from cryptography.fernet import Fernet
from hypothesis import given
from hypothesis import strategies as st

from qproxy.backends.factory import open_sealer
from qproxy.backends.redis.sealing import Sealer, SealError, parse_keys
from qproxy.config import Config
from qproxy.config.accounts import ConfigError

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
SEALER = Sealer([OLD])


@given(
    st.binary(max_size=200),
    st.text(max_size=20),
    st.integers(0, 99),
    st.text(max_size=20),
    st.integers(0, 99),
)
def test_a_record_opens_at_its_place_only(data, name, generation, other_name, other_generation):
    """Any other name or generation is an error, whatever the data is."""
    sealed = SEALER.seal(data, name, generation)
    assert SEALER.open(sealed, name, generation) == data
    if (other_name, other_generation) != (name, generation):
        with pytest.raises(SealError, match="another record or generation"):
            SEALER.open(sealed, other_name, other_generation)


def test_no_name_is_the_beginning_of_another_with_data():
    """The name and the generation cannot be confused with the data behind them."""
    sealed = SEALER.seal(b"b:data", "a", 1)
    with pytest.raises(SealError, match="another record"):
        SEALER.open(sealed, "ab:data", 1)


def test_keys_are_rotated_with_a_second_line():
    """The first line seals, all open; a resealed record no longer needs the old key."""
    sealed = SEALER.seal(b"token", "q1:x")
    both = parse_keys(f"{NEW}\n\n {OLD} \n")
    assert both.open(sealed, "q1:x") == b"token"
    resealed = both.reseal(sealed, "q1:x")
    assert parse_keys(NEW).open(resealed, "q1:x") == b"token"


@pytest.mark.parametrize("change", [lambda sealed: sealed[:-1], lambda sealed: b"", lambda sealed: b"{}"])
def test_a_wrong_key_and_a_damaged_record_are_errors_with_words(change):
    """The message names the record and the setting, and contains neither key nor ciphertext."""
    sealed = SEALER.seal(b"secret", "q1:x")
    for sealer, found in ((Sealer([NEW]), sealed), (SEALER, change(sealed))):
        with pytest.raises(SealError, match=r"^q1:x: no key of shared_state_key_file opens it") as error:
            sealer.open(found, "q1:x")
        assert OLD not in str(error.value)
        assert sealed.decode() not in str(error.value)
    assert OLD not in repr(SEALER)


def test_the_setting_names_a_file_of_keys(tmp_path):
    """Without it nothing is sealed; a file without keys, or with other text, is an error of the settings."""
    file = tmp_path / "seal"
    config = Config(shared_state_key_file=str(file))
    assert open_sealer(Config()) is None
    for content in (None, "", "\n", "no-key\n", f"{OLD}\nno-key"):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError, match=r"^shared_state_key_file: ") as error:
            open_sealer(config)
        assert "no-key" not in str(error.value)
    file.write_text(f"{OLD}\n")
    sealer = open_sealer(config)
    assert sealer is not None
    assert sealer.open(SEALER.seal(b"x", "n"), "n") == b"x"
