"""Encryption of stored tokens, with a key that the operating system's keyring keeps.

Optional: `pip install 'qproxy[keyring]'` and the setting `encrypt_credentials`. The file then holds one JSON
object with a Fernet token (AES-128-CBC with HMAC-SHA256); a copy of the disk without the owner's keyring is
worth nothing. Such a file cannot be shared with qwen-code, which does not know it. A file that is not
encrypted is read anyway, and encrypted when it is next written.
"""

from __future__ import annotations

from typing import Any

from qproxy.auth.credential_store import StorageError
from qproxy.system.extras import install_command
from qproxy.wire import json_codec

SERVICE, KEY_NAME = "qproxy", "credentials"
FIELD = "qproxy_sealed"


class KeyringCipher:
    """A cipher whose key is in the keyring, created on first use."""

    def __init__(self) -> None:
        try:
            import keyring
            from cryptography.fernet import Fernet
        except ImportError:
            raise StorageError(f"encrypt_credentials requires: {install_command('keyring')}") from None
        self._keyring: Any = keyring
        self._fernet: Any = Fernet
        self._load_fernet: Any = None

    def __repr__(self) -> str:
        return "<KeyringCipher>"

    def encrypt(self, data: bytes) -> bytes:
        return json_codec.dumps({FIELD: self._key().encrypt(data).decode("ascii")})

    def decrypt(self, data: bytes) -> bytes:
        from cryptography.fernet import InvalidToken

        try:
            sealed = json_codec.loads(data)[FIELD].encode("ascii")
        except (ValueError, KeyError, TypeError, AttributeError):
            return data
        try:
            opened: bytes = self._key().decrypt(sealed)
        except InvalidToken:
            raise StorageError("The key in the keyring does not decrypt the credential file.") from None
        return opened

    def _key(self) -> Any:
        """Return the key, read once; the keyring may wait for a person, so this is called in a thread."""
        if self._load_fernet is None:
            try:
                key = self._keyring.get_password(SERVICE, KEY_NAME)
                if not key:
                    key = self._fernet.generate_key().decode("ascii")
                    self._keyring.set_password(SERVICE, KEY_NAME, key)
                self._load_fernet = self._fernet(key)
            except Exception as error:  # any exception of a keyring back end
                raise StorageError(f"The keyring cannot be used ({type(error).__name__}).") from None
        return self._load_fernet
