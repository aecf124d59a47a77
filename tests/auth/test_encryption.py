"""Tokens can be encrypted on disk with a key in the system's keyring."""

import keyring
import keyring.backend
import keyring.errors
import pytest

from qproxy.auth.credential_store import StorageError
from qproxy.auth.encryption import KeyringCipher
from qproxy.backends.local.credential_file import CredentialFile
from qproxy.wire.credential_format import TokenSet, dump

TOKENS = TokenSet("a-secret", "r-secret", "Bearer", 1_760_000_000_000, "portal.qwen.ai")


class Keyring(keyring.backend.KeyringBackend):
    """A keyring in memory."""

    priority = 1

    def __init__(self):
        super().__init__()
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service, username):
        if self.locked:
            raise keyring.errors.KeyringLocked("locked: a-secret")
        return self.kept.get((service, username))

    def set_password(self, service, username, password):
        self.kept[service, username] = password

    def delete_password(self, service, username):
        del self.kept[service, username]


@pytest.fixture
def ring():
    before, ring = keyring.get_keyring(), Keyring()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


@pytest.fixture
def file(tmp_path):
    return CredentialFile(tmp_path / "me" / "oauth_creds.json", cipher=KeyringCipher())


def test_an_encrypted_file_contains_no_token(ring, file):
    """A file is written encrypted, and read by another process with the same keyring."""
    file.save(TOKENS)
    assert b"secret" not in file.path.read_bytes()
    assert CredentialFile(file.path, cipher=KeyringCipher()).load() == TOKENS
    assert len(ring.kept) == 1


def test_an_unencrypted_file_is_encrypted_by_the_next_write(ring, file):
    """Encryption can be enabled later."""
    file.make_directory()
    file.path.write_bytes(dump(TOKENS))
    assert file.load() == TOKENS
    file.save(TOKENS)
    assert b"secret" not in file.path.read_bytes()


def test_a_file_cannot_be_read_without_its_key(ring, file):
    """Another keyring, a locked one, and a modified file each raise an error without a secret."""
    file.save(TOKENS)
    ring.kept.clear()
    with pytest.raises(StorageError, match="does not decrypt"):
        CredentialFile(file.path, cipher=KeyringCipher()).load()
    ring.locked = True
    with pytest.raises(StorageError, match="KeyringLocked") as caught:
        CredentialFile(file.path, cipher=KeyringCipher()).load()
    assert "secret" not in str(caught.value)
    assert CredentialFile(file.path).load() is None
