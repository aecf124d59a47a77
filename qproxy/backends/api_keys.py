"""A check for API keys, for the validation of the settings before anything is opened."""

from __future__ import annotations

from pathlib import Path

from qproxy.access.api_keys import ApiKeyStoreError
from qproxy.backends.local import key_file
from qproxy.config import Config
from qproxy.config.accounts import ConfigError


def has_api_keys(config: Config) -> bool:
    """Return whether clients need a key. Raises ConfigError if that cannot be read.

    With keys in shared state they always do, unless `insecure_no_auth` allows a server without any.
    """
    if config.shared_state is not None and config.keys_file:
        return bool(config.api_keys) or not config.insecure_no_auth
    try:
        return bool(config.api_keys or (config.keys_file and key_file.read(Path(config.keys_file))))
    except ApiKeyStoreError as error:
        raise ConfigError(str(error)) from None
